# SPDX-License-Identifier: GPL-2.0-only
"""The main job as a user runs it: `pyharness run` in a process of its own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pyharness import repository
from pyharness.artifacts.prepare import Prepared
from pyharness.client.blob import CHUNK_BYTES
from pyharness.errors import Exit

# Ends only a wait that would last for ever; no verdict depends on it.
PATIENCE_S = 300.0
MARK = "PYHARNESS_TEST_RUN"

pytestmark = pytest.mark.usefixtures("prepared")


@dataclass
class Run:
    """`pyharness run` with a mark in its environment that every process of it inherits."""

    arguments: tuple[str, ...]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    output: str = ""

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyharness", "run", *self.arguments],
            cwd=repository.ROOT,
            env={**os.environ, MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, text: str) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.output += line
            if text in line:
                return
        pytest.fail(f"the run ended before it said {text!r}:\n{self.output}")

    def finish(self) -> int:
        assert self.process.stderr
        self.output += self.process.stderr.read()
        return self.process.wait(PATIENCE_S)

    def processes(self) -> list[int]:
        """Every live process that descends from this run, however it was re-parented."""
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{MARK}={self.mark}".encode() in environment.read_bytes().split(b"\0"):
                    found.append(int(environment.parent.name))
            except OSError:
                continue  # it has ended, or is another user's
        return found

    def wait_until_gone(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.processes():
            assert time.monotonic() < deadline, f"left running: {self.processes()}"
            time.sleep(0.05)


@pytest.fixture
def clean_exit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A place for run directories that nobody else uses; its path is short, for the sake of the sockets."""
    with tempfile.TemporaryDirectory(prefix="run-") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        yield
        assert list(Path(runtime).iterdir()) == []


def report_of(path: Path) -> dict[str, object]:
    report = json.loads(path.read_text())
    assert isinstance(report, dict)
    return report


@pytest.mark.usefixtures("clean_exit")
def test_the_booted_kernel_goes_through_and_back(tmp_path: Path, prepared: Prepared) -> None:
    path = tmp_path / "run.json"
    run = Run(("--json", str(path), "--kernel", prepared.kernel.name))
    assert run.finish() == Exit.OK, run.output
    assert run.processes() == []

    report = report_of(path)
    assert report["verdict"] == "pass"
    assert report["accelerator"] in ("tcg", "kvm")
    assert prepared.kernel.release in str(report["kernel"])
    assert prepared.qemu.key in str(report["qemu"])
    assert report["driver"] == prepared.modules.driver.hash
    assert report["bytes"] == prepared.kernel.vmlinuz.stat().st_size > 10_000_000 or "6.1" in prepared.kernel.name
    assert report["sha256_match"] is True
    assert report["kernel_warnings"] == []
    stages = report["stages"]
    assert isinstance(stages, list)
    assert [stage["name"] for stage in stages][-5:] == ["boot", "load", "upload", "download", "unload"]
    # What the run is done with comes before the boot.
    said = run.output
    for fact in ("accelerator ", prepared.kernel.release, prepared.modules.driver.hash, prepared.modules.vmbus.hash):
        assert -1 < said.index(fact) < said.index("boot: ")


@pytest.mark.usefixtures("clean_exit")
@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES + 12345])
def test_files_of_any_size(tmp_path: Path, prepared: Prepared, size: int) -> None:
    """Empty, tiny, and larger than one request carries; the name is no simple one either."""
    file = tmp_path / "a file, with % and ü"
    file.write_bytes(random.Random(size).randbytes(size))
    path = tmp_path / "run.json"
    run = Run((str(file), "--json", str(path), "--kernel", prepared.kernel.name))
    assert run.finish() == Exit.OK, run.output
    report = report_of(path)
    assert (report["verdict"], report["bytes"], report["sha256_match"]) == ("pass", size, True)


@pytest.mark.usefixtures("clean_exit")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 128 + signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
@pytest.mark.parametrize("moment", ["hv_vmbus ", "boot: ", "load: "])
def test_an_interrupted_run_leaves_nothing(
    number: signal.Signals, status: int, moment: str, prepared: Prepared
) -> None:
    run = Run(("--kernel", prepared.kernel.name))
    run.wait_for(moment)
    # As a terminal does: the whole foreground process group gets it.
    os.killpg(run.process.pid, number)
    assert run.finish() == status, run.output
    assert "Traceback" not in run.output
    run.wait_until_gone()


def test_a_killed_run_leaves_no_process(prepared: Prepared) -> None:
    run = Run(("--kernel", prepared.kernel.name))
    run.wait_for("boot: ")
    assert len(run.processes()) > 1, "QEMU should be running"
    run.process.kill()
    run.finish()
    run.wait_until_gone()
