# SPDX-License-Identifier: GPL-2.0-only
"""A host that spoils the ring in which requests go out."""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from drgn import Object
from drgn.helpers.linux.mm import page_to_phys

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.prepare import Prepared
from pyharness.debug.program import open_live
from pyharness.debug.survey import survey
from pyharness.machine.vm import Machine
from tests.driver.lab import FIRST, Lab

COMPLAINT = "outbound ring indices out of range"

_READ_INDEX = 4  # in struct hv_ring_buffer
_LOW_RAM = 2 << 30  # up to here the guest's addresses are offsets in QEMU's memory file


@pytest.fixture
def ring(lab: Lab, prepared: Prepared) -> int:
    """The guest-physical address of the first device's outgoing ring."""
    if prepared.kernel.vmlinux is None:
        pytest.skip("this kernel comes without DWARF; the debug kernel has it")
    if COMPLAINT not in (prepared.kernel.source / "drivers" / "hv" / "ring_buffer.c").read_text():
        pytest.skip("this kernel's VMBus trusts the host with the ring's indices")
    with open_live(lab.machine.run_dir.debug_socket, Cache.open()) as program:
        (device,) = (device for device in survey(program) if device.instance == FIRST)
        channel = Object(program, "struct az_blob_device *", device.address).hdev.channel
        return int(page_to_phys(channel.ringbuffer_page))


@contextmanager
def guest_ram(machine: Machine) -> Iterator[mmap.mmap]:
    """The guest's memory, as whoever emulates the host can write to it."""
    fds = Path(f"/proc/{machine.console.pid}/fd")
    (ram,) = (fd for fd in fds.iterdir() if str(fd.readlink()).startswith("/memfd:"))
    with ram.open("r+b") as file, mmap.mmap(file.fileno(), min(machine.config.memory_mib << 20, _LOW_RAM)) as memory:
        yield memory


def test_read_index_outside_of_the_ring(lab: Lab, node: str, ring: int) -> None:
    """Nothing can be sent; the caller hears so at once, and nothing of its request stays."""
    lab.tolerated = (COMPLAINT,)
    before, pinned = lab.first.counters.requests, lab.work.pinned_pages()
    with guest_ram(lab.machine) as memory:
        place = ring + _READ_INDEX
        (good,) = struct.unpack_from("<I", memory, place)
        for bad in (128 << 10, 0xFFFFFFFF):
            struct.pack_into("<I", memory, place, bad)
            try:
                assert lab.work.attempt_on(node) == errno.EIO
            finally:
                struct.pack_into("<I", memory, place, good)
            assert lab.pending() == []
            assert lab.work.pinned_pages() == pinned
    assert lab.first.counters.requests == before
    assert lab.work.attempt_on(node) == 0
