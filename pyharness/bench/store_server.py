# SPDX-License-Identifier: GPL-2.0-only
"""A VSP's backend behind HTTP/1.1 on loopback: what a guest reaches through its own TCP stack."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from pyharness.vsp.backends import Backend
from pyharness.vsp.http import parse_request_head
from pyharness.vsp.memory import BytesLike, GuestBuffer
from pyharness.vsp.request import VspRequest
from pyharness.vsp.wire import Status

_HEAD_END = b"\r\n\r\n"
_PIECE = 64 << 10
_UNBOUNDED = 1 << 40


class _Outgoing(GuestBuffer):
    """What the backend writes is kept in pieces, not copied."""

    __slots__ = ("pieces",)

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[BytesLike] = []

    def __len__(self) -> int:
        return _UNBOUNDED

    def write(self, data: BytesLike, offset: int = 0) -> int:
        self.pieces.append(data)
        return len(data)


class _Exchange(VspRequest):
    """One HTTP request in the form in which backends take one."""

    __slots__ = ("_body", "_data", "_response", "status")

    def __init__(self, head: bytes, body: memoryview) -> None:
        self.request = GuestBuffer([memoryview(head)])
        self._body = GuestBuffer([body])
        self.data = self._data = _Outgoing()
        self.response = self._response = _Outgoing()
        self.status: int | None = None

    @property
    def data_valid(self) -> GuestBuffer:
        return self._body

    def complete(self, error: int = Status.SUCCESS, response_len: int = 0) -> bool:
        self.status = error
        return True

    def answer(self) -> list[BytesLike]:
        """Head and body, a small one with its head in one piece. Raises ValueError when the backend failed."""
        if self.status != Status.SUCCESS:
            raise ValueError(f"the backend answered {self.status}")
        pieces = [*self._response.pieces, *self._data.pieces]
        return [b"".join(pieces)] if sum(map(len, pieces)) <= _PIECE else pieces


class StoreServer:
    """Serves `backend`, which answers at once, to keep-alive connections, a thread each. As a context manager."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._connections: set[socket.socket] = set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="store server", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError):
            received = bytearray()
            while True:
                while (end := received.find(_HEAD_END)) < 0:
                    piece = connection.recv(_PIECE)
                    if not piece:
                        return
                    received += piece
                end += len(_HEAD_END)
                head = bytes(received[:end])
                length = int(parse_request_head(head).headers.get("content-length", "0"))
                body = memoryview(bytearray(length))
                have = min(length, len(received) - end)
                body[:have] = received[end : end + have]
                del received[: end + have]
                while have < length:
                    count = connection.recv_into(body[have:])
                    if not count:
                        return
                    have += count
                exchange = _Exchange(head, body)
                self._backend.handle(exchange)
                for answer in exchange.answer():
                    connection.sendall(answer)
        self._connections.discard(connection)
