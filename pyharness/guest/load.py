# SPDX-License-Identifier: GPL-2.0-only
"""Processes in the guest that make requests and look closely at what they get, for a host that does anything.

Each request has a serial number, from which guest and host make what it carries: `Order`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pickle
import signal
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pyharness.client.abi import AZURE_BLOB_IOCTL, AzBlobRequestSync

PAGE = mmap.PAGESIZE
RESPONSE_LEN = 64
_SIZES = (0, 1, 100, PAGE, PAGE + 1, 3 * PAGE, 20_000)
_ORDER = struct.Struct("<8sQ")
_MAGIC = b"a serial"
ORDER_SIZE = _ORDER.size
_GUARD = 0xA5
_REOPEN_S = 60.0
_POLL_S = 0.01

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def pattern(serial: int, what: int, length: int) -> bytes:
    """`length` bytes for one buffer of one request (0 upload, 1 download, 2 response)."""
    unit = struct.pack("<QQ", serial * 3 + what, ~serial & (2**64 - 1))
    return (unit * (length // len(unit) + 1))[:length]


class Order(NamedTuple):
    """What a request carries: bytes up and bytes down."""

    serial: int

    @property
    def out_len(self) -> int:
        """Bytes of the upload."""
        return _SIZES[self.serial % len(_SIZES)]

    @property
    def in_len(self) -> int:
        """Bytes of the download."""
        return _SIZES[self.serial // len(_SIZES) % len(_SIZES)]

    def pack(self) -> bytes:
        """The request."""
        return _ORDER.pack(_MAGIC, self.serial)


class Outcome(NamedTuple):
    """What became of a request."""

    serial: int
    error: int
    status: int
    response_len: int
    right: bool
    """Data and response are what an honest answer brings."""
    damaged: str
    """What changed that nobody may change."""


class _Room:
    """A buffer with guards, at another offset in its page for each request."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 9 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def lay_out(self, offset: int, content: bytes) -> int:
        self._start, self._end = PAGE + offset, PAGE + offset + len(content)
        guard = bytes([_GUARD]) * 64
        self._map[self._start - 64 : self._end + 64] = guard + content + guard
        return self._base + self._start

    def content(self) -> bytes:
        return self._map[self._start : self._end]

    def intact(self) -> bool:
        guard = bytes([_GUARD]) * 64
        before, after = self._map[self._start - 64 : self._start], self._map[self._end : self._end + 64]
        return before == guard == after


class _Client:
    """Makes requests, in a process of its own."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._file = -1
        self._open()
        self._rooms = _Room(), _Room(), _Room()

    def _open(self) -> None:
        """A device that is gone comes back under any name."""
        if self._file >= 0:
            os.close(self._file)
        deadline = time.monotonic() + _REOPEN_S
        while True:
            for entry in Path("/sys/class/misc").glob("azure_blob*"):
                try:
                    if (entry / "device").resolve().name == self._device:
                        self._file = os.open(f"/dev/{entry.name}", os.O_RDWR)
                        return
                except OSError:
                    continue  # it goes while it is looked at
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._device} does not come back")
            time.sleep(_POLL_S)

    def request(self, serial: int) -> Outcome:
        order = Order(serial)
        upload = pattern(serial, 0, order.out_len)
        before = upload.ljust(max(order.out_len, order.in_len), b"\xee")
        data, request, response = self._rooms
        offset = serial * 509 % PAGE
        sync = AzBlobRequestSync(
            request_len=ORDER_SIZE,
            response_len=RESPONSE_LEN,
            data_len=len(before),
            data_valid=len(upload),
            request_buffer=request.lay_out(offset, order.pack()),
            response_buffer=response.lay_out(PAGE - 1 - offset, bytes(RESPONSE_LEN)),
            data_buffer=data.lay_out(offset // 2, before),
        )
        struct.pack_into("<Q", sync.guid, 0, serial)
        error = 0
        if _libc.ioctl(self._file, AZURE_BLOB_IOCTL, ctypes.addressof(sync)):
            error = ctypes.get_errno()
        right = (
            response.content() == pattern(serial, 2, RESPONSE_LEN)
            and data.content() == pattern(serial, 1, order.in_len) + before[order.in_len :]
        )
        damaged = "" if all(room.intact() for room in self._rooms) else "bytes beside a buffer"
        if request.content() != order.pack():
            damaged = "the request"
        outcome = Outcome(serial, error, sync.response.status, sync.response.response_len, right, damaged)
        if error == errno.ENODEV:
            self._open()
        return outcome


class _Worker:
    """The process of a client, and the pipes to it."""

    def __init__(self, device: str, others: Sequence[_Worker]) -> None:
        self.killed = False
        asked, self._ask = os.pipe()
        self._told, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                for other in others:
                    other.hang_up()
                os.close(self._ask)
                os.close(self._told)
                _work(_Client(device), asked, tell)
                code = 0
            finally:
                os._exit(code)
        os.close(asked)
        os.close(tell)
        _read(self._told, 1)  # it has opened the device

    def ask(self, first: int, count: int) -> None:
        os.write(self._ask, struct.pack("<QQ", first, count))

    def answer(self) -> list[Outcome] | None:
        """None when it has been killed."""
        size = _read(self._told, 8)
        content = _read(self._told, struct.unpack("<Q", size)[0]) if size else b""
        outcomes: list[Outcome] | None = pickle.loads(content) if content else None
        return outcomes

    def kill(self) -> None:
        self.killed = True
        os.kill(self.pid, signal.SIGKILL)

    def hang_up(self) -> None:
        os.close(self._ask)
        os.close(self._told)

    def end(self) -> int:
        """Its wait status."""
        self.hang_up()
        return os.waitpid(self.pid, 0)[1]


def _read(file: int, size: int) -> bytes:
    """All of it, or nothing when the other side is gone."""
    content = b""
    while len(content) < size:
        piece = os.read(file, size - len(content))
        if not piece:
            return b""
        content += piece
    return content


def _work(client: _Client, asked: int, tell: int) -> None:
    os.write(tell, b"x")
    while question := _read(asked, 16):
        first, count = struct.unpack("<QQ", question)
        answer = pickle.dumps([client.request(serial) for serial in range(first, first + count)])
        content = memoryview(struct.pack("<Q", len(answer)) + answer)
        while content:
            content = content[os.write(tell, content) :]


class Load:
    """Some processes that make requests when told to."""

    def __init__(self, device: str, processes: int) -> None:
        """`device` is its name on VMBus."""
        self._device = device
        self._workers: list[_Worker] = []
        for _ in range(processes):
            self._workers.append(_Worker(device, self._workers))

    def run(self, first: int, count: int) -> bytes:
        """Have each process make `count` requests, with serials from `first` on; the outcomes, pickled.

        Those of a process that is killed meanwhile are missing.
        """
        for index, worker in enumerate(self._workers):
            worker.ask(first + index * count, count)
        answers = [worker.answer() or [] for worker in self._workers]
        return pickle.dumps([tuple(outcome) for answer in answers for outcome in answer])

    def kill(self, index: int) -> None:
        """Kill one of them, wherever it is."""
        self._workers[index].kill()

    def replace_killed(self) -> None:
        """Start others for those that were killed; to be called before the next run."""
        for index, worker in enumerate(self._workers):
            if worker.killed:
                worker.end()
                others = [other for other in self._workers if other is not worker]
                self._workers[index] = _Worker(self._device, others)

    def close(self) -> None:
        """End them all. Raises ChildProcessError for one that failed."""
        for worker in self._workers:
            if status := worker.end():
                raise ChildProcessError(f"a process of the load ended with wait status {status:#x}")
