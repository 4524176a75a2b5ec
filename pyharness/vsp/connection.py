# SPDX-License-Identifier: GPL-2.0-only
"""One connection to the QEMU device: whole frames in, batches of frames out."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Iterator

from pyharness.vsp.frames import HEADER_SIZE, MAX_FDS, MAX_PAYLOAD, FrameType, Hello, ProtocolError, parse_header
from pyharness.vsp.memory import GuestMemory

_BUFFER_SIZE = 2 * (HEADER_SIZE + MAX_PAYLOAD)
_BATCH = 16
"""Frames per send: saves system calls, yet the first answers of a burst do not wait for its last request."""


class Connection:
    """Frames over a connected UNIX socket, read by one thread and written by any."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes `sock` over."""
        self._socket = sock
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._buffer = bytearray(_BUFFER_SIZE)
        self._start = 0
        self._end = 0
        self._outgoing: deque[bytes] = deque()
        self._send_lock = threading.Lock()
        self._reader: int | None = None

    def receive_hello(self) -> tuple[Hello, GuestMemory] | None:
        """Wait for the first frame and map the memory it describes; None when the device hangs up instead.

        Raises ProtocolError.
        """
        self._reader = threading.get_ident()
        fds: list[int] = []
        try:
            frame = self._next_frame(fds)
            if frame is None:
                return None
            frame_type, payload = frame
            if frame_type != FrameType.HELLO:
                raise ProtocolError(f"the first frame is {frame_type.name}, not HELLO")
            hello = Hello.parse(payload)
            if len(fds) != hello.fd_count:
                raise ProtocolError(f"HELLO announces {hello.fd_count} descriptors and carries {len(fds)}")
            return hello, GuestMemory(hello.regions, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def frames(self) -> Iterator[tuple[FrameType, memoryview]]:
        """Further frames until the device hangs up. A payload is valid until the next step. Raises ProtocolError."""
        while (frame := self._next_frame()) is not None:
            yield frame

    def _next_frame(self, fds: list[int] | None = None) -> tuple[FrameType, memoryview] | None:
        view = memoryview(self._buffer)
        while True:
            have = self._end - self._start
            if have >= HEADER_SIZE:
                frame_type, length = parse_header(view, self._start)
                size = HEADER_SIZE + length
                if have >= size:
                    payload = view[self._start + HEADER_SIZE : self._start + size]
                    self._start += size
                    return frame_type, payload
            if _BUFFER_SIZE - self._start < HEADER_SIZE + MAX_PAYLOAD or not have:
                view[:have] = view[self._start : self._end]
                self._start, self._end = 0, have
            self.flush()
            received = self._receive(view[self._end :], fds)
            if not received:
                if have:
                    raise ProtocolError(f"the device hung up {have} bytes into a frame")
                return None
            self._end += received

    def _receive(self, space: memoryview, fds: list[int] | None) -> int:
        try:
            # A bare recv also wakes for nothing each time the device has read an answer (unix_write_space in Linux).
            self._readable.poll()
            if fds is None:
                return self._socket.recv_into(space)
            int_size = array.array("i").itemsize
            room = socket.CMSG_SPACE(MAX_FDS * int_size)
            received, ancillary, flags, _ = self._socket.recvmsg_into([space], room, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            # Reset by the device or shut down by `shut`: either way there is nothing more to read.
            return 0
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.extend(array.array("i", data[: len(data) - len(data) % int_size]))
        if flags & socket.MSG_CTRUNC:
            raise ProtocolError(f"HELLO carries more than {MAX_FDS} descriptors")
        return received

    def send(self, frame: bytes) -> None:
        """Send a frame; from the reading thread it goes out with its batch, before that thread next waits."""
        self._outgoing.append(frame)
        if threading.get_ident() != self._reader or len(self._outgoing) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Send what is queued, in order, with one call for all. A frame for a device that is gone is forgotten."""
        # Whoever holds the lock looks at the queue again after letting go, so that nothing appended meanwhile stays.
        while self._outgoing and self._send_lock.acquire(blocking=False):
            try:
                batch = [self._outgoing.popleft() for _ in range(len(self._outgoing))]
                self._socket.sendall(b"".join(batch))
            except OSError:
                self._outgoing.clear()
            finally:
                self._send_lock.release()

    def finish(self) -> None:
        """Say that nothing more will be sent. The device hangs up once it has read all, which it may not on `shut`."""
        self.flush()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def shut(self) -> None:
        """End the connection from any thread; the reading thread sees the device hang up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back; only after the reading thread has ended."""
        self._socket.close()
