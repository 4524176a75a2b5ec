# SPDX-License-Identifier: GPL-2.0-only
"""A service whose every byte the test decides: what it does with a connection is a function."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Asked(NamedTuple):
    """A request as it came over the wire."""

    head: bytes
    body: bytes


class Conversation:
    """The service's end of one connection."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.socket = sock
        self.number = number
        """Of the connection, from 0."""
        self._stream = sock.makefile("rb")

    def listen(self) -> Asked | None:
        """The next request; None when the client hangs up."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self._stream.readline()
            if not line:
                return None
            head += line
        length = _LENGTH.search(head)
        return Asked(head, self._stream.read(int(length[1])) if length else b"")

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reset(self) -> None:
        """End the connection in a way that the client sees as an error."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._stream.close()
        self.socket.close()


class Service:
    """Listens on loopback; each connection is a thread that runs `serve` and hangs up."""

    def __init__(
        self, serve: Callable[[Conversation], None], *, port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self._serve = serve
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", port), backlog=200)
        self.port = int(self._listener.getsockname()[1])
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.connections = 0
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._sockets.append(sock)
                threading.Thread(target=self._run, args=(sock, self.connections), daemon=True).start()
                self.connections += 1

    def _run(self, sock: socket.socket, number: int) -> None:
        with suppress(OSError):
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True)
            self._serve(Conversation(sock, number))
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()

    def close(self) -> None:
        """Die: every connection ends."""
        for sock in (self._listener, *self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
