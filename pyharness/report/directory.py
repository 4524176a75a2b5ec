# SPDX-License-Identifier: GPL-2.0-only
"""`--report DIR`: what a session leaves for CI. docs/reports.md says what is in it.

`metadata.json` is there from the start with the verdict "incomplete", so that a run that was killed reads as one.
Every file is written aside and renamed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pyharness.errors import VERDICTS, Exit, HarnessError, UsageError
from pyharness.machine.accel import Accelerator
from pyharness.report.ktap import ktap
from pyharness.report.recorder import Outcome, Recorder, Result
from pyharness.report.subjects import Subject

METADATA, JUNIT, KTAP = "metadata.json", "junit.xml", "results.ktap"
CONSOLES, COVERAGE = "consoles", "coverage"
_FORMAT = 1


@dataclass(eq=False)
class ReportDirectory:
    """Also a pytest plugin of the controller: it keeps the consoles of failed tests, of which others soon are swept."""

    path: Path
    subjects: Sequence[Subject] = ()
    accelerator: Accelerator | None = None
    cold: bool = False
    """Whether the machines boot."""
    _started: float = field(default_factory=time.time)
    _consoles: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> ReportDirectory:
        """Make the directory, and take away what an earlier run left. Raises UsageError when it cannot be written."""
        report = cls(path.absolute())
        try:
            report.path.mkdir(parents=True, exist_ok=True)
            for name in (JUNIT, KTAP):
                (report.path / name).unlink(missing_ok=True)
            for name in (METADATA, JUNIT, KTAP):  # what a killed run had begun to write
                for begun in report.path.glob(f".{name}.*"):
                    begun.unlink(missing_ok=True)
            for directory in (report.path / CONSOLES, report.path / COVERAGE):
                if directory.is_dir():
                    shutil.rmtree(directory)
            report._write(METADATA, report._metadata(Recorder(), "incomplete", None))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(f"cannot write {path}: {reason}", mend="name a directory that you can write to") from error
        return report

    @property
    def pytest_arguments(self) -> list[str]:
        """What makes pytest write its JUnit XML."""
        return [
            f"--junit-xml={self.path / JUNIT}",
            *(
                "-o",
                "junit_logging=system-out",
                "-o",
                "junit_log_passing_tests=false",
                "-o",
                "junit_suite_name=pyharness",
            ),
        ]

    def finish(self, recorder: Recorder, code: int, coverage: dict[str, Any] | None = None) -> None:
        """Write everything. Raises HarnessError when the disk is full."""
        verdict = VERDICTS[Exit(code)] if code in set(Exit) else "incomplete"
        try:
            self._write_junit(recorder)
            if recorder.results:
                self._write(KTAP, ktap(recorder.results.values()))
            self._write(METADATA, self._metadata(recorder, verdict, code, coverage))
        except OSError as problem:
            raise HarnessError(f"cannot write {self.path}: {problem.strerror}", mend="free some space") from problem

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Have pytest write its JUnit XML through a link, so that nobody sees half of it."""
        with suppress(OSError):
            (self.path / JUNIT).symlink_to(self._aside(JUNIT).name)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the console logs that a failure names: the machine's own directory is swept after some more machines."""
        for log in getattr(report, "consoles", ()):
            name = re.sub(r"[^\w.-]+", "_", report.nodeid.rpartition("/")[2]) + f".{Path(log).parent.name}.log"
            with suppress(OSError):
                (self.path / CONSOLES).mkdir(exist_ok=True)
                shutil.copyfile(log, self.path / CONSOLES / name)
                self._consoles[log] = f"{CONSOLES}/{name}"

    def _aside(self, name: str) -> Path:
        return self.path / f".{name}.{os.getpid()}"

    def _write(self, name: str, text: str) -> None:
        aside = self._aside(name)
        try:
            aside.write_text(text)
            aside.replace(self.path / name)
        finally:
            with suppress(OSError):
                aside.unlink()

    def _write_junit(self, recorder: Recorder) -> None:
        """Give what pytest wrote the properties of the run and of each test on a kernel, and what has not run."""
        aside = self._aside(JUNIT)
        if not aside.exists():
            (self.path / JUNIT).unlink(missing_ok=True)
            return
        tree = ET.parse(aside)
        aside.unlink()
        suite = tree.getroot().find("testsuite")
        if suite is not None:
            suite.insert(0, _properties(self._run_facts()))
            facts = {subject.name: _kernel_facts(subject) for subject in self.subjects}
            for case in suite.findall("testcase"):
                if "name" not in case.attrib:  # what was under way at an interrupt
                    suite.remove(case)
            missing = [result for result in recorder.results.values() if result.outcome is Outcome.NOT_RUN]
            suite.extend(_not_run(result) for result in missing)
            for counter in ("tests", "errors"):
                suite.set(counter, str(int(suite.get(counter, "0")) + len(missing)))
            for case in suite.iter("testcase"):
                kernel = recorder.kernel_of(f"::{case.get('name', '')}")
                if kernel:
                    case.insert(0, _properties({"kernel": kernel, **facts.get(kernel, {})}))
        self._write(JUNIT, ET.tostring(tree.getroot(), encoding="unicode", xml_declaration=True))

    def _run_facts(self) -> dict[str, str]:
        facts = {"kernels": " ".join(subject.name for subject in self.subjects)}
        if self.accelerator:
            facts |= {"accelerator": self.accelerator.name}
        if self.subjects:
            prepared = self.subjects[0].prepared
            facts |= {"qemu": prepared.qemu.version, "qemu_key": prepared.qemu.key}
            facts |= {"root_image": prepared.root_image.key}
        return facts

    def _metadata(
        self,
        recorder: Recorder,
        verdict: str,
        code: int | None,
        coverage: dict[str, Any] | None = None,
    ) -> str:
        metadata = {
            "format": _FORMAT,
            "verdict": verdict,
            "exit_code": code,
            "started": datetime.fromtimestamp(self._started, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self._started, 1),
            "host": {
                "name": platform.node(),
                "machine": platform.machine(),
                "kernel": platform.release(),
                "cpus": len(os.sched_getaffinity(0)),
                "python": platform.python_version(),
            },
            "accelerator": vars(self.accelerator) if self.accelerator else None,
            **{name: fact for name, fact in self._run_facts().items() if name not in ("kernels", "accelerator")},
            "kernels": [
                {
                    "name": subject.name,
                    **_kernel_facts(subject),
                    "seconds": round(recorder.seconds(subject.name), 1),
                    "tests": _counts(recorder, subject.name),
                    "coverage": (coverage or {}).get(subject.name),
                }
                for subject in self.subjects
            ],
            "tests": _counts(recorder),
            "failures": [self._failure(result) for result in recorder.failures],
            "problems": [
                {"class": fault.verdict, "headline": fault.message, "mend": fault.mend, "detail": fault.detail}
                for fault in recorder.problems
            ],
        }
        return json.dumps(metadata, indent=2) + "\n"

    def _failure(self, result: Result) -> dict[str, Any]:
        fault = result.fault
        assert fault is not None
        return {
            "test": result.nodeid,
            "kernel": result.kernel,
            "class": fault.verdict,
            "exit_code": int(fault.exit_code),
            "headline": fault.message,
            "mend": fault.mend,
            "command": shlex.join(reproduce(result, self.subjects, cold=self.cold)),
            "consoles": [self._consoles.get(log, log) for log in result.consoles],
        }


