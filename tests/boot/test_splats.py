# SPDX-License-Identifier: GPL-2.0-only
"""Each fault that the kernel has a detector for, committed for real by hv_provoke: caught, named and told at once."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from pyharness import repository
from pyharness.artifacts.cache import Cache, files_below
from pyharness.artifacts.modules import Module, build_module
from pyharness.artifacts.prepare import Prepared
from pyharness.errors import Exit, GuestCrashed
from pyharness.judge import Judge
from pyharness.machine.config import MachineConfig
from pyharness.machine.crash import Kind
from pyharness.machine.vm import Machine
from pyharness.progress import Progress

MODULE = "hv_provoke"
FAULTS = f"/sys/kernel/debug/{MODULE}/fault"
NOTICE_S = 5.0
"""How soon after the splat its cause must be raised."""
PATIENCE_S = 120.0

# What makes a detector impatient, and how much.
KFENCE = {"/sys/module/kfence/parameters/sample_interval": "10"}
RCU = {"/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout": "3"}
WATCHDOG = {"/proc/sys/kernel/watchdog_thresh": "2"}
HUNG_TASK = {"/proc/sys/kernel/hung_task_timeout_secs": "2"}


@dataclass(frozen=True)
class Fault:
    """A fault of hv_provoke. `needs` is the option of the kernel without which nothing reports it.

    `says` is part of the headline. `here` is the function that the decoded stack must show; "-": there is no stack.
    """

    name: str
    kind: Kind
    says: str
    needs: str = ""
    here: str = ""
    limits: Mapping[str, str] = field(default_factory=dict)

    @property
    def function(self) -> str:
        return self.here or self.name.replace("-", "_")


FATAL = (
    Fault("use-after-free", Kind.KASAN, "slab-use-after-free", "KASAN"),
    Fault("use-after-free", Kind.KFENCE, "use-after-free", "KFENCE", limits=KFENCE),
    Fault("double-free", Kind.KASAN, "double-free", "KASAN"),
    Fault("out-of-bounds", Kind.KASAN, "slab-out-of-bounds", "KASAN"),
    Fault("list-corruption", Kind.LIST_CORRUPTION, "list_add corruption", "DEBUG_LIST"),
    Fault("bad-page", Kind.BAD_PAGE, "Bad page state", "DEBUG_VM"),
    Fault("atomic-schedule", Kind.ATOMIC_SLEEP, "scheduling while atomic", "PREEMPT_COUNT"),
    Fault("bug", Kind.BUG, "kernel BUG at"),
    Fault("null-dereference", Kind.OOPS, ""),
    Fault("wild-pointer", Kind.OOPS, "general protection fault"),
    Fault("panic", Kind.PANIC, "provoked", here="provoke_panic"),
    Fault("soft-lockup", Kind.SOFT_LOCKUP, "stuck for", "SOFTLOCKUP_DETECTOR", limits=WATCHDOG),
    Fault("hung-task", Kind.HUNG_TASK, "blocked for more than", "DETECT_HUNG_TASK", limits=HUNG_TASK),
)
SURVIVED = (
    Fault("warn-on", Kind.WARNING, "hv_provoke.c"),
    Fault("warn-message", Kind.WARNING, "hv_provoke.c"),
    Fault("refcount-underflow", Kind.REFCOUNT, "decrement hit 0"),
    Fault("page-allocation", Kind.PAGE_ALLOCATION, "vmalloc error"),
    Fault("shift-out-of-bounds", Kind.UBSAN, "shift-out-of-bounds", "UBSAN_SHIFT"),
    Fault("index-out-of-bounds", Kind.UBSAN, "array-index-out-of-bounds", "UBSAN_BOUNDS"),
    Fault("freed-timer", Kind.DEBUG_OBJECTS, "timer_list", "DEBUG_OBJECTS_TIMERS"),
    Fault("atomic-lock-sleep", Kind.ATOMIC_SLEEP, "sleeping function called", "DEBUG_ATOMIC_SLEEP"),
    Fault("lost-cache-object", Kind.LEFTOVER, "Objects remaining", "SLUB_DEBUG", here="-"),
    Fault("rcu-stall", Kind.RCU_STALL, "detected stall", limits=RCU),
    Fault("lock-inversion", Kind.LOCKDEP, "possible circular locking", "PROVE_LOCKING"),
    Fault("recursive-lock", Kind.LOCKDEP, "possible recursive locking", "PROVE_LOCKING"),
    Fault("irq-unsafe-lock", Kind.LOCKDEP, "inconsistent lock state", "PROVE_LOCKING"),
    Fault("unprotected-rcu", Kind.LOCKDEP, "suspicious RCU usage", "PROVE_LOCKING"),
    Fault("freed-lock", Kind.LOCKDEP, "held lock freed", "PROVE_LOCKING"),
    Fault("kept-lock", Kind.LOCKDEP, "lock held when returning to user space", "PROVE_LOCKING"),
    Fault("unbalanced-unlock", Kind.LOCKDEP, "bad unlock balance", "PROVE_LOCKING"),
)
# tests/planted shows what becomes of a leak: it takes kmemleak a while to find one.
WITHOUT_A_ROW = {"leak", "triple-fault", "unload-leftover"}


@dataclass
class Victim:
    """A guest with hv_provoke, for as long as it is fit for the next fault."""

    config: MachineConfig
    module: Module
    machine: Machine | None = None

    def fit(self) -> Machine:
        """The guest; a fresh one when it has died, or when lockdep has given up, as it does after many a report."""
        if self.machine and (self.machine.failure or self._has_lost_lockdep(self.machine)):
            self.discard()
        if self.machine is None:
            self.machine = Machine(self.config)
            self.machine.start()
            self.machine.guest.insmod(self.module.path)
        return self.machine

    def _has_lost_lockdep(self, machine: Machine) -> bool:
        kept = ("PROVE_LOCKING",)
        return self.config.kernel.has(*kept) and bool(machine.guest.module("pyharness.guest.judge").off(kept))

    def discard(self) -> None:
        if self.machine:
            self.machine.stop()
            self.machine = None


@pytest.fixture(scope="module")
def victim(config: MachineConfig, prepared: Prepared) -> Iterator[Victim]:
    where = repository.ROOT / "kernel" / "provoke"
    sources = files_below(where, base=repository.ROOT)
    module = build_module(prepared.kernel, MODULE, sources, "kernel/provoke", Cache.open(), Progress(quiet=True))
    victim = Victim(config, module)
    yield victim
    victim.discard()


def param(fault: Fault, name: str) -> Any:
    return pytest.param(fault, id=name, marks=[pytest.mark.kernel_has(fault.needs)] if fault.needs else [])


def commit(machine: Machine, name: str) -> None:
    path = machine.guest.module("pathlib").Path(FAULTS)
    machine.guest.spawn(path.write_text, name).result(PATIENCE_S)


def check(error: GuestCrashed, fault: Fault, machine: Machine) -> None:
    """The error says all of it: kind, place, whole report; and the console is kept."""
    assert (error.exit_code, error.kind) == (Exit.GUEST_CRASH, fault.kind)
    assert fault.says in error.message and "\n" not in error.message
    if fault.here != "-":
        decoded, _, report = error.detail.partition("\n\n")
        assert re.search(rf"^    kernel/provoke/hv_provoke\.c:\d+  {fault.function} \[{MODULE}\]$", decoded, re.M)
        assert fault.says in report
    deadline = time.monotonic() + PATIENCE_S
    while fault.says not in machine.console.log.read_text(errors="replace"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_each_fault_has_a_test(victim: Victim) -> None:
    listed = str(victim.fit().guest.module("pathlib").Path(FAULTS).read_text()).split()
    assert set(listed) == {fault.name for fault in (*SURVIVED, *FATAL)} | WITHOUT_A_ROW


@pytest.mark.parametrize("fault", [param(fault, fault.name) for fault in SURVIVED])
def test_a_report_that_the_kernel_survives_fails_its_test(victim: Victim, fault: Fault) -> None:
    machine = victim.fit()
    path = machine.guest.module("pathlib").Path
    before = {limit: str(path(limit).read_text()) for limit in fault.limits}
    judge = Judge(machine)
    judge.begin(fault.name)
    for limit, value in fault.limits.items():
        path(limit).write_text(value)
    commit(machine, fault.name)
    committed = time.monotonic()
    with pytest.raises(GuestCrashed) as caught:
        judge.verdict()
    assert time.monotonic() - committed < NOTICE_S
    check(caught.value, fault, machine)
    machine.check()
    for limit, value in before.items():
        path(limit).write_text(value)


@pytest.mark.parametrize("fault", [param(fault, f"{fault.name}-{fault.kind}") for fault in FATAL])
def test_a_crash_ends_its_test(victim: Victim, fault: Fault) -> None:
    machine = victim.fit()
    for limit, value in fault.limits.items():
        machine.guest.module("pathlib").Path(limit).write_text(value)
    with pytest.raises(GuestCrashed) as caught:
        commit(machine, fault.name)
        # The kernel itself may go on, until what it has said is read.
        assert machine.console.wait_end(PATIENCE_S)
        machine.check()
    splat = machine.console.splat
    assert splat and time.monotonic() - splat.seen < NOTICE_S
    check(caught.value, fault, machine)


def test_a_triple_fault_is_told_from_a_reboot(victim: Victim) -> None:
    for kind, provoke in (
        (Kind.TRIPLE_FAULT, lambda machine: commit(machine, "triple-fault")),
        (Kind.RESET, lambda machine: machine.guest.module("pathlib").Path("/proc/sysrq-trigger").write_text("b")),
    ):
        machine = victim.fit()
        with pytest.raises(GuestCrashed) as caught:
            provoke(machine)
            machine.guest.module("time").sleep(PATIENCE_S)
        assert caught.value.kind is kind and str(kind) in caught.value.message


@pytest.mark.kernel_has("MEM_ALLOC_PROFILING")
def test_what_a_module_leaves_behind_is_named_by_its_line(victim: Victim) -> None:
    victim.discard()  # the module is going to be unloaded
    machine = victim.fit()
    judge = Judge(machine)
    judge.begin("unload")
    commit(machine, "unload-leftover")
    machine.guest.rmmod(MODULE)
    with pytest.raises(GuestCrashed) as caught:
        judge.verdict()
    victim.discard()
    assert caught.value.kind is Kind.LEFTOVER
    assert re.search(
        r"kernel/provoke/hv_provoke\.c:\d+ module hv_provoke func:unload_leftover has", caught.value.message
    )
