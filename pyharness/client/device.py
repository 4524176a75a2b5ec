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
from pyharness.client.buffers import Buffer, BufferPool, pages_touched
from pyharness.client.errors import device_error, host_error

DEFAULT_PATH = "/dev/azure_blob"
DEFAULT_TIMEOUT_MS = 30_000

Writable = Buffer | bytearray | mmap.mmap | memoryview
Readable = bytes | Writable

_EMPTY = memoryview(bytearray())
_Guid = ctypes.c_uint8 * 16


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
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    @classmethod
    def of(cls, fd: int) -> BlobDevice:
        """The device behind a descriptor that is open already, which this takes over."""
        device = cls.__new__(cls)
        device.path, device.pool, device._fd = f"descriptor {fd}", BufferPool(), fd
        return device

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Close the node and let go of the kept buffers. Requests in progress in other threads go on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
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
        data_address = _address(target)
        if sent and sent is not target and (sent.readonly or _address(sent) != data_address):
            target[: len(sent)] = sent
        request = as_view(head)
        # Head and response share one borrowed buffer, each from a page boundary on: no page is pinned twice.
        response_at = -(-len(request) // mmap.PAGESIZE) * mmap.PAGESIZE
        messages = self.pool.take(response_at + response_size)
        try:
            messages.view[: len(request)] = request
            sync = AzBlobRequestSync(
                # Not uuid4(), which takes as long as all the rest of this method.
                guid=_Guid.from_buffer_copy(guid.bytes_le if guid else os.urandom(16)),
                timeout=timeout_ms,
                request_len=len(request),
                response_len=response_size,
                data_len=len(target),
                data_valid=len(sent),
                request_buffer=messages.address,
                response_buffer=messages.address + response_at,
                data_buffer=data_address,
            )
            self.submit(sync)
            answer = sync.response
            end = response_at + answer.response_len
            return Response(answer.status, messages.view[response_at:end].tobytes())
        finally:
            self.pool.give(messages)
            if borrowed is not None:
                target.release()
                self.pool.give(borrowed)


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


def _address(target: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(target)) if len(target) else 0
