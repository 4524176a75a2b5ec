# SPDX-License-Identifier: GPL-2.0-only
"""What a session leaves for CI, read back; and what it shows meanwhile."""

from __future__ import annotations

import json
import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pexpect
import pytest

from pyharness import cli, repository
from pyharness.artifacts.kernels import KERNELS
from pyharness.commands import matrix
from pyharness.errors import Exit
from pyharness.report.directory import reproduce
from pyharness.report.faults import Fault
from pyharness.report.ktap import ktap
from pyharness.report.recorder import Outcome, Recorder, Result
from pyharness.report.session import Session
from tests.marked import PATIENCE_S
from tests.unit.inner import Inner, fake_subject

JOBS = pytest.mark.parametrize("jobs", [1, 2])

SAMPLE = """
import pytest
from pyharness.errors import GuestCrashed, HarnessError, TimedOut

def test_good(prepared):
    pass

def test_bad(kernel_choice):
    assert kernel_choice == "debian-6.12", "not this one"

def test_skipped():
    pytest.skip("a # reason")

def test_crash(kernel_choice):
    if kernel_choice == "other":
        raise GuestCrashed("BUG: KASAN in foo", mend="look at it", detail="the splat\\nin two lines")

def test_timeout():
    raise TimedOut("it never came")

@pytest.fixture
def broken():
    raise HarnessError("no disk", mend="free some")

def test_setup(broken):
    pass
"""
CRASH = "inner/test_sample.py::test_crash[other]"
TIMEOUT = "inner/test_sample.py::test_timeout"


@pytest.fixture(params=[1, 2], ids=["alone", "workers"], scope="module")
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Inner:
    directory = tmp_path_factory.mktemp("ran")
    inner = Inner(directory, jobs=request.param, report=directory / "out" / "report").write("test_sample.py", SAMPLE)
    assert inner.run() == Exit.GUEST_CRASH, inner.output
    return inner


def metadata_of(inner: Inner) -> dict[str, Any]:
    assert inner.report
    metadata = json.loads((inner.report / "metadata.json").read_text())
    assert isinstance(metadata, dict)
    return metadata


def test_the_directory_holds_nothing_else(ran: Inner) -> None:
    assert ran.report
    assert sorted(path.name for path in ran.report.iterdir()) == ["junit.xml", "metadata.json", "results.ktap"]
    assert not any(path.is_symlink() for path in ran.report.iterdir())


def test_metadata_says_what_was_run_and_what_became_of_it(ran: Inner) -> None:
    metadata = metadata_of(ran)
    assert (metadata["verdict"], metadata["exit_code"]) == ("crash", Exit.GUEST_CRASH)
    assert metadata["accelerator"] == {"name": "tcg", "reason": "because"}
    assert (metadata["qemu"], metadata["qemu_key"], metadata["root_image"]) == ("10.0", "key-qemu", "key-image")
    assert metadata["tests"] == {"passed": 4, "failed": 4, "skipped": 1, "not_run": 0}
    first, second = metadata["kernels"]
    assert (first["name"], first["release"], first["hv_azure_blob"]) == ("debian-6.12", "6.0", "driver-for-debian-6.12")
    assert first["tests"] == {"passed": 3, "failed": 0, "skipped": 0, "not_run": 0}
    assert (second["name"], second["hv_vmbus"]) == ("other", "vmbus-for-other")
    assert second["tests"] == {"passed": 1, "failed": 2, "skipped": 0, "not_run": 0}
    assert first["coverage"] is None


def test_metadata_has_the_command_that_reproduces_each_failure(ran: Inner) -> None:
    failures = {failure["test"]: failure for failure in metadata_of(ran)["failures"]}
    assert len(failures) == 4
    crash = failures[CRASH]
    assert (crash["class"], crash["exit_code"], crash["kernel"]) == ("crash", Exit.GUEST_CRASH, "other")
    assert (crash["headline"], crash["mend"]) == ("BUG: KASAN in foo", "look at it")
    assert shlex.split(crash["command"]) == [".venv/bin/pyharness", "test", "--kernel", "other", "--", CRASH]
    assert shlex.split(failures[TIMEOUT]["command"])[-1] == TIMEOUT
    assert {failure["class"] for failure in failures.values()} == {"crash", "fail", "timeout", "error"}
    assert failures["inner/test_sample.py::test_bad[other]"]["headline"].startswith("AssertionError: not this one")


