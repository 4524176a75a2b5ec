# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel's detectors report is told by name, and nothing else is."""

from __future__ import annotations

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
