# SPDX-License-Identifier: GPL-2.0-only
"""From counters to numbers, an HTML report, and a verdict."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyharness import repository
from pyharness.artifacts.kernels import Kernel
from pyharness.artifacts.modules import Modules
from pyharness.artifacts.patches import touched_by
from pyharness.coverage.changes import changed_lines
from pyharness.coverage.collect import machines
from pyharness.coverage.gcov import trace_of, write_html
from pyharness.coverage.reasons import MINIMUM_PERCENT, REASONS, Reason, SourceText, explain, load_reasons

DRIVER_SOURCE = "kernel/hv_azure_blob.c"

REPORT = repository.BUILD / "coverage"


@dataclass(frozen=True)
class Subject:
    """A file to measure: `name` below `sources`, all of it or the lines in `only`."""

    sources: Path
    name: str
    only: frozenset[int] | None = None


@dataclass(frozen=True)
class Count:
    """How many of `total` lines or branches have run."""

    covered: int
    total: int

    @property
    def percent(self) -> float:
        """Rounded down to a tenth: it is 100 only when nothing is missing."""
        return self.covered * 1000 // self.total / 10 if self.total else 100.0


@dataclass(frozen=True)
class UncoveredLine:
    """A line that has not run; `reason` is empty when nobody has given one."""

    file: str
    line: int
    function: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}(): {self.text}"


@dataclass(frozen=True)
class Coverage:
    """What has run of the driver and of the lines that kernel/patches change in hv_vmbus."""

    kernel: str
    machines: int
    lines: Count
    branches: Count
    uncovered: tuple[UncoveredLine, ...]
    stale: tuple[Reason, ...]
    """Reasons for lines that are not there, or that have run."""
    html: Path

    @classmethod
    def of(cls, directory: Path, kernel: Kernel, modules: Modules, report: Path = REPORT) -> Coverage:
        """What the machines in `directory` (that of a Collector) counted together of `modules`.

        `report` becomes the HTML report, index.html and uncovered.txt in it; what was there before goes. Raises
        HarnessError when a tool is missing, the kernel does not count, or the table of reasons is damaged.
        """
        patches = sorted((repository.ROOT / "kernel" / "patches").glob("*.patch"))
        vmbus = modules.vmbus.sources
        subjects = (
            Subject(modules.driver.sources, DRIVER_SOURCE),
            *(
                Subject(vmbus, name, frozenset(changed_lines(patches, vmbus, name)))
                for name in touched_by(patches)
                if name.endswith(".c")
            ),
        )
        return cls.of_subjects(directory, kernel.name, kernel.gcc, subjects, load_reasons(), report)

    @classmethod
    def of_subjects(
        cls,
        directory: Path,
        kernel: str,
        gcc: str,
        subjects: Sequence[Subject],
        reasons: Sequence[Reason],
        report: Path,
    ) -> Coverage:
        """As `of`, for any files."""
        traces = []
        for subject in subjects:
            trace = trace_of(subject.sources, subject.name, directory, gcc)
            if subject.only is not None:
                trace.keep(set(subject.only))
            traces.append((subject, trace))
        with tempfile.TemporaryDirectory() as temporary:
            tree = Path(temporary)
            for subject in subjects:
                (tree / subject.name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(subject.sources / subject.name, tree / subject.name)
            write_html([trace for _, trace in traces], tree, f"Coverage on {kernel}", report)
        sources = {subject.name: SourceText((subject.sources / subject.name).read_text()) for subject in subjects}
        lines = [(subject.name, line) for subject, trace in traces for line in trace.lines]
        missing = {(name, line["line_number"]) for name, line in lines} - {
            (name, line["line_number"]) for name, line in lines if line["count"]
        }
        branches = [branch["count"] > 0 for _, line in lines for branch in line["branches"]]
        total = len({(name, line["line_number"]) for name, line in lines})
        explained, stale = explain(reasons, sources, missing)
        coverage = cls(
            kernel=kernel,
            machines=len(machines(directory)),
            lines=Count(total - len(missing), total),
            branches=Count(sum(branches), len(branches)),
            uncovered=tuple(
                UncoveredLine(
                    file=name,
                    line=number,
                    function=sources[name].function_at(number),
                    text=sources[name].line(number),
                    reason=explained.get((name, number), ""),
                )
                for name, number in sorted(missing)
            ),
            stale=tuple(stale),
            html=report / "index.html",
        )
        (report / "uncovered.txt").write_text(coverage.details() + "\n")
        return coverage

    @property
    def summary(self) -> str:
        """One line for a terminal."""
        return (
            f"coverage on {self.kernel}: {self.lines.percent:g} % of {self.lines.total} lines, "
            f"{self.branches.percent:g} % of {self.branches.total} branches"
        )

    @property
    def faults(self) -> list[str]:
        """Why the coverage does not suffice, a line each; nothing when it does."""
        found = []
        if self.lines.percent < MINIMUM_PERCENT:
            found.append(f"{self.lines.percent:g} % of the lines have run, {MINIMUM_PERCENT:g} % are asked for")
        table = REASONS.relative_to(repository.ROOT)
        return found + [f"has not run, and {table} says not why: {line}" for line in self.uncovered if not line.reason]

    @property
    def verdict(self) -> str:
        """The faults in one line; empty when the coverage suffices."""
        faults = self.faults
        more = f" (and {len(faults) - 1} more, see {self.html.with_name('uncovered.txt')})" if len(faults) > 1 else ""
        return f"coverage on {self.kernel}: {faults[0]}{more}" if faults else ""

    def details(self) -> str:
        """The uncovered lines with their reasons, and the reasons that are out of date."""
        text = [self.summary]
        text += [f"{line}\n    {line.reason or 'NO REASON'}" for line in self.uncovered]
        text += [f"out of date, nothing of it is uncovered: {reason}" for reason in self.stale]
        return "\n".join(text)

    def facts(self) -> dict[str, Any]:
        """For a program to read."""
        return {
            "kernel": self.kernel,
            "machines": self.machines,
            "lines": asdict(self.lines) | {"percent": self.lines.percent},
            "branches": asdict(self.branches) | {"percent": self.branches.percent},
            "uncovered": [asdict(line) for line in self.uncovered],
            "stale": [asdict(reason) for reason in self.stale],
            "faults": self.faults,
            "html": str(self.html),
        }
