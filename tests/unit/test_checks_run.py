# SPDX-License-Identifier: GPL-2.0-only
"""What surrounds the checks: missing tools, remembered verdicts, mending, interruption, and the command itself."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import pytest

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.checks import CHECKS
from pyharness.checks.check import Check
from pyharness.checks.context import Artifacts, Context, list_files
from pyharness.checks.finding import Finding
from pyharness.checks.needs import Library, Tool, VenvTool
from pyharness.checks.run import Result, Verdict, run_checks
from pyharness.checks.tools import Output, Runner, ToolFailed
from pyharness.commands import doctor
from pyharness.errors import Exit, HarnessError
from pyharness.progress import Progress
from tests.unit.copied_tree import copied_tree

# Split so that the checks do not take these for a fault and a tag of this file.
TAG = "SPDX-License-" + "Identifier: "
MISSPELT = "re" + "cieve"
TOOLS = {need.name: need for check in CHECKS for need in check.needs if isinstance(need, Tool)}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    subprocess.run(["git", "init", "-q", root], check=True)
    (root / "one.txt").write_text("sound\n")
    return root


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(Cache(tmp_path / "cache"), Progress(quiet=True))


class Counted:
    """A check of the text files that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.check = Check("counted", "no fault in a text", self.examine, inputs=("*.txt",))

    def examine(self, context: Context) -> Sequence[Finding]:
        self.asked += 1
        return [Finding(file, 1, "a fault") for file in context.select("*.txt") if "fault" in context.text(file)]


def run_one(check: Check, tree: Path, artifacts: Artifacts) -> Result:
    (result,) = run_checks([check], tree, artifacts, jobs=1)
    return result


def test_a_verdict_is_remembered_for_the_same_inputs_alone(tree: Path, artifacts: Artifacts) -> None:
    counted = Counted()
    assert run_one(counted.check, tree, artifacts).verdict is Verdict.PASS
    assert run_one(counted.check, tree, artifacts).remembered
    assert counted.asked == 1
    (tree / "two.md").write_text("no input: fault\n")
    assert run_one(counted.check, tree, artifacts).remembered
    (tree / "one.txt").write_text("a fault\n")
    for remembered in (False, True):
        result = run_one(counted.check, tree, artifacts)
        assert (result.verdict, result.remembered) == (Verdict.FAIL, remembered)
        assert result.findings == (Finding("one.txt", 1, "a fault"),)
    (tree / "one.txt").write_text("sound\n")
    assert run_one(counted.check, tree, artifacts).remembered
    assert counted.asked == 2


def test_another_version_of_a_tool_is_another_verdict(
    tree: Path, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()
    check = replace(counted.check, needs=(VenvTool("ruff"),))
    assert not run_one(check, tree, artifacts).remembered
    assert run_one(check, tree, artifacts).remembered
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "9.9")
    assert not run_one(check, tree, artifacts).remembered


def test_a_file_that_is_not_ignored_counts_before_git_knows_it(tree: Path) -> None:
    (tree / ".gitignore").write_text("build/\n")
    (tree / "build").mkdir()
    (tree / "build" / "made.txt").touch()
    assert list_files(tree) == (".gitignore", "one.txt")


