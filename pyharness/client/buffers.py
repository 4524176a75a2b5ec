# SPDX-License-Identifier: GPL-2.0-only
"""Page-aligned memory for requests, kept for reuse: a fresh mapping costs a page fault per page."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def pages_touched(address: int, length: int) -> int:
    """How many pages a buffer counts as for the driver's limit."""
    if length == 0:
        return 0
    return (address + length - 1) // mmap.PAGESIZE - address // mmap.PAGESIZE + 1


def whole_pages(length: int) -> int:
    """The bytes of the pages that so many bytes take up from a page boundary on."""
    return -(-length // mmap.PAGESIZE) * mmap.PAGESIZE


class Buffer:
    """Private anonymous memory, page-aligned; `size` is rounded up to whole pages."""

    def __init__(self, size: int) -> None:
        self.size = whole_pages(max(1, size))
        self._mapping = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._mapping)
        # The address stays right for as long as the mapping lives, so the ctypes object need not be kept.
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))

    def __len__(self) -> int:
        return self.size

    def close(self) -> None:
        """Unmap; slices of `view` that are still held keep the memory."""
        self.view.release()
        try:
            self._mapping.close()
        except BufferError:
            return


class BufferPool:
    """Buffers by power-of-two size, shared by threads."""

    def __init__(self, keep_bytes: int = 128 << 20) -> None:
        """At most `keep_bytes` of unused buffers are kept."""
        self._keep_bytes = keep_bytes
        self._kept_bytes = 0
        self._free: dict[int, list[Buffer]] = {}
        self._lock = threading.Lock()

    def take(self, size: int) -> Buffer:
        """A buffer of at least `size` bytes; its content is whatever it was."""
        rounded = max(mmap.PAGESIZE, 1 << (size - 1).bit_length() if size else 0)
        with self._lock:
            free = self._free.get(rounded)
            if free:
                self._kept_bytes -= rounded
                return free.pop()
        return Buffer(rounded)

    def give(self, buffer: Buffer) -> None:
        """Return a buffer that came from `take`."""
        with self._lock:
            if self._kept_bytes + buffer.size <= self._keep_bytes:
                self._kept_bytes += buffer.size
                self._free.setdefault(buffer.size, []).append(buffer)
                return
        buffer.close()

    @contextmanager
    def borrow(self, size: int) -> Iterator[Buffer]:
        """`take` for a block."""
        buffer = self.take(size)
        try:
            yield buffer
        finally:
            self.give(buffer)

    def close(self) -> None:
        """Unmap what is kept."""
        with self._lock:
            for free in self._free.values():
                for buffer in free:
                    buffer.close()
            self._free.clear()
            self._kept_bytes = 0
