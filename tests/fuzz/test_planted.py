# SPDX-License-Identifier: GPL-2.0-only
"""The fuzzers, judged: each finds a fault that is planted into a copy of the driver, and makes what finds it small."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.modules import build_driver
from pyharness.artifacts.prepare import Prepared
from pyharness.errors import CheckFailed, GuestCrashed, HarnessError
from pyharness.fuzz import host, ioctl
from pyharness.machine.crash import Kind
from pyharness.progress import Progress
from tests.fuzz.conftest import StartWith
from tests.planted.faults import Change, plant

pytestmark = pytest.mark.kernel_has("KCOV", "KASAN")

SEED = 1


@dataclass(frozen=True)
class Fault:
    """A fault, and how it must show within so many executions; `said` is a regular expression."""

    name: str
    change: Change
    said: str
    executions: int
    error: type[HarnessError] = GuestCrashed
    kind: Kind | None = None


IOCTL_FAULTS = (
    Fault(
        "pages counted by length alone",
        Change(
            """
	unsigned int nr_pages = az_blob_total_pages(args);
	struct az_blob_request *req;
""",
            """
	unsigned int nr_pages = DIV_ROUND_UP((u64)args->data_len, PAGE_SIZE) +
				DIV_ROUND_UP((u64)args->request_len, PAGE_SIZE) +
				DIV_ROUND_UP((u64)args->response_len, PAGE_SIZE);
	struct az_blob_request *req;
""",
        ),
        "KASAN: slab-out-of-bounds",
        20_000,
        kind=Kind.KASAN,
    ),
    Fault(
        "length that wraps",
        Change(
            """
	return DIV_ROUND_UP(offset_in_page(addr) + (u64)len, PAGE_SIZE);
""",
            """
	return DIV_ROUND_UP((u32)(offset_in_page(addr) + len), PAGE_SIZE);
""",
        ),
        "the ioctl broke its contract: errno",
        20_000,
        ioctl.ContractBroken,
    ),
)

HOST_FAULTS = (
    Fault(
        "response length that nobody checks",
        Change(
            """
	if (le32_to_cpu(wire->response_len) >
""",
            """
	if (0 && le32_to_cpu(wire->response_len) >
""",
        ),
        "has no room|was not sent",
        5_000,
        CheckFailed,
    ),
    Fault(
        "completion of any type",
        Change(
            """
	if (desc->type != VM_PKT_COMP) {
""",
            """
	if (desc->type != VM_PKT_COMP && desc->type != VM_PKT_DATA_INBAND) {
""",
        ),
        "was not sent|no malformed completion",
        15_000,
        CheckFailed,
    ),
)


def planted(fault: Fault, prepared: Prepared, start_with: StartWith, tmp_path: Path) -> ioctl.StartRig:
    changed = plant((fault.change,), tmp_path / "changed")
    return start_with(build_driver(prepared.kernel, Cache.open(), Progress(quiet=True), changed))


@pytest.mark.parametrize("fault", IOCTL_FAULTS, ids=lambda fault: fault.name)
def test_ioctl_fuzzer_finds_it(fault: Fault, prepared: Prepared, start_with: StartWith, tmp_path: Path) -> None:
    start = planted(fault, prepared, start_with, tmp_path)
    with pytest.raises(ioctl.Found) as caught, start() as rig, ioctl.Runner(rig) as runner:
        ioctl.Fuzzer(runner, [], SEED).fuzz(lambda progressed: progressed.executions >= fault.executions)
    with ioctl.replaying(start) as replayer:
        smaller = ioctl.reduced(replayer, caught.value)
    assert smaller
    assert re.search(fault.said, smaller.error.message)
    assert (type(smaller.error), smaller.error.kind) == (fault.error, fault.kind)
    assert [len(program) for program in smaller.programs] == [1]


@pytest.mark.parametrize("fault", HOST_FAULTS, ids=lambda fault: fault.name)
def test_host_fuzzer_finds_it(fault: Fault, prepared: Prepared, start_with: StartWith, tmp_path: Path) -> None:
    fuzzer = host.Fuzzer(planted(fault, prepared, start_with, tmp_path), SEED)
    try:
        with pytest.raises(host.Found) as caught:
            fuzzer.fuzz(lambda progressed: progressed.executions >= fault.executions)
    finally:
        fuzzer.discard()
    assert re.search(fault.said, caught.value.error.message)
    assert (type(caught.value.error), caught.value.error.kind) == (fault.error, fault.kind)
    assert len(caught.value.script) == 1
