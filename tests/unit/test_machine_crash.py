# SPDX-License-Identifier: GPL-2.0-only
import pytest

from pyharness.machine.crash import PATTERNS, CrashDetector, Pattern, Severity, classify

PREFIXES = ("", "[   12.345678] ", "[    0.000000][  T321] ", "[    8.500000][    C1] ")

NO_CRASH = (
    "RIP: 0033:0x461189",
    "[    8.553633] RIP: 0010:sysrq_handle_crash+0x16/0x20",
    "[    1.000000] virtme initramfs: this mentions BUG: and Oops: in passing",
    "[    1.000000] audit: type=1400 msg='Kernel panic - not syncing'",
    "WARNING: the user wrote this",
    "[    2.438406] Call Trace:",
    "debug: ---[ end trace 0000000000000000 ]---",
    "[    0.100000] mce: CPU0: WARNING level is 3",
    "INFO: task finished",
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.sample[:30])
def test_each_sample_is_of_its_kind(pattern: Pattern, prefix: str) -> None:
    assert classify(prefix + pattern.sample) is pattern


@pytest.mark.parametrize("line", NO_CRASH)
def test_ordinary_lines_are_no_crash(line: str) -> None:
    assert classify(line) is None


def feed(*lines: str) -> CrashDetector:
    detector = CrashDetector()
    for line in lines:
        detector.feed(line)
    return detector


def test_a_panic_after_an_oops_belongs_to_the_oops() -> None:
    detector = feed(
        "[    5.0] booting",
        "[    5.1] BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "[    5.1] Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI",
        "[    5.2] ---[ end trace 0000000000000000 ]---",
        "[    5.3] Kernel panic - not syncing: Fatal exception",
    )
    assert detector.fatal is not None and not detector.complete
    assert detector.fatal.kind == "BUG"
    assert detector.fatal.headline == "BUG: kernel NULL pointer dereference, address: 0000000000000008"
    assert len(detector.fatal.lines) == 4
    detector.feed("[    5.4] ---[ end Kernel panic - not syncing: Fatal exception ]---")
    assert detector.complete


def test_a_warning_is_collected_and_ends_nothing() -> None:
    detector = feed(
        "[    5.0] ------------[ cut here ]------------",
        "[    5.0] WARNING: CPU: 1 PID: 321 at drivers/hv/channel.c:12 vmbus_open+0x1c/0x40 [hv_vmbus]",
        "[    5.1] Call Trace:",
        "[    5.2] ---[ end trace 0000000000000000 ]---",
        "[    5.3] innocent",
    )
    assert detector.fatal is None
    (warning,) = detector.warnings
    assert warning.severity is Severity.WARNING
    assert warning.lines[-1].endswith("]---") and len(warning.lines) == 3


def test_a_crash_within_a_warning_is_the_crash() -> None:
    detector = feed(
        "WARNING: CPU: 1 PID: 321 at drivers/hv/channel.c:12 vmbus_open+0x1c/0x40 [hv_vmbus]",
        "Kernel panic - not syncing: kernel: panic_on_warn set ...",
    )
    assert detector.fatal is not None and detector.fatal.kind == "panic"
    assert len(detector.warnings) == 1


def test_a_splat_without_end_is_bounded() -> None:
    detector = feed("UBSAN: shift-out-of-bounds in a.c:1:2", *["noise"] * 1000, "BUG: scheduling while atomic: a/1/2")
    assert len(detector.warnings[0].lines) < 200
    assert detector.fatal is not None
