# SPDX-License-Identifier: GPL-2.0-only
"""The device's side of the backend protocol: a listening socket, and a memfd as guest RAM."""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import random
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from pyharness.vsp.frames import (
    HEADER_SIZE,
    Attach,
    Channel,
    FrameType,
    Hello,
    Packet,
    PacketType,
    Region,
    Request,
    pack_frame,
    parse_header,
    segments_of,
)
from pyharness.vsp.wire import Completion, Operation, RequestHeader

PAGE = 4096
INSTANCE = uuid.UUID("3f1c0e6a-5b7d-4a2e-9c11-0123456789ab")
LOW_GPA = 0
HIGH_GPA = 1 << 32


class GuestRam:
    """A sealed memfd that holds guest RAM in two regions, as QEMU lays it out around the hole below 4 GiB."""

    def __init__(self, size: int = 32 << 20, *, seed: int = 1) -> None:
        self.fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        self.map = mmap.mmap(self.fd, size)
        low = size // 2
        self.regions = (Region(LOW_GPA, low, 0, 0), Region(HIGH_GPA, size - low, low, 0))
        pages = [region.gpa + offset for region in self.regions for offset in range(0, region.size, PAGE)]
        random.Random(seed).shuffle(pages)
        self._free = pages
        self._lock = threading.Lock()

    def offset(self, gpa: int) -> int:
        region = next(r for r in self.regions if r.gpa <= gpa < r.gpa + r.size)
        return gpa - region.gpa + region.fd_offset

    @contextmanager
    def pages(self, count: int) -> Iterator[list[int]]:
        with self._lock:
            taken, self._free = self._free[:count], self._free[count:]
        assert len(taken) == count, "guest RAM is used up"
        try:
            yield taken
        finally:
            with self._lock:
                self._free.extend(taken)

    def write(self, pages: Sequence[int], start: int, data: bytes) -> None:
        for at, gpa, piece in self._pieces(pages, start, len(data)):
            self.map[self.offset(gpa) : self.offset(gpa) + piece] = data[at : at + piece]

    def read(self, pages: Sequence[int], start: int, length: int) -> bytes:
        return b"".join(
            self.map[self.offset(gpa) : self.offset(gpa) + piece]
            for _, gpa, piece in self._pieces(pages, start, length)
        )

    @staticmethod
    def _pieces(pages: Sequence[int], start: int, length: int) -> Iterator[tuple[int, int, int]]:
        done = 0
        while done < length:
            index, offset = divmod(start + done, PAGE)
            piece = min(PAGE - offset, length - done)
            yield done, pages[index] + offset, piece
            done += piece

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


class Answer(NamedTuple):
    """What came back for `DevicePeer.call`."""

    completion: Completion
    head: bytes
    data: bytes