def test_a_hook_of_another_repository_is_left_alone(
    tree: Path, artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git tells its hooks of its own repository and index; the checks that use git must not touch them."""
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", other], check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert list_files(tree) == ("one.txt",)

    def examine(context: Context) -> Sequence[Finding]:
        (context.work / "one.txt").touch()
        for words in (["init", "-q"], ["add", "."]):
            assert context.run(["git", *words], cwd=context.work).status == 0
        return []

    assert run_one(Check("git", "", examine, inputs=()), tree, artifacts).verdict is Verdict.PASS
    assert not (other / ".git" / "index").exists()


def test_what_is_no_checkout_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="git cannot list"):
        list_files(tmp_path)


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_a_missing_tool_names_its_package(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert TOOLS[name].missing == f"{name} is not installed; install the Debian package {TOOLS[name].package}"
    assert TOOLS[name].package in (repository.ROOT / "debian-packages.txt").read_text().splitlines()


def test_what_the_virtual_environment_lacks_comes_with_setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = [need for check in CHECKS for need in check.needs if isinstance(need, VenvTool)]
    assert not any(need.missing for need in needs)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert {need.missing for need in needs} == {
        f"{need.name} is not in the virtual environment; run scripts/setup" for need in needs
    }
    assert Library("planted").missing == "planted is not in the virtual environment; run scripts/setup"


def test_doctor_lists_the_tools_of_the_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYHARNESS_CACHE", str(tmp_path / "cache"))

    def row() -> dict[str, str]:
        doctor.execute(Namespace(json=True))
        rows: list[dict[str, str]] = json.loads(capsys.readouterr().out)
        return next(row for row in rows if row["name"] == "checks")

    names = {need.name for check in CHECKS for need in check.needs}
    assert row()["mend"] == ""
    assert set(row()["fact"].removeprefix("all tools are there: ").split(", ")) == names
    monkeypatch.setenv("PATH", str(tmp_path))
    assert row()["fact"] == f"without {', '.join(sorted(TOOLS))}, checks are skipped"
    packages = sorted({tool.package for tool in TOOLS.values()})
    assert row()["mend"] == f"install the Debian packages {' '.join(packages)}"


def test_a_skip_is_neither_a_pass_nor_remembered(
    tree: Path, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()
    absent = Tool("planted-tool", "planted-package")
    result = run_one(replace(counted.check, needs=(absent,)), tree, artifacts)
    assert result.verdict is Verdict.SKIP
    assert result.missing == (absent.missing,)
    assert "planted-package" in absent.missing
    assert counted.asked == 0
    assert not run_one(counted.check, tree, artifacts).remembered


def test_a_broken_tool_is_a_failure_and_not_remembered(tree: Path, artifacts: Artifacts) -> None:
    def examine(context: Context) -> Sequence[Finding]:
        return context.run(["sh", "-c", "echo it is broken; exit 3"]).findings()

    check = Check("broken", "nothing", examine, inputs=("*",))
    for _ in range(2):
        result = run_one(check, tree, artifacts)
        assert (result.verdict, result.remembered) == (Verdict.FAIL, False)
        assert str(result.findings[0]) == ".: sh failed with status 3; it is broken [broken]"


def test_the_lines_of_tools_are_read() -> None:
    said = """\
In file included from /s/kernel/a.c:3:
/s/kernel/a.c: In function 'f':
/s/kernel/a.c:3:5: error: unused variable 'x' [-Werror=unused-variable]
/s/kernel/a.c:3:5: note: each one
/s/kernel/a.c:7:9: warning: incorrect type in argument 1
/s/kernel/a.c:7:9:    expected int
/s/kernel/a.c:7:9:    got void *
/usr/include/b.h:1:1: warning: not ours
kernel/c.c:68:21-27: ERROR: reference preceded by free on line 67
make[1]: *** [Makefile:12: all] Error 2
"""
    output = Output("make", 2, "", said)
    assert [str(found) for found in output.findings(strip=Path("/s"), only=["kernel/a.c", "kernel/c.c"])] == [
        "kernel/a.c:3: unused variable 'x' [unused-variable]",
        "kernel/a.c:7: incorrect type in argument 1; expected int; got void *",
        "kernel/c.c:68: reference preceded by free on line 67",
    ]
    with pytest.raises(ToolFailed) as failed:
        Output("make", 2, "", said).findings(only=["kernel/d.c"])
    assert "*** [Makefile" in failed.value.detail


def test_an_interrupted_run_leaves_no_tool_behind(tree: Path, artifacts: Artifacts, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    streams: list[TextIO] = []

    def last(context: Context) -> Sequence[Finding]:
        context.run(["sh", "-c", f"exec 3>{fifo}; echo started >&3; sleep 1000 & wait"])
        return []

    def first(_context: Context) -> Sequence[Finding]:
        streams.append(fifo.open())
        assert streams[0].readline() == "started\n"
        return []

    def interrupt(_result: Result) -> None:
        raise KeyboardInterrupt

    checks = [Check("last", "", last, inputs=()), Check("first", "", first, inputs=())]
    with pytest.raises(KeyboardInterrupt):
        run_checks(checks, tree, artifacts, jobs=2, on_result=interrupt)
    # All that held the other end is gone.
    with streams[0] as stream:
        assert stream.read() == ""


def test_a_stopped_runner_starts_nothing(tmp_path: Path) -> None:
    runner = Runner()
    runner.stop()
    with pytest.raises(ToolFailed, match="stopped"):
        runner.run(["true"], cwd=tmp_path)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the tree, of which `python -m pyharness` runs the copied code."""
    return copied_tree(tmp_path / "copy")


def check(copy: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyharness", "check", *words],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "PYHARNESS_CACHE": str(copy.parent / "cache")} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_tells_what_it_checks_with_and_where_the_fault_is(copy: Path) -> None:
    (copy / "README.md").write_text(f"To {MISSPELT}.\n")
    done = check(copy, "--only", "codespell", "--only", "spdx")
    assert (done.returncode, done.stderr) == (Exit.FAILED, "")
    first, *lines, last = done.stdout.splitlines()
    assert first == f"tools      codespell {importlib.metadata.version('codespell')}"
    verdicts = {tuple(line.split()[:2]) for line in lines if not line.startswith(" ")}
    assert verdicts == {("fail", "codespell"), ("pass", "spdx")}
    assert f"      README.md:1: {MISSPELT} ==> receive [spelling]" in lines
    assert re.fullmatch(r"1 passed, 1 failed, 0 skipped in \d+\.\d s", last)


def test_fix_mends_what_the_tools_can(copy: Path) -> None:
    (copy / "README.md").write_text(f"To {MISSPELT}.\n")
    module = copy / "pyharness" / "planted.py"
    module.write_text(f'# {TAG}GPL-2.0-only\n"""A module."""\n\nimport os\n\nX = {{ 1 :2 }}\n')
    chosen = [word for name in ("codespell", "ruff", "ruff-format") for word in ("--only", name)]
    assert check(copy, *chosen).stdout.count("fail  ") == 3
    done = check(copy, "--fix", *chosen)
    assert done.returncode == Exit.OK
    assert done.stdout.count("mended  ") == done.stdout.count("pass  ") == 3
    assert (copy / "README.md").read_text() == "To receive.\n"
    assert module.read_text().splitlines()[1:] == ['"""A module."""', "", "X = {1: 2}"]


def test_without_a_tool_the_command_skips_and_says_what_to_install(copy: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "git").symlink_to(shutil.which("git") or "")
    done = check(copy, "--only", "sparse", "--only", "coccinelle", "--only", "shellcheck", PATH=str(bare))
    assert done.returncode == Exit.OK
    for tool, package in (("sparse", "sparse"), ("spatch", "coccinelle"), ("shellcheck", "shellcheck")):
        assert f"      {tool} is not installed; install the Debian package {package}" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1].startswith("0 passed, 0 failed, 3 skipped")


def test_a_document_is_alone_on_stdout_or_in_its_file(copy: Path) -> None:
    done = check(copy, "--only", "spdx", "--format", "json")
    (row,) = json.loads(done.stdout)
    assert (row["check"], row["verdict"], row["findings"], row["cached"]) == ("spdx", "pass", [], False)
    assert "pass  spdx" in done.stderr
    done = check(copy, "--only", "spdx", "--format", "json", "--output", str(copy.parent / "new" / "out.json"))
    assert "pass  spdx" in done.stdout
    (row,) = json.loads((copy.parent / "new" / "out.json").read_text())
    assert row["cached"]


@pytest.mark.parametrize(
    "words",
    [
        ["-j", "0"],
        ["--output", "x"],
        ["--only", "spdx", "--format", "json", "--output", "/dev/null/x"],
        ["--only", "astrology"],
    ],
)
def test_wrong_usage(words: list[str], copy: Path) -> None:
    done = check(copy, *words)
    assert done.returncode == Exit.USAGE
    assert done.stderr.splitlines()[-1].startswith("  mend: ")
