# SPDX-License-Identifier: GPL-2.0-only
"""From the counters of many machines to gcovr's trace of a source file, and from traces to HTML."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyharness.artifacts.run import run
from pyharness.coverage.collect import kept_name, machines, stamp_of
from pyharness.errors import HarnessError


class Trace:
    """One source file in gcovr's JSON format."""

    def __init__(self, content: dict[str, Any], name: str) -> None:
        """Of all the files in `content` only `name`."""
        self.file: dict[str, Any] = next(file for file in content["files"] if file["file"] == name)
        self.content = content | {"files": [self.file]}

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What was compiled to code: `line_number`, `count`, and `branches` with a `count` each."""
        lines: list[dict[str, Any]] = self.file["lines"]
        return lines

    def keep(self, numbers: set[int]) -> None:
        """Drop all lines but these, and the functions that have none left."""
        self.file["lines"] = [line for line in self.lines if line["line_number"] in numbers]
        names = {line["function_name"] for line in self.lines}
        self.file["functions"] = [function for function in self.file["functions"] if function["name"] in names]


def trace_of(sources: Path, name: str, directory: Path, gcc: str) -> Trace:
    """What the machines in `directory` counted together of the file `name`, compiled by `gcc` in `sources`.

    Raises HarnessError when a tool of the compiler is missing or cannot read the data.
    """
    notes = (sources / name).with_suffix(".gcno")
    if not notes.exists():
        raise HarnessError(f"{name} was not compiled for coverage", mend="take a kernel with CONFIG_GCOV_KERNEL")
    kept = [machine / kept_name(notes.stem, stamp_of(notes.read_bytes())) for machine in machines(directory)]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        counted = work / "counted"
        counted.mkdir()
        _merge([path for path in kept if path.exists()], counted / f"{notes.stem}.gcda", gcc, work)
        shutil.copyfile(notes, counted / notes.name)
        root = sources.resolve()
        options = {
            "--gcov-executable": gcc.replace("gcc", "gcov"),
            # The kernel's headers were compiled in too, and are not below the root.
            "--gcov-ignore-errors": "source_not_found",
            "--filter": re.escape(str(root / name)) + "$",
            "--json": str(work / "trace.json"),
        }
        _gcovr("--root", root, *(word for option in options.items() for word in option), counted)
        return Trace(json.loads((work / "trace.json").read_text()), name)


def write_html(traces: Sequence[Trace], tree: Path, title: str, report: Path) -> None:
    """Make `report` a directory with index.html, a page for each file of the sources in `tree`; the old one goes."""
    report.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{report.name}.", dir=report.parent) as temporary:
        work = Path(temporary)
        added: list[str | Path] = []
        for index, trace in enumerate(traces):
            path = work / f"{index}.json"
            path.write_text(json.dumps(trace.content))
            added += ["--add-tracefile", path]
        fresh = work / "report"
        fresh.mkdir()
        _gcovr("--root", tree, *added, "--html-details", fresh / "index.html", "--html-title", title)
        shutil.rmtree(report, ignore_errors=True)
        fresh.rename(report)


def _merge(found: Sequence[Path], into: Path, gcc: str, work: Path) -> None:
    """Add the counters of all files up. gcov-tool takes directories, two at a time."""
    for index, path in enumerate(found):
        if index == 0:
            shutil.copyfile(path, into)
            continue
        more, total = work / f"{index}", work / f"{index}.sum"
        more.mkdir()
        shutil.copyfile(path, more / into.name)
        run([gcc.replace("gcc", "gcov-tool"), "merge", into.parent, more, "-o", total])
        shutil.copyfile(total / into.name, into)


def _gcovr(*arguments: str | Path) -> None:
    run([sys.executable, "-m", "gcovr", *arguments])
