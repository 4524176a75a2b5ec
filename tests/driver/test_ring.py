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
from tests.driver.workload import PAGE

pytestmark = pytest.mark.kernel_has("DEBUG_INFO")

COMPLAINT = "outbound ring indices out of range"

RING_SIZE = 128 << 10
"""Of one direction; its first page holds the indices."""

_INDEX = struct.Struct("<I")  # struct hv_ring_buffer begins with the write index and the read index
_LOW_RAM = 2 << 30  # up to here the guest's addresses are offsets in QEMU's memory file


@pytest.fixture
def ring(lab: Lab, prepared: Prepared) -> int:
    """The guest-physical address of the first device's outgoing ring."""
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
    with ram.open("r+b") as file, mmap.mmap(file.fileno(), min(machine.config.ram_mib << 20, _LOW_RAM)) as memory:
        yield memory


class SpoiltRing:
    """The indices of a ring, each a word in the guest's memory. The guest moves the one, the host the other."""

    def __init__(self, memory: mmap.mmap, ring: int) -> None:
        self._memory = memory
        self._ring = ring
        self._good: int | None = None
        """The host's index, while it is spoilt."""

    @property
    def write_index(self) -> int:
        return int(_INDEX.unpack_from(self._memory, self._ring)[0])

    def read_index(self, value: int) -> None:
        place = self._ring + _INDEX.size
        if self._good is None:
            (self._good,) = _INDEX.unpack_from(self._memory, place)
        _INDEX.pack_into(self._memory, place, value)

    def mend(self) -> None:
        if self._good is not None:
            self.read_index(self._good)
            self._good = None


@pytest.fixture
def spoilt(lab: Lab, ring: int) -> Iterator[SpoiltRing]:
    """The outgoing ring of the first device; nothing goes through it before it is mended."""
    with guest_ram(lab.machine) as memory:
        spoilt = SpoiltRing(memory, ring)
        yield spoilt
        spoilt.mend()


@pytest.mark.parametrize("index", [RING_SIZE, 0xFFFFFFFF])
def test_read_index_outside_of_the_ring(lab: Lab, node: str, spoilt: SpoiltRing, index: int) -> None:
    """Nothing can be sent; the caller hears so at once, and nothing of its request stays."""
    lab.tolerated = (COMPLAINT,)
    before, pinned = lab.first.counters.requests, lab.work.pinned_pages()
    spoilt.read_index(index)
    assert lab.work.attempt_on(node) == errno.EIO
    assert lab.pending() == []
    assert lab.work.pinned_pages() == pinned
    spoilt.mend()
    assert lab.work.attempt_on(node) == 0
    assert lab.first.counters.requests == before + 1


def test_killed_while_the_ring_is_full(lab: Lab, node: str, spoilt: SpoiltRing) -> None:
    """The host makes no room: callers stand in line. One that is killed leaves it, the next is served when there is."""
    before, pinned = lab.first.counters.requests, lab.work.pinned_pages()
    spoilt.read_index((spoilt.write_index + 8) % (RING_SIZE - PAGE))
    callers = []
    for count in (1, 2):
        callers.append(lab.work.start("waiter_errno", node))
        lab.work.wait_for_pending(str(FIRST), count)
    assert [row[1] for row in lab.pending()] == ["queued", "queued"]
    callers[0].kill()
    assert callers[0].wait() == 9, "killed by signal 9"
    assert [row[1] for row in lab.pending()] == ["queued"]
    assert lab.first.counters.requests == before
    spoilt.mend()
    assert lab.work.attempt_on(node) == 0
    assert callers[1].value() == 0
    assert lab.first.counters.requests == before + 2
    assert lab.work.pinned_pages() == pinned
