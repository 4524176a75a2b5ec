# SPDX-License-Identifier: GPL-2.0-only
"""The formats of the checks' results, read by the tools that are for them; and the files for CI systems."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import junitparser
import pytest
from ruamel.yaml import YAML
from sarif import loader

from pyharness import repository
from pyharness.checks import CHECKS
from pyharness.checks.check import Check
from pyharness.checks.context import Context
from pyharness.checks.finding import Finding
from pyharness.checks.formats import as_github, as_json, as_junit, as_sarif, lines_of
from pyharness.checks.run import Result, Verdict
from pyharness.cli import build_parser
from tests.unit.copied_tree import copied_tree


def nothing(_context: Context) -> list[Finding]:
    return []


LINE = Finding("kernel/a.c", 7, '50% of it, at: two <places>\nand "more"', "SPACING")
WHOLE = Finding("dir,with:marks/b.h", 0, "has no tag")
RESULTS = [
    Result(Check("sound", "what is sound", nothing, ()), Verdict.PASS, seconds=1.25),
    Result(Check("known", "what is known", nothing, ()), Verdict.PASS, remembered=True),
    Result(Check("broken", "what is broken", nothing, ()), Verdict.FAIL, (LINE, WHOLE), seconds=0.5),
    Result(Check("absent", "what is absent", nothing, ()), Verdict.SKIP, missing=("x is not installed; install y",)),
]


def test_text() -> None:
    assert [line for result in RESULTS for line in lines_of(result)] == [
        "pass  sound            what is sound (1.2 s)",
        "pass  known            what is known (cached)",
        "fail  broken           what is broken (0.5 s)",
        f"      kernel/a.c:7: {LINE.message} [SPACING]",
        "      dir,with:marks/b.h: has no tag",
        "skip  absent           what is absent",
        "      x is not installed; install y",
    ]


def test_json() -> None:
    rows = json.loads(as_json(RESULTS))
    assert [row["verdict"] for row in rows] == ["pass", "pass", "fail", "skip"]
    assert [Finding(**finding) for finding in rows[2]["findings"]] == [LINE, WHOLE]
    assert rows[3]["missing"] == ["x is not installed; install y"]


def test_sarif_loads(tmp_path: Path) -> None:
    path = tmp_path / "check.sarif"
    path.write_text(as_sarif(RESULTS))
    loaded = loader.load_sarif_file(str(path))
    assert loaded.get_distinct_tool_names() == ["pyharness check"]
    assert [(record["Location"], record["Line"], record["Severity"]) for record in loaded.get_records()] == [
        (LINE.file, LINE.line, "error"),
        ("dir%2Cwith%3Amarks/b.h", 1, "error"),
    ]
    (run,) = json.loads(path.read_text())["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rules[result["ruleIndex"]]["id"] for result in run["results"]] == ["broken", "broken"]
    (notification,) = run["invocations"][0]["toolExecutionNotifications"]
    assert "absent was skipped: x is not installed" in notification["message"]["text"]


def test_sarif_has_what_code_scanning_asks_for() -> None:
    document = json.loads(as_sarif(RESULTS))
    assert document["version"] == "2.1.0"
    (run,) = document["runs"]
    for result in run["results"]:
        assert result["level"] in {"error", "warning", "note", "none"}
        assert result["message"]["text"]
        (location,) = result["locations"]
        place = location["physicalLocation"]
        assert not place["artifactLocation"]["uri"].startswith("/")
        assert place["region"]["startLine"] >= 1


def test_junit_loads(tmp_path: Path) -> None:
    path = tmp_path / "check.xml"
    path.write_text(as_junit(RESULTS))
    (suite,) = junitparser.JUnitXml.fromfile(str(path))
    assert (suite.tests, suite.failures, suite.skipped, suite.errors) == (4, 1, 1, 0)
    cases = {case.name: case for case in suite}
    assert list(cases) == ["sound", "known", "broken", "absent"]
    (failure,) = cases["broken"].result
    assert failure.text == f"{LINE}\n{WHOLE}"
    (skipped,) = cases["absent"].result
    assert skipped.message == "x is not installed; install y"
    assert cases["sound"].is_passed


def test_annotations_escape_what_github_splits_at() -> None:
    assert as_github(RESULTS).splitlines() == [
        '::error file=kernel/a.c,line=7,title=broken::50%25 of it, at: two <places>%0Aand "more" [SPACING]',
        "::error file=dir%2Cwith%3Amarks/b.h,line=1,title=broken::has no tag",
        "::warning title=absent::skipped: x is not installed; install y",
    ]


def test_without_findings_there_is_no_annotation() -> None:
    assert as_github(RESULTS[:2]) == ""


def load(name: str) -> Any:
    return YAML(typ="safe").load(repository.ROOT / name)


def commands_of_workflow() -> Iterator[list[str]]:
    for job in load(".github/workflows/ci.yml")["jobs"].values():
        for step in job["steps"]:
            for target, arguments in re.findall(r'^make (\w+)(?: ARGS="([^"]*)")?', step.get("run", "")):
                yield [target, *shlex.split(arguments)]


def test_the_workflow_calls_the_commands_as_they_are() -> None:
    commands = list(commands_of_workflow())
    assert [command[0] for command in commands] == ["check", "check", "test"]
    for command in commands:
        assert build_parser(command[0]).parse_args(command).command == command[0]


def hooks() -> dict[str, Any]:
    (local,) = load(".pre-commit-config.yaml")["repos"]
    return {hook["id"]: hook for hook in local["hooks"]}


def test_the_hooks_call_checks_that_there_are() -> None:
    names = {check.name for check in CHECKS}
    for hook in hooks().values():
        program, *words = shlex.split(hook["entry"])
        assert program == ".venv/bin/pyharness"
        chosen = build_parser("check").parse_args(words).only
        assert chosen is None or set(chosen) <= names


@pytest.mark.parametrize("fault", [False, True])
def test_a_hook_runs(fault: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copied_tree(tmp_path / "copy")
    (copy / ".venv").symlink_to(sys.prefix)
    if fault:
        (copy / "pyharness" / "planted.py").write_text("import os\n")
    monkeypatch.setenv("PYTHONPATH", str(copy))
    monkeypatch.setenv("PYHARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "home"))
    subprocess.run(["git", "add", "."], cwd=copy, check=True)
    command = [str(Path(sys.executable).with_name("pre-commit")), "run", "tree", "--all-files"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == int(fault), done.stdout + done.stderr
    assert ("pyharness/planted.py: has no tag, must have GPL-2.0-only [tag]" in done.stdout) == fault