def cases_of(inner: Inner) -> dict[str, ET.Element]:
    assert inner.report
    root = ET.parse(inner.report / "junit.xml").getroot()
    return {case.attrib["name"]: case for case in root.iter("testcase")}


def properties_of(element: ET.Element) -> dict[str, str]:
    return {one.attrib["name"]: one.attrib["value"] for one in element.findall("properties/property")}


def test_junit_has_each_result_with_its_reason(ran: Inner) -> None:
    cases = cases_of(ran)
    assert len(cases) == 9
    failure = cases["test_crash[other]"].find("failure")
    assert failure is not None and failure.text
    assert failure.attrib["message"] == "crash: BUG: KASAN in foo"
    said = [
        "crash: BUG: KASAN in foo",
        "  mend: look at it",
        "",
        "the splat",
        "in two lines",
    ]
    assert failure.text.splitlines()[:5] == said
    assert re.search(r"^raised at inner/test_sample.py:\d+$", failure.text, re.MULTILINE)
    assert cases["test_setup"].find("error") is not None
    skipped = cases["test_skipped"].find("skipped")
    assert skipped is not None and skipped.attrib["message"] == "a # reason"


def test_junit_has_what_it_was_run_with(ran: Inner) -> None:
    assert ran.report
    suite = ET.parse(ran.report / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert properties_of(suite) == {
        "kernels": "debian-6.12 other",
        "accelerator": "tcg",
        "qemu": "10.0",
        "qemu_key": "key-qemu",
        "root_image": "key-image",
    }
    assert properties_of(cases_of(ran)["test_good[other]"]) == {
        "kernel": "other",
        "release": "6.0",
        "version": "6.0-1",
        "kernel_key": "key-other",
        "hv_azure_blob": "driver-for-other",
        "hv_vmbus": "vmbus-for-other",
    }
    assert properties_of(cases_of(ran)["test_timeout"]) == {}


@dataclass
class Node:
    """A KTAP test: its result line taken apart, and the tests within."""

    ok: bool = True
    name: str = ""
    directive: str = ""
    said: str = ""
    diagnostics: list[str] = field(default_factory=list)
    within: list[Node] = field(default_factory=list)


def parse(lines: Iterator[str], indent: str = "") -> list[Node]:
    """The tests of one level, after the rules of ktap.rst: version, plan, results numbered from 1."""
    plan, diagnostics = 0, list[str]()
    found: list[Node] = []
    within: list[Node] = []
    for line in lines:
        assert line.startswith(indent), line
        text = line.removeprefix(indent)
        if text == "  KTAP version 1":
            within = parse(lines, indent + "  ")
        elif match := re.fullmatch(r"1\.\.(\d+)", text):
            plan = int(match[1])
        elif text.startswith("#"):
            diagnostics.append(text.removeprefix("#").strip())
        else:
            match = re.fullmatch(r"(ok|not ok) (\d+) ([^#]*?)(?: # (?:(SKIP|TIMEOUT|ERROR)\b ?)?(.*))?", text)
            assert match, line
            assert int(match[2]) == len(found) + 1
            found.append(Node(match[1] == "ok", match[3], match[4] or "", match[5] or "", diagnostics, within))
            diagnostics, within = [], []
        if plan and len(found) == plan:
            return found
    raise AssertionError(f"{plan} tests were announced, {len(found)} are there")


def test_ktap_has_a_test_for_each_file(ran: Inner) -> None:
    assert ran.report
    lines = iter((ran.report / "results.ktap").read_text().splitlines())
    assert next(lines) == "KTAP version 1"
    (file,) = parse(lines)
    assert list(lines) == []
    assert (file.ok, file.name) == (False, "inner/test_sample.py")
    tests = {node.name: node for node in file.within}
    assert len(tests) == 9
    assert tests["test_good[other]"].ok
    assert (tests["test_skipped"].ok, tests["test_skipped"].directive) == (True, "SKIP")
    crash = tests["test_crash[other]"]
    assert (crash.ok, crash.directive, crash.said) == (False, "", "BUG: KASAN in foo")
    assert "in two lines" in crash.diagnostics
    assert (tests["test_timeout"].directive, tests["test_timeout"].said) == ("TIMEOUT", "it never came")
    assert (tests["test_setup"].directive, tests["test_setup"].said) == ("ERROR", "no disk")


def test_ktap_of_what_did_not_run_is_not_ok_and_names_are_clean() -> None:
    lines = iter(ktap([Result("a.py::test[#\n]"), Result("b.py::x", outcome=Outcome.SKIPPED)]).splitlines()[1:])
    first, second = parse(lines)
    assert not first.ok and first.within[0].directive == "ERROR"
    assert "#" not in first.within[0].name
    assert second.ok and second.directive == "SKIP"


ON_A_MACHINE = """
import time
import pytest
from pathlib import Path
from types import SimpleNamespace
from pyharness.machine.console import Console
from pyharness.machine.vm import Machine

@pytest.fixture
def lab(tmp_path):
    machine = Machine(SimpleNamespace())
    console = machine._console = Console(["/bin/sh", "-c", "echo last words; exec sleep 600"], tmp_path, lambda _: None)
    console.start()
    while "last words" not in console.tail():
        time.sleep(0.01)
    yield SimpleNamespace(machine=machine)
    machine.stop()

def test_wrong(lab):
    assert lab is None
"""


@JOBS
def test_the_console_goes_with_a_failed_assertion(tmp_path: Path, jobs: int) -> None:
    inner = Inner(tmp_path, jobs=jobs, report=tmp_path / "out").write("test_a.py", ON_A_MACHINE)
    assert inner.run() == Exit.FAILED, inner.output
    (failure,) = metadata_of(inner)["failures"]
    (console,) = failure["consoles"]
    assert "last words" in (tmp_path / "out" / console).read_text()
    said = cases_of(inner)["test_wrong"].findtext("system-out")
    assert said is not None and "last words" in said
    assert "last words" in inner.output


INTERRUPTED = """
import os, signal, time
def test_done():
    pass
def test_it():
    os.kill({process}, signal.SIGTERM)
    time.sleep(600)
def test_never():
    pass
"""


@pytest.mark.parametrize(("jobs", "process"), [(1, "os.getpid()"), (2, "os.getppid()")])
def test_an_interrupted_session_says_so(tmp_path: Path, jobs: int, process: str) -> None:
    inner = Inner(tmp_path, jobs=jobs, report=tmp_path / "out")
    assert inner.write("test_a.py", INTERRUPTED.format(process=process)).run() == 128 + 15, inner.output
    metadata = metadata_of(inner)
    assert metadata["verdict"] == "incomplete"
    # What a worker has just done may not have reached the controller.
    assert metadata["tests"]["passed"] + metadata["tests"]["not_run"] == 3
    assert metadata["tests"]["passed"] <= 1 <= metadata["tests"]["passed"] + jobs - 1
    cases = cases_of(inner)
    assert set(cases) == {"test_done", "test_it", "test_never"}
    assert cases["test_it"].find("error") is not None and cases["test_never"].find("error") is not None
    lines = iter((tmp_path / "out" / "results.ktap").read_text().splitlines()[1:])
    assert [node.ok for node in parse(lines)[0].within][1:] == [False, False]


def test_a_killed_session_has_left_that_it_is_incomplete(tmp_path: Path) -> None:
    """And nothing of an earlier session that could be taken for its results."""
    report = tmp_path / "out"
    report.mkdir()
    (report / "results.ktap").write_text("KTAP version 1\n1..0\n")
    (report / "junit.xml").write_text("<testsuites/>")
    (report / ".junit.xml.1").touch()
    (report / "coverage" / "other").mkdir(parents=True)
    killed = "import os, signal\ndef test_it():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    inner = Inner(tmp_path, report=report).write("test_a.py", killed)
    assert inner.run() == -9
    assert metadata_of(inner)["verdict"] == "incomplete"
    assert [path.name for path in report.iterdir()] == ["metadata.json"]
    assert inner.write("test_a.py", "def test_it():\n    pass\n").run() == Exit.OK, "the same directory once more"
    assert metadata_of(inner)["verdict"] == "pass"


def test_the_command_is_that_of_the_test_to_blame(tmp_path: Path) -> None:
    """What kmemleak finds at the end shows in whatever test was the last."""
    leak = Fault(int(Exit.GUEST_CRASH), "it leaked", blamed="a.py::test_it[other]")
    result = Result("z.py::test_last[other]", "other", Outcome.FAILED, fault=leak)
    command = reproduce(result, [fake_subject(tmp_path, "other")], cold=True)
    assert command[1:] == ["test", "--kernel", "other", "--cold", "--", "a.py::test_it[other]"]


@pytest.mark.parametrize("command", ["test", "matrix"])
@pytest.mark.parametrize("name", ["file/report", "file"])
def test_a_report_that_cannot_be_written_ends_it_at_once(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYHARNESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").touch()
    assert cli.main([command, "--report", str(tmp_path / name)]) == Exit.USAGE
    lines = capsys.readouterr().err.splitlines()
    assert "cannot write" in lines[0] and lines[1].startswith("  mend: ")


@JOBS
def test_elsewhere_than_on_a_terminal_each_file_is_a_line(tmp_path: Path, jobs: int) -> None:
    inner = Inner(tmp_path, jobs=jobs).write("test_sample.py", SAMPLE)
    inner.write("test_one.py", "def test_it(prepared):\n    pass\n").run()
    lines = [line for line in inner.output.splitlines() if re.search(r"(passed|failed|skipped) in [\d.]+ s$", line)]
    shown = sorted(re.sub(r" in .*", "", line).split(maxsplit=2) for line in lines)
    assert shown == [
        ["debian-6.12", "inner/test_one.py", "1 passed"],
        ["debian-6.12", "inner/test_sample.py", "3 passed"],
        ["inner/test_sample.py", "2", "failed, 1 skipped"],
        ["other", "inner/test_one.py", "1 passed"],
        ["other", "inner/test_sample.py", "1 passed, 2 failed"],
    ]
    assert "\x1b" not in inner.output
    assert inner.output.splitlines()[-1].strip("= ").startswith("3 failed, 6 passed, 1 skipped, 1 error in ")
    crash = inner.output.index(f"FAILED {CRASH}\n  crash: BUG: KASAN in foo\n    mend: look at it\n  \n  the splat")
    assert crash < inner.output.index("= FAILURES =")


@JOBS
def test_on_a_terminal_lines_follow_what_runs_and_a_failure_is_shown_above_them(tmp_path: Path, jobs: int) -> None:
    slow = "import time\ndef test_slow(prepared):\n    time.sleep(2)\n"
    inner = Inner(tmp_path, jobs=jobs).write("test_slow.py", slow).write("test_sample.py", SAMPLE)
    argv = inner.command()
    env = {"TERM": "xterm", "PATH": "/usr/bin:/bin"}
    person = pexpect.spawn(
        argv[0], argv[1:], cwd=repository.ROOT, env=env, dimensions=(40, 100), timeout=PATIENCE_S, encoding="utf-8"
    )
    try:
        person.expect(r"\d s  inner/test_slow.py::test_slow\[debian-6.12\]")
        person.expect(r"\d+ of 11: \d+ passed, \d+ failed, \d+ skipped; 0:\d\d")
        # The window goes before the next lasting line.
        person.expect_exact("A\x1b[J")
        person.expect_exact("1 error")
        person.expect(pexpect.EOF)
    finally:
        person.close(force=True)


def test_the_matrix_is_a_row_for_each_kernel(tmp_path: Path) -> None:
    names = list(KERNELS)
    subjects = [fake_subject(tmp_path, name) for name in names[:2]]
    recorder = Recorder()
    crash = Fault(int(Exit.GUEST_CRASH), "it crashed")
    for result in (
        Result("a::x", "", Outcome.PASSED, 1.2),
        Result("a::y[1]", names[0], Outcome.PASSED, 10.0),
        Result("a::z[1]", names[0], Outcome.SKIPPED, 0.0),
        Result("a::y[2]", names[1], Outcome.FAILED, 20.4, fault=crash),
    ):
        recorder.results[result.nodeid] = result
    rows = [line.split() for line in matrix.table(Session([], subjects, recorder=recorder)).splitlines()]
    assert rows[0] == ["kernel", "result", "passed", "failed", "skipped", "seconds", "coverage"]
    assert rows[1] == ["(none)", "pass", "1", "0", "0", "1", "-"]
    assert rows[2] == [names[0], "pass", "1", "0", "1", "10", "-"]
    assert rows[3] == [names[1], "crash", "0", "1", "0", "20", "-"]
    assert rows[4] == [names[2], "error", "-", "-", "-", "-", "-"]
    assert len(rows) == 2 + len(names)
