# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel's detectors report is told by name, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyharness.machine.crash import PATTERNS, CrashDetector, Kind, Pattern, Severity, classify, message_of
from pyharness.machine.crash import splats_in as splats

SPLATS = Path(__file__).parent / "splats"

STAMPS = ("[   12.345678] ", "[    0.000000][  T321] ", "[    8.500000][    C1] ", "half a line[    1.000000] ")


@pytest.mark.parametrize("stamp", STAMPS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.sample[:30])
def test_each_sample_is_of_its_kind(pattern: Pattern, stamp: str) -> None:
    message = message_of(stamp + pattern.sample)
    assert message == pattern.sample
    assert classify(message) is pattern


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.sample[:30])
def test_what_user_space_prints_is_no_crash(pattern: Pattern) -> None:
    assert splats([pattern.sample, f"pytest: {pattern.sample}"]) == []


def feed(*messages: str) -> CrashDetector:
    detector = CrashDetector()
    for number, message in enumerate(messages):
        detector.feed(f"[   {number:2}.000000] {message}")
    return detector


def test_a_panic_after_an_oops_belongs_to_the_oops() -> None:
    detector = feed(
        "booting",
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI",
        "---[ end trace 0000000000000000 ]---",
        "Kernel panic - not syncing: Fatal exception",
    )
    assert detector.fatal is not None and not detector.complete
    assert detector.fatal.kind is Kind.OOPS
    assert detector.fatal.headline == "BUG: kernel NULL pointer dereference, address: 0000000000000008"
    assert len(detector.fatal.lines) == 4
    detector.feed("[    5.400000] ---[ end Kernel panic - not syncing: Fatal exception ]---")
    assert detector.complete


def test_a_warning_is_collected_and_ends_nothing() -> None:
    detector = feed(
        "------------[ cut here ]------------",
        "WARNING: CPU: 1 PID: 321 at drivers/hv/channel.c:12 vmbus_open+0x1c/0x40 [hv_vmbus]",
        "Call Trace:",
        "---[ end trace 0000000000000000 ]---",
        "innocent",
    )
    assert detector.fatal is None
    (warning,) = detector.warnings
    assert warning.severity is Severity.WARNING
    assert warning.lines[-1].endswith("]---") and len(warning.lines) == 4


def test_a_crash_within_a_warning_is_the_crash() -> None:
    detector = feed(
        "WARNING: CPU: 1 PID: 321 at drivers/hv/channel.c:12 vmbus_open+0x1c/0x40 [hv_vmbus]",
        "Kernel panic - not syncing: kernel: panic_on_warn set ...",
    )
    assert detector.fatal is not None and detector.fatal.kind is Kind.PANIC
    assert len(detector.warnings) == 1


def test_a_splat_without_end_is_bounded() -> None:
    detector = feed("UBSAN: shift-out-of-bounds in a.c:1:2", *["noise"] * 1000, "BUG: using this in preemptible code")
    assert len(detector.warnings[0].lines) <= 200
    assert detector.fatal is not None


def test_two_warnings_in_a_row_are_two() -> None:
    detector = feed(
        "kmemleak: 1 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        "UBSAN: shift-out-of-bounds in a.c:1:2",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "------------[ cut here ]------------",
        "WARNING: CPU: 0 PID: 1 at a.c:12 a+0x1c/0x40",
    )
    assert [splat.kind for splat in detector.warnings] == [Kind.KMEMLEAK, Kind.UBSAN, Kind.RCU_STALL, Kind.WARNING]


@pytest.mark.parametrize("text_first", [True, False], ids=["6.x", "7.x"])
def test_what_a_warning_says_tells_its_kind(text_first: bool) -> None:
    """Up to 6.x the text of a WARN stands above its line, since 7.x below it."""
    text = "ODEBUG: free active (active state 0) object: ffff8 object type: timer_list hint: a+0x0/0x10 [b]"
    warning = "WARNING: lib/debugobjects.c:615 at debug_print_object+0x1c/0x40, CPU#1: python3/99"
    pair = (text, warning) if text_first else (warning, text)
    detector = feed(
        "------------[ cut here ]------------", *pair, "Call Trace:", "---[ end trace 0000000000000000 ]---"
    )
    (splat,) = detector.warnings
    assert splat.kind is Kind.DEBUG_OBJECTS and splat.headline == text
    assert len(splat.lines) == 5


def test_a_list_corruption_of_a_warning_is_fatal() -> None:
    detector = feed(
        "------------[ cut here ]------------",
        "WARNING: lib/list_debug.c:29 at __list_add_valid_or_report+0x1c/0x40, CPU#1: python3/99",
        "list_add corruption. next->prev should be prev (ffff8), but was ffff9.",
        "Call Trace:",
        "---[ end trace 0000000000000000 ]---",
    )
    assert detector.warnings == [] and detector.complete
    assert detector.fatal is not None and detector.fatal.kind is Kind.LIST_CORRUPTION
    assert len(detector.fatal.lines) == 5


def test_a_headline_names_no_directory_that_is_gone() -> None:
    (splat,) = feed("UBSAN: shift-out-of-bounds in /var/cache/tmp/module.4d76/sources/kernel/a.c:103:2").warnings
    assert splat.headline == "UBSAN: shift-out-of-bounds in kernel/a.c:103:2"


