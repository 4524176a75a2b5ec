# SPDX-License-Identifier: GPL-2.0-only
"""What the judge makes of what the guest's kernel tells; tests/planted has the judge at work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from pyharness import judge
from pyharness.errors import CheckFailed, GuestCrashed, HarnessError
from pyharness.guest.host import KernelMessage
from pyharness.guest.kernel import LOST
from pyharness.judge import Judge, State, parse_leaks
from pyharness.machine.crash import Kind
from pyharness.machine.vm import Machine

Rows = tuple[tuple[str, tuple[tuple[str, int], ...]], ...]

IDLE: Rows = (
    ("pins", (("", 0),)),
    ("requests", ()),
    ("users", (("hv_azure_blob", 0),)),
    ("devices", (("7e1a0c52", 1),)),
    ("memory", (("kernel/hv_azure_blob.c:812 az_blob_probe", 1024),)),
)

# In the format of mm/kmemleak.c.
REPORT = """\
unreferenced object 0xff11000003b0e2a0 (size 16):
  comm "py thon3", pid 53, jiffies 4294941100
  hex dump (first 16 bytes):
    61 7a 75 72 65 5f 62 6c 6f 62 00 cc cc cc cc cc  azure_blob......
  backtrace (crc 9d6e8f2b):
    __kmalloc_node_track_caller_noprof+0x2ac/0x4c0
    kvasprintf+0xb0/0x130
    kasprintf+0xa6/0xd0
    az_blob_probe+0x3f1/0x8a0 [hv_azure_blob]
    vmbus_probe+0x66/0xf0 [hv_vmbus]
    really_probe+0x1c9/0x7e0
unreferenced object 0xff11000003b0e2c0 (size 32):
  comm "init", pid 1, jiffies 4294937296 (age 12.300s)
  backtrace (crc 0):
    kmemdup_noprof+0x20/0x50
