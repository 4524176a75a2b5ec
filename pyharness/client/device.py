# SPDX-License-Identifier: GPL-2.0-only
"""Requests through /dev/azure_blob."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import uuid
from types import TracebackType
from typing import NamedTuple

from pyharness.client.abi import AZURE_BLOB_IOCTL, MAX_PAGES, AzBlobRequestSync
from pyharness.client.buffers import Buffer, BufferPool, pages_touched, whole_pages
from pyharness.client.errors import device_error, host_error

DEFAULT_PATH = "/dev/azure_blob"
DEFAULT_TIMEOUT_MS = 30_000

Writable = Buffer | bytearray | mmap.mmap | memoryview
Readable = bytes | Writable

_EMPTY = memoryview(bytearray())
_GUID_BYTES = 16
_Guid = ctypes.c_char * _GUID_BYTES
_USUAL_ROOM = 16 * mmap.PAGESIZE
"""Bytes for head and response, of which only what a request uses is ever touched."""


class Response(NamedTuple):
    """The host's answer. `status` is the host's own, zero for success; `head` is what it wrote as the response."""

    status: int
    head: bytes

    def check(self) -> Response:
        """Return itself. Raises HostError when the status is not zero."""
        if self.status:
            raise host_error(self.status)
        return self


class BlobDevice:
    """An open node. Threads may share it; each request has buffers of its own."""

    def __init__(self, path: str | os.PathLike[str] = DEFAULT_PATH, *, pool: BufferPool | None = None) -> None:
        """Raises OSError when the node cannot be opened."""
        self.path = os.fspath(path)
        self.pool = pool or BufferPool()
        self._idle: list[PreparedRequest] = []
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    @classmethod
    def of(cls, fd: int) -> BlobDevice:
        """The device behind a descriptor that is open already, which this takes over."""
        device = cls.__new__(cls)
        device.path, device.pool, device._idle, device._fd = f"descriptor {fd}", BufferPool(), [], fd
        return device

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Close the node and let go of the kept buffers. Requests in progress in other threads go on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._idle.clear()
        self.pool.close()

    def __enter__(self) -> BlobDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, sync: AzBlobRequestSync) -> None:
        """The bare ioctl: the caller fills the struct and keeps the buffers alive.

        Raises DeviceError, and ValueError once closed.
        """
        try:
            # With a mutable argument (True) the interpreter lets other threads run meanwhile.
            fcntl.ioctl(self._fd, AZURE_BLOB_IOCTL, sync, True)
        except OSError as error:
            raise device_error(error.errno or 0, self.path, too_many_pages=_pages_of(sync) > MAX_PAGES) from None

    def request(
        self,
        head: Readable,
        *,
        data_out: Readable | None = None,
        data_in: Writable | None = None,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
        response_size: int = mmap.PAGESIZE,
        guid: uuid.UUID | None = None,
    ) -> Response:
        """Send `head` and the data, and wait for the answer.

        There is one data buffer on the wire. With `data_in` it is that memory, used in place, and `data_out` is put at
        its start unless it lies there already. With `data_out` alone it is that memory when it is writable (the host
        may write there), else a copy. `timeout_ms` 0 leaves the limit to the host.

        Raises DeviceError, and ValueError when `data_out` does not fit; a host status is no exception.
        """
        data, valid, borrowed = self._data(data_out, data_in)
        request = head if isinstance(head, bytes) else as_view(head)
        room = whole_pages(len(request)) + response_size
        try:
            prepared = self._idle.pop() if room <= _USUAL_ROOM else PreparedRequest(self, room)
        except IndexError:
            prepared = PreparedRequest(self, _USUAL_ROOM)
        try:
            prepared.lay_out(request, data, valid, timeout_ms, response_size)
            return prepared.send(guid)
        finally:
            if room <= _USUAL_ROOM:
                self._idle.append(prepared)
            if borrowed is not None:
                data.release()
                self.pool.give(borrowed)

    def prepare(
        self,
        head: Readable,
        data: Writable | None = None,
        *,
        valid: int = 0,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
        response_size: int = mmap.PAGESIZE,
    ) -> PreparedRequest:
        """A request that sends `valid` bytes of `data` and has the answer put there, as often as wanted.

        Raises ValueError when `data` has fewer bytes.
        """
        room = as_view(data) if data is not None else _EMPTY
        if valid > len(room):
            raise ValueError(f"{valid} bytes to send in a data buffer of {len(room)}")
        request = as_view(head)
        prepared = PreparedRequest(self, whole_pages(len(request)) + response_size)
        prepared.lay_out(request, room, valid, timeout_ms, response_size)
        prepared.data = room
        return prepared

    def _data(self, data_out: Readable | None, data_in: Writable | None) -> tuple[memoryview, int, Buffer | None]:
        """The data buffer, with what is sent at its start; how much that is; where it is borrowed from the pool."""
        sent = as_view(data_out) if data_out is not None else _EMPTY
        borrowed = None
        if data_in is not None:
            target = as_view(data_in)
        elif sent.readonly and len(sent):
            borrowed = self.pool.take(len(sent))
            target = borrowed.view[: len(sent)]
        else:
            target = sent
        if len(sent) > len(target):
            raise ValueError(f"{len(sent)} bytes to send in a data buffer of {len(target)}")
        if len(sent) and sent is not target and (sent.readonly or address_of(sent) != address_of(target)):
            target[: len(sent)] = sent
        return target, len(sent), borrowed


class PreparedRequest:
    """A request that is laid out in memory and can be sent again and again, by one thread at a time."""

    __slots__ = ("_answer", "_buffer", "_device", "_guid", "_response_at", "_sync", "data")

    def __init__(self, device: BlobDevice, room: int) -> None:
        """With so many bytes for head and response. See `BlobDevice.prepare`."""
        self.data = _EMPTY
        """Keeps the memory of the data buffer, unless who sends does so."""
        self._device = device
        self._buffer = Buffer(room)
        self._response_at = 0
        self._sync = AzBlobRequestSync()
        self._answer = self._sync.response
        self._guid = _Guid.from_buffer(self._sync, vars(AzBlobRequestSync)["guid"].offset)

    def lay_out(
        self, head: bytes | memoryview, data: memoryview, valid: int, timeout_ms: int, response_size: int
    ) -> None:
        """Make it another request, of whose `data` so many bytes are sent. Head and response must fit."""
        self._buffer.view[: len(head)] = head
        # The response begins at a page boundary: no page is pinned twice.
        self._response_at = response_at = whole_pages(len(head))
        sync, address = self._sync, self._buffer.address
        sync.timeout = timeout_ms
        sync.request_len = len(head)
        sync.response_len = response_size
        sync.data_len = len(data)
        sync.data_valid = valid
        sync.request_buffer = address
        sync.response_buffer = address + response_at
        sync.data_buffer = address_of(data)

    def send(self, guid: uuid.UUID | None = None) -> Response:
        """Send it and wait for the answer. Raises DeviceError, and ValueError once the device is closed."""
        # Not uuid4(), which takes as long as all the rest.
        self._guid.raw = guid.bytes_le if guid else os.urandom(_GUID_BYTES)
        self._device.submit(self._sync)
        answer, start = self._answer, self._response_at
        return Response(answer.status, self._buffer.view[start : start + answer.response_len].tobytes())


def max_data(head_size: int, response_size: int = mmap.PAGESIZE) -> int:
    """The largest data buffer, in bytes, that a request can have beside a head and a response of these sizes.

    It holds for data that begin at a page boundary, as those of a `Buffer` do.
    """
    return (MAX_PAGES - pages_touched(0, head_size) - pages_touched(0, response_size)) * mmap.PAGESIZE


def _pages_of(sync: AzBlobRequestSync) -> int:
    return (
        pages_touched(sync.request_buffer, sync.request_len)
        + pages_touched(sync.response_buffer, sync.response_len)
        + pages_touched(sync.data_buffer, sync.data_len)
    )


def as_view(data: Readable) -> memoryview:
    """The bytes of any buffer, in place."""
    return data.view if isinstance(data, Buffer) else memoryview(data).cast("B")


def address_of(target: memoryview) -> int:
    """Where writable memory lies, for as long as something keeps it."""
    return ctypes.addressof(ctypes.c_char.from_buffer(target)) if len(target) else 0
