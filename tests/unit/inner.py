# SPDX-License-Identifier: GPL-2.0-only
"""Sessions within a test: the real thing over made-up kernels, in a process of its own.

`python -m tests.unit.inner SPEC` is that process; `inner_session` makes the directory that it runs in.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pyharness.artifacts.kernels import Kernel
from pyharness.artifacts.modules import Module, Modules
from pyharness.artifacts.prepare import Prepared
from pyharness.artifacts.qemu import Qemu
from pyharness.artifacts.rootimage import RootImage
from pyharness.machine.accel import Accelerator
from pyharness.report.directory import ReportDirectory
from pyharness.report.session import Session
from pyharness.report.subjects import Subject
from tests.marked import PATIENCE_S, Marked

CONFTEST = "from tests.conftest import kernel_choice, prepared, subject\n"


def fake_subject(directory: Path, name: str, options: Sequence[str] = ()) -> Subject:
    """A kernel that has these options and nothing else that is real."""
    boot = directory / name / "boot"
    boot.mkdir(parents=True, exist_ok=True)
    (boot / "config-6.0").write_text("".join(f"CONFIG_{option}=y\n" for option in options))
    nothing = Path("/nonexistent")
    kernel = Kernel(name, f"key-{name}", "6.0", "6.0-1", "gcc", directory / name, nothing, nothing)
    modules: Future[Modules] = Future()
    made = (Module(part, f"{part}-for-{name}", nothing, nothing, nothing) for part in ("vmbus", "driver"))
    modules.set_result(Modules(*made))
    qemu = Qemu(nothing, nothing, "10.0", "key-qemu")
    return Subject(Prepared(kernel, RootImage(nothing, "key-image"), qemu, modules), ("--kernel", name))


@dataclass
class Inner:
    """A directory of tests, and the session over it."""

    directory: Path
    kernels: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"debian-6.12": (), "other": ("EXTRA",)})
    jobs: int = 1
    report: Path | None = None
    arguments: tuple[str, ...] = ()
    running: Marked | None = None

    def write(self, name: str, text: str, conftest: str = CONFTEST) -> Inner:
        """Add a file of tests."""
        tests = self.directory / "inner"
        tests.mkdir(exist_ok=True)
        (tests / "conftest.py").write_text(conftest)
        (tests / name).write_text(text)
        return self

    def command(self) -> list[str]:
        """What starts the session."""
        spec = self.directory / "spec.json"
        spec.write_text(
            json.dumps(
                {
                    "directory": str(self.directory),
                    "kernels": dict(self.kernels),
                    "jobs": self.jobs,
                    "report": str(self.report) if self.report else None,
                    "arguments": self.arguments,
                }
            )
        )
        return [sys.executable, "-m", "tests.unit.inner", str(spec)]

    def start(self) -> Marked:
        """Begin it."""
        self.running = Marked(self.command(), self.directory / "output")
        return self.running

    def run(self) -> int:
        """From start to end."""
        return self.start().finish()

    @property
    def output(self) -> str:
        """What it has said."""
        return (self.directory / "output").read_text()

    def wait_for(self, name: str, count: int = 1) -> None:
        """Wait until this many files match the pattern `name` in the directory."""
        assert self.running
        deadline = time.monotonic() + PATIENCE_S
        while len(list(self.directory.glob(name))) < count:
            assert self.running.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """Each test's result, by its id."""
        results = json.loads((self.directory / "results.json").read_text())
        assert isinstance(results, dict)
        return results

    @property
    def outcomes(self) -> dict[str, str]:
        """Each test's outcome, by its id without the directory."""
        return {nodeid.removeprefix("inner/"): result["outcome"] for nodeid, result in self.results.items()}


def main() -> int:
    """Run the session that the file in the first argument describes."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    directory = Path(spec["directory"])
    subjects = [fake_subject(directory, name, options) for name, options in spec["kernels"].items()]
    report = ReportDirectory.open(Path(spec["report"])) if spec["report"] else None
    if report:
        report.subjects, report.accelerator = subjects, Accelerator("tcg", "because")
    arguments = ["-c", "/dev/null", f"--rootdir={directory}", "-p", "no:cacheprovider", *spec["arguments"]]
    session = Session([*arguments, str(directory / "inner")], subjects, spec["jobs"], report=report)
    code = session.run()
    results = {
        nodeid: {**asdict(result), "outcome": result.outcome.value}
        for nodeid, result in session.recorder.results.items()
    }
    (directory / "results.json").write_text(json.dumps(results))
    return code


if __name__ == "__main__":
    sys.exit(main())
