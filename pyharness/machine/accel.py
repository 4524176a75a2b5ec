# SPDX-License-Identifier: GPL-2.0-only
"""Which accelerator runs the guest, decided by what /dev/kvm can do and never by its existence."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.machine.kvm_probe import KVM_CAP_HYPERV_SYNIC2, KVM_CHECK_EXTENSION

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Accelerator:
    """QEMU's accelerator, `tcg` or `kvm`, and why it was chosen."""

    name: str
    reason: str


def choose_accelerator(device: Path = Path("/dev/kvm")) -> Accelerator:
    """KVM when it has Hyper-V's SynIC and demonstrably runs a guest, else TCG."""
    problem = _lacks(device) or _fails_to_run(Cache.open())
    if problem:
        return Accelerator("tcg", problem)
    return Accelerator("kvm", f"{device} has Hyper-V's SynIC and runs a guest")


def _lacks(device: Path) -> str:
    try:
        kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{device} cannot be opened: {error.strerror}"
    try:
        if fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_HYPERV_SYNIC2) <= 0:
            return f"{device} opens, but has no KVM_CAP_HYPERV_SYNIC2"
    except OSError as error:
        return f"{device} opens, but is no KVM: {error.strerror}"
    finally:
        os.close(kvm)
    return ""


def _fails_to_run(cache: Cache) -> str:
    """Why KVM does not run the smallest guest, or nothing; asked once per boot of this machine."""
    boot = _BOOT_ID.read_text().strip()
    known = cache.recall("kvm-probe")
    if known is None or known["boot"] != boot:
        known = {"boot": boot, "problem": _probe()}
        cache.remember("kvm-probe", known)
    return str(known["problem"])


def _probe() -> str:
    argv = [sys.executable, "-m", "pyharness.machine.kvm_probe"]
    try:
        done = subprocess.run(argv, cwd=repository.ROOT, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"KVM did not run the smallest guest in {_PROBE_TIMEOUT_S:g} s"
    said = done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"
    return f"KVM does not run the smallest guest: {said}" if done.returncode else ""
