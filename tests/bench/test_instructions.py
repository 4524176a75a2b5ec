# SPDX-License-Identifier: GPL-2.0-only
"""No request takes more instructions than it did, and one that does is noticed."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.modules import Modules, build_driver
from pyharness.artifacts.prepare import Prepared
from pyharness.bench.instructions import Parts, counting, differences, record, recorded
from pyharness.machine.config import MachineConfig
from pyharness.progress import Progress
from tests.planted.faults import Change, plant

QUIET = Progress(quiet=True)
LOOP = Change(
    "\treq = az_blob_request_create(&args);\n",
    "\tfor (ret = 0; ret < 128; ret++)\n\t\tbarrier();\n\treq = az_blob_request_create(&args);\n",
)
COPY = Change(
    "\tmpb->rangecount = 1;\n",
    "\tfor (i = 0; i < nr_pages; i++)\n\t\tWRITE_ONCE(mpb->range.pfn_array[i], page_to_hvpfn(pages[i]));\n"
    "\tmpb->rangecount = 1;\n",
)


@pytest.fixture
def known(config: MachineConfig) -> dict[str, Parts]:
    if config.accelerator.name != "tcg":
        pytest.skip(f"{config.accelerator.name} does not count instructions")
    counts = recorded()
    if config.kernel.name not in counts:
        pytest.skip(f"nothing is recorded of {config.kernel.name}")
    return counts[config.kernel.name]


def counts_of(prepared: Prepared, config: MachineConfig) -> dict[str, Parts]:
    with counting(prepared, config.accelerator, QUIET, Cache.open()) as running:
        return running.count()


@pytest.mark.default_kernel_only("counts are recorded of it, and of another kernel only on purpose")
def test_as_many_as_recorded(config: MachineConfig, prepared: Prepared, known: dict[str, Parts]) -> None:
    assert differences(counts_of(prepared, config), known) == []


@pytest.mark.default_kernel_only("what is planted is the same on every kernel")
@pytest.mark.parametrize(
    ("change", "requests"),
    [(LOOP, ["read-4K", "write-4K", "read-1M"]), (COPY, ["read-1M"])],
    ids=["a loop", "a copy of the page list"],
)
def test_more_are_noticed(
    change: Change,
    requests: list[str],
    config: MachineConfig,
    prepared: Prepared,
    known: dict[str, Parts],
    tmp_path: Path,
) -> None:
    driver = build_driver(prepared.kernel, Cache.open(), QUIET, plant((change,), tmp_path / "changed"))
    changed: Future[Modules] = Future()
    changed.set_result(replace(prepared.modules, driver=driver))
    found = differences(counts_of(replace(prepared, building=changed), config), known)
    noticed = [line for line in found if " instructions in driver, " in line]
    assert {line.partition(":")[0] for line in noticed} >= set(requests)
    assert all("(+" in line for line in noticed)


def test_record_keeps_other_kernels(tmp_path: Path) -> None:
    path = tmp_path / "record.toml"
    first, second = ({"read-4K": dict.fromkeys(("driver", "vmbus", "kernel", "user"), count)} for count in (1, 2))
    record("debian-6.1", first, path)
    record("debian-6.12", first, path)
    record("debian-6.12", second, path)
    assert recorded(path) == {"debian-6.1": first, "debian-6.12": second}


def test_what_is_too_far_off() -> None:
    known = {"read-4K": {"driver": 1000, "vmbus": 1000, "kernel": 1000, "user": 1000}}
    allowed = {"read-4K": {"driver": 1050, "vmbus": 950, "kernel": 1250, "user": 900}}
    beyond = {"read-4K": {"driver": 1051, "vmbus": 949, "kernel": 1251, "user": 899}}
    assert differences(allowed, known) == []
    assert len(differences(beyond, known)) == 4
