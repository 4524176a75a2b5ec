# SPDX-License-Identifier: GPL-2.0-only
"""One HTTP/1.1 connection to a blob service: bodies go from guest memory to the socket and back without a copy."""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from pyharness.vsp.memory import GuestBuffer, ReadOnlyGuestRam

_SLICE_S = 0.1
"""How soon a wait notices that nobody waits for its outcome any more."""
_PIECE = 4096
_MAX_HEAD = 64 << 10
_MAX_FIELDS = 200
_WINDOW = 1 << 20
"""Bytes of guest memory that one receive call is offered."""
_MAX_VIEWS = 1024
"""IOV_MAX of Linux."""
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n\0]*))?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
_NO_BODY = (204, 304)


class BadResponse(Exception):
    """What came is not HTTP/1.1."""


class Unwanted(Exception):
    """Nobody waits for the outcome any more; guest memory is not to be touched."""


class NoWay(Exception):
    """There is no connection, so nothing has been sent; `__cause__` says why."""


class Endpoint(NamedTuple):
    """Where a blob service listens."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True)
class Patience:
    """Until when, by `time.monotonic`, and as long as what, an exchange is to go on."""

    deadline: float
    wanted: Callable[[], bool]

    def wait(self, sock: socket.socket, events: int) -> int:
        """Wait until `sock` is ready; returns for what. Raises TimeoutError and Unwanted."""
        poll = select.poll()
        poll.register(sock, events)
        while True:
            self.check()
            left = min(_SLICE_S, self.deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError
            if ready := poll.poll(left * 1000):
                return ready[0][1]

    def check(self) -> None:
        """Raises Unwanted."""
        if not self.wanted():
            raise Unwanted


@dataclass(frozen=True)
class ResponseHead:
    """Of a final response; names are as they came."""

    status: int
    reason: bytes
    fields: tuple[tuple[bytes, bytes], ...]

    def values(self, name: bytes) -> list[bytes]:
        """Of all fields of this lower-case name, in order."""
        return [value for found, value in self.fields if found.lower() == name]


class Body(NamedTuple):
    """What became of a response body: its length, and whether it is in the room that there was for it."""

    length: int
    fits: bool


class _Room:
    """Guest memory that a body goes into; what is beyond its end is counted and thrown away."""

    def __init__(self, room: GuestBuffer) -> None:
        self._room = room
        self._at = 0

    def put(self, piece: bytearray) -> None:
        if self._at + len(piece) <= len(self._room):
            self._room.write(piece, self._at)
        self._at += len(piece)

    def views(self, left: int | None) -> list[memoryview]:
        """Memory for the next bytes, at most `left`. Raises ReadOnlyGuestRam."""
        size = _WINDOW if left is None else min(left, _WINDOW)
        views = list(self._room[self._at : self._at + size])[:_MAX_VIEWS]
        if any(view.readonly for view in views):
            raise ReadOnlyGuestRam("guest memory to be written is read-only")
        return views or [memoryview(bytearray(min(size, _PIECE)))]

    def skip(self, count: int) -> None:
        self._at += count

    def outcome(self) -> Body:
        return Body(self._at, self._at <= len(self._room))


@dataclass
class Link:
    """A connection; one request at a time. What goes wrong ends it: `reusable` says whether it can have another."""

    socket: socket.socket
    used: bool = False
    reusable: bool = False
    heard: bool = False
    """Whether anything of the response to the present request has come."""
    _cut_short: bool = False
    _buffer: bytearray = field(default_factory=bytearray)

    @classmethod
    def open(cls, endpoint: Endpoint, patience: Patience) -> Link:
        """Raises NoWay, TimeoutError, Unwanted."""
        try:
            addresses = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise NoWay from error
        failure: OSError = OSError("no address")
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            try:
                return cls(_connected(sock, address, endpoint, patience))
            except TimeoutError:
                sock.close()
                raise
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
        raise NoWay from failure

    @property
    def stale(self) -> bool:
        """Whether the service has hung up since the last request."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def send(self, head: bytes, body: GuestBuffer, patience: Patience) -> None:
        """Send a request, or as much of it as the service wants before it answers.

        Raises OSError, TimeoutError, Unwanted.
        """
        self.reusable = self.heard = self._cut_short = False
        left = [memoryview(head), *body]
        first = 0
        while first < len(left):
            sent = self._try(select.POLLOUT, self._send_some, left[first : first + _MAX_VIEWS], patience)
            if not sent:
                self._cut_short = True
                return
            while sent and sent >= len(left[first]):
                sent -= len(left[first])
                first += 1
            if sent:
                left[first] = left[first][sent:]

    def receive_head(self, patience: Patience) -> ResponseHead:
        """The head of the final response. Raises OSError, EOFError, BadResponse, TimeoutError, Unwanted."""
        while True:
            line = self._line(patience)
            matched = _STATUS_LINE.fullmatch(line)
            if matched is None:
                raise BadResponse(f"not a status line: {line[:40]!r}")
            fields: list[tuple[bytes, bytes]] = []
            while line := self._line(patience):
                found = _FIELD.fullmatch(line)
                if found is None or len(fields) == _MAX_FIELDS:
                    raise BadResponse(f"not a header: {line[:40]!r}")
                fields.append((found[1], found[2]))
            head = ResponseHead(int(matched[1]), matched[2] or b"", tuple(fields))
            if head.status >= 200:
                return head

    def receive_body(self, method: str, head: ResponseHead, room: GuestBuffer, patience: Patience) -> Body:
        """Take the body into `room`, straight from the socket. One that is known to be too long is not read.

        Raises as `receive_head` does, and ReadOnlyGuestRam.
        """
        pieces = _Room(room)
        keep = not self._cut_short and b"close" not in b",".join(head.values(b"connection")).lower()
        if method == "HEAD" or head.status in _NO_BODY:
            self.reusable = keep
            return Body(0, True)
        if any(b"chunked" in value.lower() for value in head.values(b"transfer-encoding")):
            while size := self._chunk_size(patience):
                self._take(size, pieces, patience)
                if self._line(patience):
                    raise BadResponse("a chunk is longer than it says")
            while self._line(patience):  # trailers
                pass
            self.reusable = keep
            return pieces.outcome()
        lengths = set(head.values(b"content-length"))
        if not lengths:
            self._take(None, pieces, patience)
            return pieces.outcome()
        if len(lengths) > 1 or not min(lengths).isdigit():
            raise BadResponse(f"Content-Length is {lengths}")
        length = int(min(lengths))
        if length > len(room):
            return Body(length, False)
        self._take(length, pieces, patience)
        self.reusable = keep
        return pieces.outcome()

    # -- parts

    def _take(self, size: int | None, room: _Room, patience: Patience) -> None:
        """Move `size` bytes, or all to the end, into the room."""
        left = size
        while left is None or left:
            if self._buffer:
                piece = self._buffer[:left]
                del self._buffer[: len(piece)]
                room.put(piece)
                count = len(piece)
            else:
                views = room.views(left)
                count = self._try(select.POLLIN, self._receive_some, views, patience)
                if not count:
                    if left is None:
                        return
                    raise EOFError
                room.skip(count)
            if left is not None:
                left -= count

    def _chunk_size(self, patience: Patience) -> int:
        line = self._line(patience)
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise BadResponse(f"not a chunk's size: {line[:40]!r}")
        return int(found[1], 16)

    def _line(self, patience: Patience) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise BadResponse("a line without an end")
            piece = bytearray(_PIECE)
            count = self._try(select.POLLIN, self._receive_some, [memoryview(piece)], patience)
            if not count:
                raise EOFError
            self.heard = True
            self._buffer += piece[:count]
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _try(
        self, event: int, action: Callable[[list[memoryview]], int], views: list[memoryview], patience: Patience
    ) -> int:
        """Do it as soon as the socket lets it, and not once nobody waits; 0 if an answer comes before all is sent."""
        while True:
            patience.check()
            try:
                return action(views)
            except BlockingIOError:
                ready = patience.wait(self.socket, event | select.POLLIN)
                if event == select.POLLOUT and ready == select.POLLIN:
                    # A service that answers before it has read all will not read the rest.
                    return 0
            except ssl.SSLWantReadError:
                patience.wait(self.socket, select.POLLIN)
            except ssl.SSLWantWriteError:
                patience.wait(self.socket, select.POLLOUT)

    def _send_some(self, views: list[memoryview]) -> int:
        if isinstance(self.socket, ssl.SSLSocket):
            return self.socket.send(views[0])
        return self.socket.sendmsg(views)

    def _receive_some(self, views: list[memoryview]) -> int:
        if isinstance(self.socket, ssl.SSLSocket):
            return self.socket.recv_into(views[0])
        return self.socket.recvmsg_into(views)[0]


def _connected(sock: socket.socket, address: object, endpoint: Endpoint, patience: Patience) -> socket.socket:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    number = sock.connect_ex(address)  # type: ignore[arg-type] # what getaddrinfo gave
    if number == errno.EINPROGRESS:
        patience.wait(sock, select.POLLOUT)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))
    if endpoint.tls is None:
        return sock
    secure = endpoint.tls.wrap_socket(sock, server_hostname=endpoint.host, do_handshake_on_connect=False)
    try:
        while True:
            try:
                secure.do_handshake()
                return secure
            except ssl.SSLWantReadError:
                patience.wait(secure, select.POLLIN)
            except ssl.SSLWantWriteError:
                patience.wait(secure, select.POLLOUT)
    except BaseException:
        secure.close()
        raise