"""


def idle_but(**kinds: tuple[tuple[str, int], ...]) -> Rows:
    return tuple((kind, kinds.get(kind, counts)) for kind, counts in IDLE)


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (idle_but(pins=(("", 3),)), "3 pages are left pinned (an unpin_user_pages is missing)"),
        (idle_but(pins=(("", -2),)), "2 pages were unpinned twice"),
        (idle_but(requests=(("0000 sent", 1),)), "a request is still pending: 0000 sent"),
        (idle_but(users=(("hv_azure_blob", 1),)), "hv_azure_blob has 1 more users than before"),
        (idle_but(devices=()), "device 7e1a0c52 is not bound any more"),
        (
            idle_but(memory=(("kernel/hv_azure_blob.c:812 az_blob_probe", 3072),)),
            "2048 bytes are left allocated by kernel/hv_azure_blob.c:812 az_blob_probe",
        ),
    ],
    ids=["pins", "unpinned twice", "request", "user", "device", "memory"],
)
def test_what_is_held_is_told_by_name(later: Rows, said: str) -> None:
    assert State.of(IDLE).faults(State.of(later)) == [said]


def test_nothing_is_told_of_what_is_as_it_was() -> None:
    assert State.of(IDLE).faults(State.of(IDLE)) == []


def test_equal_rows_add_up() -> None:
    twice = State.of(idle_but(requests=(("0000 sent", 1), ("0000 sent", 1))))
    assert State.of(idle_but(requests=(("0000 sent", 1),))).faults(twice) == ["a request is still pending: 0000 sent"]


def test_kmemleaks_report_is_read() -> None:
    first, second = parse_leaks(REPORT).values()
    assert (first.size, first.jiffies, first.address) == (16, 4294941100, "0xff11000003b0e2a0")
    assert first.culprit == "az_blob_probe+0x3f1/0x8a0 [hv_azure_blob]"
    assert second.culprit == "kmemdup_noprof+0x20/0x50"
    assert second.jiffies == 4294937296
    assert parse_leaks("") == {}


def test_kmemleaks_report_is_read_whole() -> None:
    """Linux 7 says of some objects where they are; a format that is not known is no clean report."""
    (leak,) = parse_leaks(REPORT[: REPORT.index("unreferenced", 1)].replace("object", "object (percpu)")).values()
    assert leak.size == 16
    with pytest.raises(HarnessError, match="a format that is not known"):
        parse_leaks(REPORT.replace("object 0xff11000003b0e2c0", "object at 0xff11000003b0e2c0"))


@dataclass
class Guest:
    """A guest that tells what the test has it tell, in place of pyharness.guest.judge and of the log."""

    options: tuple[str, ...] = ("DEBUG_KMEMLEAK", "PROVE_LOCKING")
    kmemleak: bool = True
    lockdep: bool = True
    rows: list[Rows] = field(default_factory=lambda: [IDLE])
    reports: list[str] = field(default_factory=list)
    now: int = 0
    log: list[KernelMessage] = field(default_factory=list)

    def module(self, name: str) -> Guest:
        assert name == "pyharness.guest.judge"
        return self

    def off(self, options: tuple[str, ...]) -> tuple[str, ...]:
        works = {"DEBUG_KMEMLEAK": self.kmemleak, "PROVE_LOCKING": self.lockdep}
        return tuple(option for option in options if not works[option])

    def state(self) -> Rows:
        return self.rows.pop(0) if len(self.rows) > 1 else self.rows[0]

    def hurry(self) -> None:
        pass

    def clock(self) -> tuple[int, float]:
        self.now += 1000
        return self.now, self.now / 100

    def scan(self) -> str:
        return self.reports.pop(0)

    def spawn(self, function: Any) -> Any:
        class Done:
            def result(self, _timeout_s: float) -> Any:
                return function()

        return Done()

    def dmesg(self, start: int = 0) -> list[KernelMessage]:
        return self.log[start:]

    # The machine around it.

    @property
    def guest(self) -> Guest:
        return self

    config = kernel = console = guest

    def has(self, option: str) -> bool:
        return option in self.options

    def check(self) -> None:
        pass

    def explain(self, report: str) -> str:
        return report


def judge_of(guest: Guest) -> Judge:
    return Judge(cast(Machine, guest))


def leak(address: int, jiffies: int) -> str:
    return (
        f'unreferenced object {address:#x} (size 64):\n  comm "x", pid 1, jiffies {jiffies}\n'
        "  backtrace (crc 1):\n    az_blob_open+0x1/0x2 [hv_azure_blob]\n"
    )


def test_leak_is_blamed_on_what_ran_when_it_was_allocated() -> None:
    young = leak(0x10, 2500)
    guest = Guest(reports=["", young, young])
    judged = judge_of(guest)
    for name in ("a::first", "a::second", "a::third"):  # at 1000, 2000, 3000 jiffies
        judged.begin(name)
        judged.verdict()
    with pytest.raises(GuestCrashed, match=r"64 bytes allocated by az_blob_open.* leaked in a::second$") as caught:
        judged.finish()
    assert (caught.value.kind, caught.value.blamed) == (Kind.KMEMLEAK, "a::second")


@pytest.mark.parametrize(
    "reports",
    [["", ""], ["", leak(0x10, 2500), ""], ["", leak(0x10, 2500), leak(0x10, 2600)], ["", leak(0x10, 500)]],
    ids=["none", "gone in the second scan", "another one in the second scan", "of the boot"],
)
def test_what_is_no_leak(reports: list[str]) -> None:
    guest = Guest(reports=reports)
    judged = judge_of(guest)
    judged.begin("first")
    judged.verdict()
    judged.finish()
    assert guest.reports == []


def test_kernel_without_kmemleak_is_not_asked() -> None:
    judged = judge_of(Guest(options=(), kmemleak=False))
    judged.begin("first")
    judged.verdict()
    judged.finish()


def test_detector_that_is_off_is_no_clean_verdict() -> None:
    with pytest.raises(HarnessError, match="has CONFIG_DEBUG_KMEMLEAK, but it is off"):
        judge_of(Guest(kmemleak=False))
    guest = Guest()
    judged = judge_of(guest)
    judged.begin("first")
    guest.lockdep = False
    with pytest.raises(HarnessError, match="has CONFIG_PROVE_LOCKING, but it is off"):
        judged.finish()


def test_what_a_worker_still_has_to_free_is_waited_for() -> None:
    busy = idle_but(pins=(("", 3),))
    judged = judge_of(Guest(rows=[IDLE, busy, busy, IDLE]))
    judged.begin("first")
    judged.verdict()


def test_what_stays_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "_SETTLE_S", 0)
    guest = Guest(rows=[IDLE, idle_but(pins=(("", 3),), devices=())])
    judged = judge_of(guest)
    judged.begin("first")
    with pytest.raises(CheckFailed, match=r"^3 pages are left pinned .* \(and 1 more\)$") as caught:
        judged.verdict()
    assert "device 7e1a0c52 is not bound any more" in caught.value.detail
    # What has been told is not told again of the next.
    judged.begin("second")
    judged.verdict()


def test_report_that_the_kernel_survived() -> None:
    guest = Guest()
    judged = judge_of(guest)
    judged.begin("first")
    guest.log.append(KernelMessage(4, 1.5, "WARNING: CPU: 1 PID: 3 at kernel/hv_azure_blob.c:5 foo+0x1/0x2"))
    with pytest.raises(GuestCrashed, match=r"reported WARNING: .*hv_azure_blob.c:5") as caught:
        judged.verdict()
    assert caught.value.kind is Kind.WARNING


def test_report_that_is_expected() -> None:
    guest = Guest()
    judged = judge_of(guest)
    judged.begin("first")
    guest.log.append(KernelMessage(4, 1.5, "WARNING: CPU: 1 PID: 3 at kernel/hv_azure_blob.c:5 foo+0x1/0x2"))
    judged.verdict(("",), ("hv_azure_blob.c:5",))
    judged.begin("second")
    judged.verdict()


@pytest.mark.parametrize("tolerated", [(), ("even",)])
def test_warning_is_a_fault(tolerated: tuple[str, ...]) -> None:
    guest = Guest()
    judged = judge_of(guest)
    judged.begin("first")
    guest.log.append(KernelMessage(4, 1.5, "that is odd"))
    with pytest.raises(CheckFailed, match=r"warned: .*that is odd"):
        judged.verdict(tolerated)


def test_warning_that_is_expected_or_none() -> None:
    guest = Guest(log=[KernelMessage(4, 1.0, "before")])
    judged = judge_of(guest)
    judged.begin("first")
    guest.log += [KernelMessage(4, 1.5, "that is odd"), KernelMessage(6, 1.6, "that is not")]
    judged.verdict(("odd",))


def test_what_the_log_says_between_two_marks_is_judged() -> None:
    """The modules are loaded there, for one."""
    guest = Guest(reports=["", ""])
    judged = judge_of(guest)
    judged.begin("the loading of the modules")
    guest.log.append(KernelMessage(4, 1.5, "WARNING: CPU: 1 PID: 3 at kernel/hv_azure_blob.c:5 foo+0x1/0x2"))
    with pytest.raises(GuestCrashed, match=r"hv_azure_blob.c:5"):
        judged.begin("first")
    judged.begin("first")
    judged.verdict()
    guest.log.append(KernelMessage(4, 2.5, "that is odd"))
    with pytest.raises(CheckFailed, match="that is odd"):
        judged.finish()


def test_messages_that_are_lost_are_no_clean_log() -> None:
    guest = Guest()
    judged = judge_of(guest)
    judged.begin("first")
    guest.log.append(KernelMessage(3, 0, LOST))
    with pytest.raises(HarnessError, match="more than its log holds"):
        judged.verdict(("",))