CORPUS: dict[str, list[Kind]] = {
    # What hv_provoke's fault of that name makes the kernel say, from the loading of the module on.
    "atomic-lock-sleep": [Kind.ATOMIC_SLEEP, Kind.LOCKDEP],
    "atomic-schedule": [Kind.ATOMIC_SLEEP],
    "bad-page": [Kind.BAD_PAGE],
    "bug": [Kind.BUG],
    "double-free": [Kind.KASAN],
    "freed-lock": [Kind.LOCKDEP],
    "freed-timer": [Kind.DEBUG_OBJECTS],
    "hung-task": [Kind.HUNG_TASK],
    "index-out-of-bounds": [Kind.UBSAN],
    "irq-unsafe-lock": [Kind.LOCKDEP],
    "kept-lock": [Kind.LOCKDEP],
    "leak": [Kind.KMEMLEAK],
    "list-corruption": [Kind.LIST_CORRUPTION],
    "lock-inversion": [Kind.LOCKDEP],
    "lost-cache-object": [Kind.LEFTOVER, Kind.WARNING, Kind.LEFTOVER],
    "lost-cache-object-debian-6.1": [Kind.LEFTOVER, Kind.LEFTOVER],
    "null-dereference": [Kind.OOPS],
    "out-of-bounds": [Kind.KASAN],
    "page-allocation": [Kind.PAGE_ALLOCATION],
    "panic": [Kind.PANIC],
    "rcu-stall": [Kind.RCU_STALL],
    "recursive-lock": [Kind.LOCKDEP],
    "refcount-underflow": [Kind.REFCOUNT],
    "shift-out-of-bounds": [Kind.UBSAN],
    "soft-lockup": [Kind.SOFT_LOCKUP],
    "unbalanced-unlock": [Kind.LOCKDEP],
    "unload-leftover": [Kind.LEFTOVER],
    "unprotected-rcu": [Kind.LOCKDEP],
    "use-after-free": [Kind.KASAN],
    "use-after-free-debian-6.12": [Kind.KFENCE],
    "warn-message": [Kind.WARNING],
    "warn-on": [Kind.WARNING],
    "wild-pointer": [Kind.OOPS],
    # No word of the kernel's.
    "triple-fault": [],
    # Boots, sysrq's backtraces and states, programs that crash, a memory cgroup that is full, an injected fault.
    "boot": [],
    "innocent": [],
    "injected": [],
    "lookalikes": [],
}
KERNEL = re.compile(r"-(debian|debug|lean)-[\d.]+$")
LOGS = sorted(SPLATS.glob("*.log"))


def expected(log: Path) -> list[Kind]:
    return CORPUS[log.stem] if log.stem in CORPUS else CORPUS[KERNEL.sub("", log.stem)]


def test_every_kind_has_a_real_log() -> None:
    assert {KERNEL.sub("", log.stem) for log in LOGS} == {KERNEL.sub("", name) for name in CORPUS}
    of_the_machine = {Kind.TRIPLE_FAULT, Kind.RESET, Kind.POWER_OFF, Kind.QEMU_DEATH, Kind.BOOT_HANG}
    not_to_be_had = {
        Kind.HARD_LOCKUP,  # needs a performance counter's NMI, which TCG has not
        Kind.SLAB_CORRUPTION,  # KASAN comes first, and Debian's kernels do not look
    }
    assert {kind for kinds in CORPUS.values() for kind in kinds} == set(Kind) - of_the_machine - not_to_be_had


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.stem)
def test_real_logs_are_told_by_name(log: Path) -> None:
    detector = CrashDetector()
    for line in log.read_text().splitlines():
        detector.feed(line)
    kinds = [splat.kind for splat in (*detector.warnings, *filter(None, [detector.fatal]))]
    assert kinds == expected(log)
    # Of what is fatal the end was seen, so that the machine is ended at once; lockdep alone ends a hung task's report.
    open_end = log.stem.startswith("hung-task-") and "-debug-" not in log.stem
    assert detector.complete == (detector.fatal is not None and not open_end)


@pytest.mark.parametrize("log", sorted(SPLATS.glob("*-debug-6.12.log")), ids=lambda log: log.stem)
def test_a_splat_is_whole_and_nothing_else(log: Path) -> None:
    """What is outside the splats tells nothing: no stack, no "BUG", no ruler but the one above a report."""
    if not expected(log):
        return
    lines = log.read_text().splitlines()
    found = splats(lines)
    assert all(splat.lines for splat in found)
    taken = {line for splat in found for line in splat.lines}
    end = len(lines) if found[-1].severity is Severity.WARNING else lines.index(found[-1].lines[-1])
    rest = [line for line in lines[:end] if line not in taken]
    assert not [line for line in rest if "+0x" in line or "BUG" in line or "WARNING" in line]


def test_a_kasan_report_is_there_to_its_last_line() -> None:
    (report,) = splats((SPLATS / "use-after-free-debug-6.12.log").read_text().splitlines())
    for part in ("Call Trace:", "Allocated by task", "Freed by task", "Memory state around the buggy address:"):
        assert part in report.text
    assert report.text.endswith("=" * 66)
