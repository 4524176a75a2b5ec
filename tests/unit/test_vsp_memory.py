# SPDX-License-Identifier: GPL-2.0-only
"""Guest RAM mapped from real memfds: what is translated, what is refused, that nothing is copied."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyharness.vsp.frames import ProtocolError, Region, segments_of
from pyharness.vsp.memory import GuestBuffer, GuestMemory, OutsideGuestRam, ReadOnlyGuestRam

PAGE = 4096
LOW = Region(0, 16 * PAGE, 0, 0)
NEXT = Region(16 * PAGE, 16 * PAGE, 32 * PAGE, 0)
HIGH = Region(1 << 32, 16 * PAGE, 16 * PAGE, 0)
ROM = Region((1 << 32) + 16 * PAGE, PAGE, 48 * PAGE, 0, True)
TOP = Region(2**64 - PAGE, PAGE, 0, 1)
SIZE = 49 * PAGE


def memfd(size: int) -> int:
    fd = os.memfd_create("ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    return fd


@pytest.fixture
def fds() -> Iterator[list[int]]:
    opened = [memfd(SIZE), memfd(PAGE)]
    yield opened
    for fd in opened:
        os.close(fd)


@pytest.fixture
def ram(fds: list[int]) -> Iterator[mmap.mmap]:
    with mmap.mmap(fds[0], SIZE) as mapping:
        mapping[:] = random.Random(3).randbytes(SIZE)
        yield mapping


@pytest.fixture
def memory(fds: list[int], ram: mmap.mmap) -> Iterator[GuestMemory]:
    mapped = GuestMemory((HIGH, TOP, ROM, LOW, NEXT), fds)
    yield mapped
    mapped.close()


def test_translation_reads_guest_ram_in_segment_order(memory: GuestMemory, ram: mmap.mmap) -> None:
    buffer = memory.translate(segments_of([(HIGH.gpa + 5, 7), (3 * PAGE, PAGE), (0, 1)]))
    want = ram[16 * PAGE + 5 : 16 * PAGE + 12] + ram[3 * PAGE : 4 * PAGE] + ram[:1]
    assert buffer.read() == want
    assert len(buffer) == len(want)
    assert buffer.hexdigest() == hashlib.sha256(want).hexdigest()
    assert b"".join(buffer) == want


def test_adjacent_segments_merge(memory: GuestMemory) -> None:
    pages = [(page * PAGE, PAGE) for page in range(4)]
    assert len(list(memory.translate(segments_of(pages)))) == 1
    assert len(list(memory.translate(segments_of(pages[::-1])))) == 4


def test_segment_across_adjacent_regions(memory: GuestMemory, ram: mmap.mmap) -> None:
    buffer = memory.translate((15 * PAGE, 2 * PAGE))
    assert buffer.read() == ram[15 * PAGE : 16 * PAGE] + ram[32 * PAGE : 33 * PAGE]


def test_empty_segments_name_nothing(memory: GuestMemory) -> None:
    assert len(memory.translate(())) == 0
    assert memory.translate((0, 0, PAGE, 3, 12345678901234, 0)).read() == memory.translate((PAGE, 3)).read()


@pytest.mark.parametrize(
    "segment",
    [
        (32 * PAGE, 1),
        (32 * PAGE - 1, 2),
        (HIGH.gpa - 1, 1),
        (HIGH.gpa - 1, 2),
        (ROM.gpa, PAGE + 1),
        (0, 2**64 - 1),
        (2**64 - PAGE - 1, 1),
        (2**64 - 1, 2),
        (2**64 - 1, 2**64 - 1),
        (PAGE, 2**64 - PAGE),
    ],
)
def test_outside_of_ram(memory: GuestMemory, segment: tuple[int, int]) -> None:
    with pytest.raises(OutsideGuestRam):
        memory.translate((0, PAGE, *segment))


def test_last_page_of_the_address_space(memory: GuestMemory) -> None:
    buffer = memory.translate((2**64 - PAGE, PAGE))
    assert buffer.write(b"top") == 3
    assert buffer.read()[:3] == b"top"


def test_writes_are_seen_in_guest_ram_at_once(memory: GuestMemory, ram: mmap.mmap) -> None:
    buffer = memory.translate(segments_of([(5 * PAGE + 10, 3), (PAGE, 5), (HIGH.gpa, 4)]))
    assert buffer.write(b"abcdefghijkl") == 12
    assert ram[5 * PAGE + 10 : 5 * PAGE + 13] == b"abc"
    assert ram[PAGE : PAGE + 5] == b"defgh"
    assert ram[16 * PAGE : 16 * PAGE + 4] == b"ijkl"
    ram[PAGE] = ord("X")
    assert buffer.read() == b"abcXefghijkl"


def test_write_that_does_not_fit_writes_nothing(memory: GuestMemory, ram: mmap.mmap) -> None:
    before = ram[:]
    buffer = memory.translate((0, 10, PAGE, 10))
    for data, offset in ((bytes(21), 0), (bytes(1), 20), (bytes(1), -1), (bytes(20), 1)):
        with pytest.raises(ValueError, match="do not fit"):
            buffer.write(data, offset)
    assert ram[:] == before
    assert buffer.write(b"", 20) == 0


def test_rom_is_read_and_not_written(memory: GuestMemory, ram: mmap.mmap) -> None:
    before = ram[:]
    buffer = memory.translate((ROM.gpa, PAGE))
    assert buffer.read() == ram[48 * PAGE :]
    with pytest.raises(ReadOnlyGuestRam):
        buffer.write(b"x")
    assert ram[:] == before


def test_slices_against_plain_bytes(memory: GuestMemory) -> None:
    """Any slice, read or written, does to the buffer what it does to a bytearray."""
    rng = random.Random(5)
    for _ in range(300):
        pairs = [(rng.randrange(15 * PAGE), rng.choice((1, 2, 3, 50, PAGE))) for _ in range(rng.randint(1, 8))]
        buffer = memory.translate(segments_of(pairs))
        plain = buffer.read()
        for _ in range(10):
            start, stop = (rng.choice((None, rng.randint(-len(plain) - 2, len(plain) + 2))) for _ in range(2))
            part = buffer[start:stop]
            assert part.read() == plain[start:stop]
            assert len(part) == len(plain[start:stop])
            inner = rng.randint(0, len(part))
            assert part[inner:][:9].read() == plain[start:stop][inner:][:9]


def test_slice_step_is_refused(memory: GuestMemory) -> None:
    with pytest.raises(ValueError, match="step"):
        memory.translate((0, 10))[::2]


def test_write_at_every_offset_across_pieces(memory: GuestMemory) -> None:
    buffer = memory.translate(segments_of([(page * PAGE, 3) for page in (7, 2, 9, 4)]))
    for offset in range(12):
        for length in range(12 - offset + 1):
            buffer.write(bytes(12))
            buffer.write(b"\xff" * length, offset)
            assert buffer.read() == bytes(offset) + b"\xff" * length + bytes(12 - offset - length)


def test_nothing_is_copied_until_read(memory: GuestMemory, ram: mmap.mmap) -> None:
    buffer = memory.translate((0, 16 * PAGE))
    part = buffer[PAGE : PAGE + 4]
    ram[PAGE : PAGE + 4] = b"late"
    assert part.read() == b"late"


def mapped() -> int:
    return sum("memfd:ram" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_translation_is_remembered_unless_it_is_long(memory: GuestMemory) -> None:
    few, many = (0, PAGE, 3 * PAGE, PAGE), (0, PAGE, 3 * PAGE, PAGE) * 2000
    assert memory.translate(few) is memory.translate(few)
    assert memory.translate(many) is not memory.translate(many)


def test_what_is_remembered_keeps_no_memory_mapped(fds: list[int]) -> None:
    before = mapped()
    memory = GuestMemory((LOW,), fds[:1])
    memory.translate((0, PAGE))
    memory.close()
    assert mapped() == before


def test_memory_is_unmapped_when_the_last_request_lets_go(fds: list[int]) -> None:
    before = mapped()
    memory = GuestMemory((LOW,), fds[:1])
    held = memory.translate((0, PAGE))
    memory.close()
    assert mapped() == before + 1
    held.write(b"still here")
    del held
    gc.collect()
    assert mapped() == before


def test_closed_memory_translates_nothing(fds: list[int]) -> None:
    memory = GuestMemory((LOW,), fds[:1])
    memory.close()
    with pytest.raises(OutsideGuestRam):
        memory.translate((0, 1))


def test_descriptor_too_small() -> None:
    fd = memfd(PAGE)
    try:
        with pytest.raises(ProtocolError, match=r"has 4096 bytes, its regions need 8192"):
            GuestMemory((Region(0, 2 * PAGE, 0, 0),), [fd])
        with pytest.raises(ProtocolError, match="need"):
            GuestMemory((Region(0, PAGE, 2**63, 0),), [fd])
    finally:
        os.close(fd)


def test_descriptor_is_sealed_so_that_it_cannot_shrink() -> None:
    fd = memfd(PAGE)
    try:
        GuestMemory((Region(0, PAGE, 0, 0),), [fd]).close()
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_descriptor_that_can_shrink_is_refused(tmp_path: Path) -> None:
    unsealable = os.memfd_create("ram", os.MFD_CLOEXEC)
    plain = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        for fd in (unsealable, plain):
            os.ftruncate(fd, PAGE)
            with pytest.raises(ProtocolError, match="sealed"):
                GuestMemory((Region(0, PAGE, 0, 0),), [fd])
    finally:
        os.close(unsealable)
        os.close(plain)


def test_read_only_descriptor_serves_rom_only() -> None:
    fd = memfd(PAGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        with pytest.raises(ProtocolError, match="cannot be mapped"):
            GuestMemory((Region(0, PAGE, 0, 0),), [read_only])
        memory = GuestMemory((Region(0, PAGE, 0, 0, True),), [read_only])
        assert memory.translate((0, PAGE)).read() == bytes(PAGE)
        memory.close()
    finally:
        os.close(fd)
        os.close(read_only)


def test_empty_buffer() -> None:
    empty = GuestBuffer()
    assert len(empty) == 0
    assert empty.read() == b""
    assert empty[:5].read() == b""
    assert empty.write(b"") == 0
    with pytest.raises(ValueError, match="do not fit"):
        empty.write(b"x")
