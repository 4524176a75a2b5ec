# SPDX-License-Identifier: GPL-2.0-only
"""Guest RAM, mapped into this process and read and written in place."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import NamedTuple

from pyharness.errors import HarnessError
from pyharness.vsp.frames import ProtocolError, Region

BytesLike = bytes | bytearray | memoryview | mmap.mmap


class OutsideGuestRam(HarnessError):
    """A segment names guest-physical addresses where there is no RAM."""


class ReadOnlyGuestRam(HarnessError):
    """A write to guest memory that is mapped read-only (ROM)."""


class GuestBuffer:
    """A scatter list over guest RAM that reads like one run of bytes. Nothing is copied until `read` or `write`."""

    __slots__ = ("_ends", "_length", "_views")

    def __init__(self, views: Sequence[memoryview] = (), length: int | None = None) -> None:
        """`length` in bytes saves the counting, for who knows it."""
        self._views = views
        self._length = sum(map(len, views)) if length is None else length
        self._ends: list[int] | None = None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[memoryview]:
        """The pieces in order, for `sendmsg`, `readinto` and the like."""
        return iter(self._views)

    def __getitem__(self, part: slice) -> GuestBuffer:
        """A sub-range (step 1 only), over the same memory."""
        start, stop, step = part.indices(self._length)
        if step != 1:
            raise ValueError("a guest buffer is sliced with step 1 only")
        if start == 0 and stop == self._length:
            return self
        return self.part(start, stop - start)

    def part(self, start: int, length: int) -> GuestBuffer:
        """So many bytes from `start` on, which lie inside."""
        if length <= 0:
            return GuestBuffer()
        stop = start + length
        ends = self._ends
        if ends is None:
            ends = self._ends = list(accumulate(map(len, self._views)))
        first = bisect_right(ends, start)
        view = self._views[first]
        begin = ends[first] - len(view)
        if stop <= ends[first]:
            return GuestBuffer((view[start - begin : stop - begin],), length)
        last = bisect_left(ends, stop)
        end = self._views[last]
        views = (view[start - begin :], *self._views[first + 1 : last], end[: stop - ends[last] + len(end)])
        return GuestBuffer(views, length)

    def read(self) -> bytes:
        """A copy of all bytes."""
        return b"".join(self._views)

    def write(self, data: BytesLike, offset: int = 0) -> int:
        """Copy `data` into guest memory at `offset`; returns the number of bytes.

        Raises ValueError when it does not fit (nothing is written then) and ReadOnlyGuestRam.
        """
        source = memoryview(data).cast("B")
        if offset < 0 or offset + len(source) > self._length:
            raise ValueError(f"{len(source)} bytes at {offset} do not fit into a guest buffer of {self._length}")
        views = self._views if offset == 0 else self.part(offset, self._length - offset)._views
        done, total = 0, len(source)
        try:
            for view in views:
                size = min(len(view), total - done)
                view[:size] = source[done : done + size]
                done += size
                if done == total:
                    break
        except TypeError:
            raise ReadOnlyGuestRam("guest memory to be written is read-only") from None
        return done

    def hexdigest(self, algorithm: str = "sha256") -> str:
        """Hash of all bytes, read in place."""
        digest = hashlib.new(algorithm)
        for view in self._views:
            digest.update(view)
        return digest.hexdigest()


class _Mapped(NamedTuple):
    start: int
    end: int
    view: memoryview


_KEPT = 128
_KEPT_PAGES = 2048
"""Callers use the same pages over and over. Longer lists are not remembered: each page takes 250 bytes here."""

_NOWHERE = memoryview(b"")
_FLUSH = ((-1, 0),)


class GuestMemory:
    """The guest-physical address map that a HELLO frame describes."""

    def __init__(self, regions: Iterable[Region], fds: Sequence[int]) -> None:
        """Map `regions`. The caller keeps `fds` and may close them at once. Raises ProtocolError."""
        self._mappings: list[mmap.mmap] = []
        self._regions: list[_Mapped] = []
        self._remember = lru_cache(_KEPT)(self._translate)
        regions = sorted(regions)
        try:
            views = [self._map(index, fd, regions) for index, fd in enumerate(fds)]
            for region in regions:
                view = views[region.fd_index][region.fd_offset : region.fd_offset + region.size]
                if region.read_only:
                    view = view.toreadonly()
                self._regions.append(_Mapped(region.gpa, region.gpa + region.size, view))
        except BaseException:
            self.close()
            raise
        self._starts = [mapped.start for mapped in self._regions]

    def _map(self, index: int, fd: int, regions: Sequence[Region]) -> memoryview:
        used = [region for region in regions if region.fd_index == index]
        if not used:
            return memoryview(b"")
        size = max(region.fd_offset + region.size for region in used)
        if os.fstat(fd).st_size < size:
            raise ProtocolError(f"descriptor {index} has {os.fstat(fd).st_size} bytes, its regions need {size}")
        _forbid_shrinking(index, fd)
        protection = mmap.PROT_READ
        if not all(region.read_only for region in used):
            protection |= mmap.PROT_WRITE
        try:
            mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=protection)
        except (OSError, ValueError, OverflowError) as error:
            raise ProtocolError(f"descriptor {index} cannot be mapped: {error}") from error
        self._mappings.append(mapping)
        return memoryview(mapping)

    def translate(self, segments: tuple[int, ...]) -> GuestBuffer:
        """The memory that (gpa, length) pairs, laid out flat, name, adjacent segments merged.

        Raises OutsideGuestRam unless every byte is guest RAM.
        """
        return self._remember(segments) if len(segments) <= 2 * _KEPT_PAGES else self._translate(segments)

    def _translate(self, segments: tuple[int, ...]) -> GuestBuffer:
        views: list[memoryview] = []
        low = high = 0
        memory = _NOWHERE
        values = iter(segments)
        total = start = end = 0
        # The empty segment at the end flushes the last run of adjacent ones.
        for gpa, length in chain(zip(values, values, strict=True), _FLUSH):
            if gpa == end:
                end += length
                continue
            total += end - start
            while start < end:
                # Most segments lie in the same region as the one before: this loop runs once per page of a request.
                if not low <= start < high:
                    low, high, memory = self._region(start)
                stop = end if end < high else high
                views.append(memory[start - low : stop - low])
                start = stop
            start, end = gpa, gpa + length
        return GuestBuffer(views, total)

    def _region(self, gpa: int) -> _Mapped:
        index = bisect_right(self._starts, gpa) - 1
        if index < 0 or gpa >= self._regions[index].end:
            raise OutsideGuestRam(f"guest-physical address {gpa:#x} is not RAM")
        return self._regions[index]

    def close(self) -> None:
        """Unmap. A request that is still held keeps the memory mapped until it is let go."""
        self._remember.cache_clear()
        for mapped in self._regions:
            mapped.view.release()
        self._regions.clear()
        self._starts = []
        for mapping in self._mappings:
            try:
                mapping.close()
            except BufferError:
                continue
        self._mappings.clear()


def _forbid_shrinking(index: int, fd: int) -> None:
    """A file that shrinks under a mapping turns an access into SIGBUS, which would kill this process."""
    try:
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError as error:
        raise ProtocolError(f"descriptor {index} is not a memfd that can be sealed against shrinking") from error