def pages_for(length: int, offset: int = 0) -> int:
    return -(-(offset + length) // PAGE) if length else 0


class DevicePeer:
    """Listens like the device and, once a backend has attached, sends requests as the VSC would."""

    def __init__(self, path: Path, ram: GuestRam | None = None) -> None:
        self.path = path
        self.ram = ram or GuestRam()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self.socket: socket.socket | None = None
        self.waiting: dict[int, Future[Packet]] = {}
        self.received: list[Packet] = []
        self.unmatched: list[Packet] = []
        self._lock = threading.Lock()
        self._next_id = 1
        self.epoch = 1
        self._reader: threading.Thread | None = None

    # -- the connection, step by step for tests of the handshake

    def accept(self) -> socket.socket:
        self._listener.settimeout(20)
        self.socket, _ = self._listener.accept()
        while self._given_up():
            self.socket.close()
            self.socket, _ = self._listener.accept()
        self.socket.settimeout(20)
        return self.socket

    def _given_up(self) -> bool:
        """Whether the backend has closed the connection while it waited to be accepted."""
        assert self.socket is not None
        try:
            return not self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False

    def send_hello(self, hello: Hello | bytes | None = None, fds: Sequence[int] | None = None) -> None:
        hello = hello or Hello(INSTANCE, True, 1, self.ram.regions)
        payload = hello if isinstance(hello, bytes) else hello.pack()
        self.send_raw(pack_frame(FrameType.HELLO, payload), [self.ram.fd] if fds is None else fds)

    def send_raw(self, data: bytes | bytearray, fds: Sequence[int] = ()) -> None:
        assert self.socket is not None
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.socket.sendmsg([data], ancillary)
        if sent < len(data):
            self.socket.sendall(data[sent:])

    def receive(self, length: int) -> bytes:
        assert self.socket is not None
        data = b""
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def receive_frame(self) -> tuple[FrameType, bytes]:
        frame_type, length = parse_header(self.receive(HEADER_SIZE))
        return frame_type, self.receive(length)

    def backend_hung_up(self) -> bool:
        """Wait for the backend to end the connection."""
        try:
            while True:
                self.receive_frame()
        except (EOFError, ConnectionError):
            return True

    def handshake(self) -> None:
        self.accept()
        self.send_hello()
        frame_type, payload = self.receive_frame()
        assert frame_type == FrameType.ATTACH
        Attach.parse(payload)
        self.send_raw(pack_frame(FrameType.CHANNEL, Channel(True).pack()))

    # -- after the handshake

    def serve(self) -> None:
        """Do the handshake and then sort the backend's packets by transaction id, in a thread."""
        self.handshake()
        assert self.socket is not None
        self.socket.settimeout(None)
        self._reader = threading.Thread(target=self._sort, daemon=True)
        self._reader.start()

    def serve_in_background(self) -> None:
        """As `serve`, for a backend that comes when it likes."""
        threading.Thread(target=self.serve, daemon=True).start()

    def reopen(self) -> None:
        """Number requests as Linux does when it has opened the channel anew."""
        with self._lock:
            self.epoch += 1
            self._next_id = 1
            self.waiting.clear()

    def _sort(self) -> None:
        try:
            while True:
                frame_type, payload = self.receive_frame()
                assert frame_type == FrameType.PACKET
                packet = Packet.parse(payload)
                with self._lock:
                    self.received.append(packet)
                    future = self.waiting.pop(packet.transaction_id, None)
                    if future is None:
                        self.unmatched.append(packet)
                if future is not None:
                    future.set_result(packet)
        except (EOFError, OSError):
            # The device hangs up when its backend has nothing more to say.
            assert self.socket is not None
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def post(
        self,
        inline: bytes,
        segments: Sequence[tuple[int, int]],
        *,
        packet_type: int = PacketType.GPA_DIRECT,
        completion_requested: bool = True,
    ) -> Future[Packet]:
        """Send one packet of the VSC; the future is its answer."""
        future: Future[Packet] = Future()
        with self._lock:
            transaction_id = self._next_id
            self._next_id += 1
            self.waiting[transaction_id] = future
            request = Request(
                transaction_id, packet_type, completion_requested, inline, segments_of(segments), self.epoch
            )
            self.send_raw(pack_frame(FrameType.REQUEST, request.pack()))
        return future

    def call(
        self,
        head: bytes,
        data: bytes = b"",
        *,
        room: int | None = None,
        response_room: int = PAGE,
        offsets: tuple[int, int, int] = (0, 0, 0),
        timeout_ms: int = 30_000,
        timeout_s: float = 60.0,
    ) -> Answer:
        """What the driver does for one ioctl; `offsets` are those of the buffers in their first pages."""
        room = len(data) if room is None else room
        counts = [
            pages_for(length, offset) for length, offset in zip((room, len(head), response_room), offsets, strict=True)
        ]
        with self.ram.pages(sum(counts)) as pages:
            data_at = offsets[0]
            head_at = counts[0] * PAGE + offsets[1]
            response_at = (counts[0] + counts[1]) * PAGE + offsets[2]
            self.ram.write(pages, data_at, data)
            self.ram.write(pages, head_at, head)
            header = RequestHeader(
                0,
                timeout_ms,
                data_at,
                room,
                len(data),
                Operation.USER_REQUEST,
                head_at,
                len(head),
                response_at,
                response_room,
                uuid.uuid4().bytes_le,
            )
            packet = self.post(header.pack(), [(page, PAGE) for page in pages]).result(timeout_s)
            assert packet.packet_type == PacketType.COMPLETION
            assert packet.epoch == self.epoch
            completion = Completion.parse(packet.payload)
            return Answer(
                completion,
                self.ram.read(pages, response_at, completion.response_len),
                self.ram.read(pages, data_at, room),
            )

    def hang_up(self) -> None:
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            if self._reader is not None:
                self._reader.join(20)
                self._reader = None
            self.socket.close()
            self.socket = None

    def close(self) -> None:
        self.hang_up()
        self._listener.close()
        self.path.unlink(missing_ok=True)
        self.ram.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
