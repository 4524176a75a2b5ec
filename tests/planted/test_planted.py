# SPDX-License-Identifier: GPL-2.0-only
"""The judge, judged: each planted fault is caught by name, and the driver as it is passes the same trial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.modules import Modules, build_driver
from pyharness.artifacts.prepare import Prepared
from pyharness.judge import Judge
from pyharness.machine.config import BlobDevice, MachineConfig
from pyharness.machine.vm import Machine
from pyharness.progress import Progress
from tests.driver.lab import FIRST, NULL, SECOND, lab_on
from tests.planted import workloads
from tests.planted.faults import FAULTS, Change, ChangeDoesNotApply, Fault, Workload, plant

on_the_judges_kernel = pytest.mark.kernel_has(
    "KASAN", "PROVE_LOCKING", "DEBUG_ATOMIC_SLEEP", "DEBUG_KMEMLEAK", "MEM_ALLOC_PROFILING", "FAULT_INJECTION"
)


def trial(config: MachineConfig, modules: Modules, workload: Workload, *, to_the_end: bool) -> None:
    """Judge the driver in a guest of its own. Raises the judge's verdict."""
    devices = (BlobDevice(FIRST), BlobDevice(SECOND), BlobDevice(NULL, backend=False))
    with Machine(replace(config, blob_devices=devices)) as machine:
        judge = Judge(machine)
        judge.begin("the loading of the modules")
        with lab_on(machine, modules) as lab:
            judge.begin("the workload")
            workload(lab)
            judge.verdict(lab.tolerated, lab.tolerated_reports)
            if to_the_end:
                judge.finish()


@on_the_judges_kernel
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_fault_is_caught_by_name(
    fault: Fault, config: MachineConfig, prepared: Prepared, tmp_path: Path
) -> None:
    changed = plant(fault.changes, tmp_path / "changed")
    driver = build_driver(prepared.kernel, Cache.open(), Progress(quiet=True), changed)
    modules = replace(prepared.modules, driver=driver)
    with pytest.raises(fault.error) as caught:
        trial(config, modules, fault.workload, to_the_end=fault.only_at_the_end)
    verdict = caught.value
    assert fault.said in verdict.message
    assert fault.shown in verdict.detail
    assert verdict.kind == fault.kind


@on_the_judges_kernel
@pytest.mark.parametrize(
    "workload", [workloads.use, workloads.fail_allocations], ids=lambda workload: workload.__name__
)
def test_driver_passes_the_same_trial(config: MachineConfig, prepared: Prepared, workload: Workload) -> None:
    trial(config, prepared.modules, workload, to_the_end=False)


@pytest.mark.parametrize("old", ["text that the driver does not have", "return"], ids=["absent", "repeated"])
def test_change_that_does_not_apply_is_no_fault(old: str, tmp_path: Path) -> None:
    with pytest.raises(ChangeDoesNotApply):
        plant((Change(old, ""),), tmp_path / "changed")
