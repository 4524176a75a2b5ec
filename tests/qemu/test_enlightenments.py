# SPDX-License-Identifier: GPL-2.0-only
"""The Hyper-V enlightenments of our QEMU under TCG, from the inside of bare-metal guests (qemu/tests)."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyharness.artifacts.qemu import Qemu

# Ends only a guest that would wait for ever; no verdict depends on it.
PATIENCE_S = 180.0

# QEMU's exit status for what a guest writes to isa-debug-exit (EXIT_PASS and EXIT_FAIL in qemu/tests/lib/guest.c).
PASSED, FAILED = 0x10 * 2 + 1, 0x11 * 2 + 1

ALL_OFFERED = "hv-relaxed,hv-vpindex,hv-synic,hv-time,hv-runtime,hv-crash,hv-reset"
NOT_OFFERED = (
    *("hv-vapic", "hv-stimer", "hv-stimer-direct", "hv-frequencies", "hv-reenlightenment", "hv-tlbflush"),
    *("hv-tlbflush-ext", "hv-tlbflush-direct", "hv-evmcs", "hv-ipi", "hv-avic", "hv-emsr-bitmap", "hv-xmm-input"),
)
TEST_DEVICE = ("-device", "hyperv-testdev")
VMBUS = ("-device", "vmbus-bridge", "-device", "hv-azure-blob")


@dataclass(frozen=True)
class Outcome:
    """How QEMU ended, what the guest printed, and what QEMU itself said."""

    status: int
    console: str
    stderr: str

    def __str__(self) -> str:
        return f"QEMU ended with {self.status}\n{self.stderr}{self.console}"

    @property
    def failures(self) -> list[str]:
        return re.findall(r"^not ok (.*)$", self.console, re.MULTILINE)

    @property
    def summary(self) -> tuple[int, int]:
        """How many checks the guest has made and how many failed; a guest that did not come to its end has none."""
        found = re.search(r"^# (\d+) checks, (\d+) failed\n\Z", self.console, re.MULTILINE)
        assert found, f"the guest did not come to its end: {self}"
        return int(found[1]), int(found[2])


def boot(qemu: Qemu, image: Path, cpu: str, *arguments: str, cpus: int = 1, thread: str = "multi") -> Outcome:
    command = [str(qemu.binary), "-L", str(qemu.firmware), "-M", "q35", "-accel", f"tcg,thread={thread}"]
    command += ["-cpu", cpu, "-smp", str(cpus), "-m", "64", "-nodefaults", "-display", "none", "-serial", "stdio"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", str(image), *arguments]
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        console = (error.output or b"").decode("ascii", "replace")
        pytest.fail(f"{image.name} was not done after {PATIENCE_S:.0f} s and had printed:\n{console}")
    return Outcome(ended.returncode, ended.stdout.decode("ascii", "replace"), ended.stderr.decode(errors="replace"))


@pytest.mark.parametrize("thread", ["multi", "single"])
@pytest.mark.parametrize(
    ("image", "cpus", "devices"),
    [
        ("partition", 2, ()),
        ("synic", 2, TEST_DEVICE),
        ("synic", 4, TEST_DEVICE),
        ("events", 1, TEST_DEVICE),
        ("events", 2, TEST_DEVICE),
        ("reset", 2, VMBUS),
        ("takeover", 1, VMBUS),
    ],
)
def test_guest(qemu: Qemu, images: Path, image: str, cpus: int, devices: tuple[str, ...], thread: str) -> None:
    outcome = boot(qemu, images / image, f"max,{ALL_OFFERED}", *devices, cpus=cpus, thread=thread)
    checks, failed = outcome.summary
    assert outcome.failures == []
    assert (outcome.status, failed) == (PASSED, 0), outcome
    assert checks > 0


@pytest.mark.parametrize(("image", "cpu"), [("plain", "max"), ("enforce", "max,hv-time,hv-enforce-cpuid")])
def test_a_cpu_that_lacks_enlightenments(qemu: Qemu, images: Path, image: str, cpu: str) -> None:
    outcome = boot(qemu, images / image, cpu)
    assert outcome.failures == []
    assert outcome.summary[1] == 0
    assert outcome.status == PASSED


def test_the_checks_can_fail(qemu: Qemu, images: Path) -> None:
    """What holds without enlightenments does not hold with them."""
    outcome = boot(qemu, images / "plain", f"max,{ALL_OFFERED}")
    assert "CPUID: TCG's own signature: got 0x0 want 0x1" in outcome.failures
    assert outcome.summary[1] == len(outcome.failures)
    assert outcome.status == FAILED


@pytest.mark.parametrize("flag", NOT_OFFERED)
def test_what_is_not_offered_is_refused(qemu: Qemu, images: Path, flag: str) -> None:
    outcome = boot(qemu, images / "plain", f"max,{ALL_OFFERED},{flag}")
    assert (outcome.status, outcome.console) == (1, "")
    assert outcome.stderr.endswith(f"TCG does not provide {flag}\n")


@pytest.mark.parametrize(
    ("flags", "cause"),
    [("hv-synic", "hv-synic requires hv-vpindex"), ("hv-passthrough", "hv-passthrough needs KVM")],
)
def test_flags_that_cannot_work_are_refused(qemu: Qemu, images: Path, flags: str, cause: str) -> None:
    outcome = boot(qemu, images / "plain", f"max,{flags}")
    assert (outcome.status, outcome.console) == (1, "")
    assert outcome.stderr.endswith(f"{cause}\n")