def reproduce(result: Result, subjects: Sequence[Subject], *, cold: bool) -> list[str]:
    """The command that, at the top of the repository, runs what a test's failure is blamed on, on the same kernel."""
    chosen = next((subject for subject in subjects if subject.name == result.kernel), None) or next(
        iter(subjects), None
    )
    to_blame = (result.fault and result.fault.blamed) or result.nodeid
    arguments = (*(chosen.arguments if chosen else ()), *(["--cold"] if cold else ()))
    return [".venv/bin/pyharness", "test", *arguments, "--", to_blame]


def _kernel_facts(subject: Subject) -> dict[str, str]:
    prepared = subject.prepared
    return {
        "release": prepared.kernel.release,
        "version": prepared.kernel.version,
        "kernel_key": prepared.kernel.key,
        "hv_azure_blob": prepared.modules.driver.hash,
        "hv_vmbus": prepared.modules.vmbus.hash,
    }


def _counts(recorder: Recorder, kernel: str | None = None) -> dict[str, int]:
    return {outcome.value.replace(" ", "_"): count for outcome, count in recorder.counts(kernel).items()}


def _not_run(result: Result) -> ET.Element:
    """A test that a reader of the JUnit alone must not take for one that does not exist."""
    classname = result.file.removesuffix(".py").replace("/", ".")
    case = ET.Element("testcase", classname=classname, name=result.test, time="0")
    ET.SubElement(case, "error", message="the session ended before it was run")
    return case


def _properties(facts: dict[str, str]) -> ET.Element:
    properties = ET.Element("properties")
    for name, value in facts.items():
        ET.SubElement(properties, "property", name=name, value=value)
    return properties
