# SPDX-License-Identifier: GPL-2.0-only
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyharness.artifacts.cache import Cache
from pyharness.machine import accel, kvm_probe
from pyharness.machine.accel import choose_accelerator


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYHARNESS_CACHE", str(tmp_path / "cache"))


def test_without_a_device_the_reason_says_so(tmp_path: Path) -> None:
    chosen = choose_accelerator(tmp_path / "kvm")
    assert chosen.name == "tcg"
    assert "cannot be opened: No such file" in chosen.reason


def test_a_file_that_opens_is_not_enough() -> None:
    chosen = choose_accelerator(Path("/dev/null"))
    assert chosen.name == "tcg"
    assert "is no KVM" in chosen.reason


def test_the_capability_alone_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "_lacks", lambda device: "")
    monkeypatch.setattr(accel, "_probe", lambda: "KVM does not run the smallest guest: status 1")
    assert choose_accelerator().name == "tcg"


def test_the_probe_runs_once_per_boot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(accel, "_lacks", lambda device: "")
    monkeypatch.setattr(accel, "_probe", lambda: calls.append(1) or "")  # type: ignore[func-returns-value]
    assert [choose_accelerator().name for _ in range(3)] == ["kvm"] * 3
    assert len(calls) == 1
    boot = tmp_path / "boot_id"
    boot.write_text("another boot\n")
    monkeypatch.setattr(accel, "_BOOT_ID", boot)
    choose_accelerator()
    assert len(calls) == 2
    assert Cache.open().recall("kvm-probe") == {"boot": "another boot", "problem": ""}


def test_a_probe_that_hangs_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(argv: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(argv, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert "did not run the smallest guest in" in accel._probe()


def test_the_probe_never_ends_in_a_traceback() -> None:
    """Whatever KVM this machine has or lacks, the program says yes or gives one line."""
    argv = [sys.executable, "-m", "pyharness.machine.kvm_probe"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1)
    assert (done.returncode == 0) == (done.stderr == "")
    assert "Traceback" not in done.stderr
    assert kvm_probe.KVM_CAP_HYPERV_SYNIC2 == 148
