# SPDX-License-Identifier: GPL-2.0-only
"""The benchmark's client of HTTP against servers that hang up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest

from pyharness.guest import bench

HEAD = b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"


@contextmanager
def server(monkeypatch: pytest.MonkeyPatch, connections: Sequence[Sequence[bytes]]) -> Iterator[int]:
    """Give each connection its answers, one for each request, and hang up after the last."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answers in connections:
                try:
                    connected, _ = listener.accept()
                except OSError:
                    return  # shut down: the client did not come again
                with connected:
                    for answer in answers:
                        assert connected.recv(1000) == HEAD
                        connected.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setattr(bench, "HOST", "127.0.0.1")
        try:
            yield listener.getsockname()[1]
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(20)
        assert not thread.is_alive()


def exchanges(port: int, count: int) -> tuple[list[int], bytes]:
    data = bytearray(4)
    ask = bench._Http(port).prepare(HEAD, memoryview(data), upload=False)
    return [ask() for _ in range(count)], bytes(data)


def test_server_that_hangs_up_between_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(monkeypatch, [[ANSWER, ANSWER], [ANSWER]]) as port:
        assert exchanges(port, 3) == ([4, 4, 4], b"body")


@pytest.mark.parametrize("cut", [10, len(ANSWER) - 1])
def test_server_that_hangs_up_within_an_answer(monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    with server(monkeypatch, [[ANSWER[:cut]]]) as port, pytest.raises(ConnectionError, match="hung up"):
        exchanges(port, 1)


def test_server_that_hangs_up_whenever_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(monkeypatch, [[b""], [b""]]) as port, pytest.raises(ConnectionError, match="hung up"):
        exchanges(port, 1)
