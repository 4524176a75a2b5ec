# SPDX-License-Identifier: GPL-2.0-only
"""Coverage of a program that gcc compiled as it compiles the driver, run several times as if on several machines."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pyharness import repository
from pyharness.artifacts.kernels.built import _GCC as GCC
from pyharness.coverage import Collector, Coverage
from pyharness.coverage.changes import changed_lines
from pyharness.coverage.measure import Count, Subject
from pyharness.coverage.reasons import Reason, SourceText, explain, load_reasons
from pyharness.errors import HarnessError

NAME = "kernel/program.c"
SOURCE = """\
#include <stdio.h>
#include <stdlib.h>

/* Called once. */
static int
outcome(int number)
{
	if (number == 1)
		return puts("one");
	if (number == 2)
		return puts("two");
	if (number == 3) {
		puts("three");
		abort();
	}
	return 0;
}

int main(int argc, char **argv)
{
	return outcome(argc > 1 ? atoi(argv[1]) : 0) ? 1 : 0;
}
"""
NEVER_THREE = Reason(NAME, "outcome", 'if (number == 3) {\n  puts("three");\n  abort();\n}', "nobody asks for three")


class Program:
    """SOURCE, compiled in a directory that it leaves afterwards, as modules are."""

    def __init__(self, directory: Path, source: str = SOURCE) -> None:
        stage = directory / "stage"
        (stage / "kernel").mkdir(parents=True)
        (stage / NAME).write_text(source)
        objects = stage / "kernel" / "program.o"
        flags = ["-O2", "--coverage", f"-ffile-prefix-map={stage}/="]
        subprocess.run([GCC, *flags, "-c", stage / NAME, "-o", objects], cwd=stage, check=True)
        subprocess.run([GCC, "--coverage", objects, "-o", directory / "program"], check=True)
        self.binary = directory / "program"
        self.sources = stage.rename(directory / "sources")
        self.subject = Subject(self.sources, NAME)

    def counters(self, directory: Path, *arguments: str) -> tuple[tuple[str, bytes], ...]:
        """The .gcda files of one run for each argument."""
        for argument in arguments:
            subprocess.run([self.binary, argument], env=os.environ | {"GCOV_PREFIX": str(directory)}, check=False)
        return tuple((path.name, path.read_bytes()) for path in directory.rglob("*.gcda"))


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "program")


def measure(tmp_path: Path, program: Program, *reasons: Reason, only: frozenset[int] | None = None) -> Coverage:
    subject = replace(program.subject, only=only)
    return Coverage.of_subjects(tmp_path / "kept", "some-kernel", GCC, [subject], reasons, tmp_path / "report")


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(SOURCE.splitlines(), 1) if text in line)


def test_machines_add_up(tmp_path: Path, program: Program) -> None:
    collector = Collector(tmp_path / "kept")
    assert measure(tmp_path, program).lines.covered == 0
    collector.keep(program.counters(tmp_path / "a", "0", "0"))
    only_zero = measure(tmp_path, program)
    assert [line.text for line in only_zero.uncovered] == [
        'return puts("one");',
        'return puts("two");',
        'puts("three");',
        "abort();",
    ]
    collector.keep(program.counters(tmp_path / "b", "1"))
    collector.keep(program.counters(tmp_path / "c", "2"))
    coverage = measure(tmp_path, program)
    assert [line.text for line in coverage.uncovered] == ['puts("three");', "abort();"]
    assert str(coverage.uncovered[1]) == f"{NAME}:{line_of('abort')} outcome(): abort();"
    assert coverage.machines == 3
    assert only_zero.branches.covered < coverage.branches.covered < coverage.branches.total == only_zero.branches.total
    assert "abort" in (tmp_path / "report" / "uncovered.txt").read_text()


def test_counters_are_sums(tmp_path: Path, program: Program) -> None:
    from pyharness.coverage.gcov import trace_of

    collector = Collector(tmp_path / "kept")
    collector.keep(program.counters(tmp_path / "a", "1", "2", "2"))
    collector.keep(program.counters(tmp_path / "b", "2"))
    collector.keep(program.counters(tmp_path / "c", "0"))
    trace = trace_of(program.sources, NAME, tmp_path / "kept", GCC)
    counts = {line["line_number"]: line["count"] for line in trace.lines}
    assert [counts[line_of(text)] for text in ("one", "two", "abort", "number == 1")] == [1, 3, 0, 5]


def test_another_build_does_not_count(tmp_path: Path, program: Program) -> None:
    """Not even one of a source with the same lines and the same control flow."""
    other = Program(tmp_path / "other", SOURCE.replace("== 1", "== 0"))
    collector = Collector(tmp_path / "kept")
    collector.keep(other.counters(tmp_path / "a", "0", "1", "2"))
    assert measure(tmp_path, program).lines.covered == 0
    assert measure(tmp_path, other).lines.covered > 0


def test_a_kernel_that_does_not_count_leaves_nothing(tmp_path: Path) -> None:
    Collector(tmp_path / "kept").keep(())
    assert not (tmp_path / "kept").exists()


def test_many_collectors_at_once(tmp_path: Path, program: Program) -> None:
    counters = program.counters(tmp_path / "a", "1")
    threads = [threading.Thread(target=Collector(tmp_path / "kept").keep, args=(counters,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert measure(tmp_path, program).machines == 20


def test_a_machine_that_is_being_kept_does_not_count_yet(tmp_path: Path, program: Program) -> None:
    (tmp_path / "kept" / ".half").mkdir(parents=True)
    coverage = measure(tmp_path, program)
    assert (coverage.machines, coverage.lines.covered) == (0, 0)


def test_verdict(tmp_path: Path, program: Program) -> None:
    collector = Collector(tmp_path / "kept")
    collector.keep(program.counters(tmp_path / "a", "0"))
    bad = measure(tmp_path, program, NEVER_THREE)
    assert bad.lines.percent < 90
    assert len(bad.faults) == 3, bad.faults
    assert bad.faults[0].endswith("% of the lines have run, 90 % are asked for")
    assert "\n" not in bad.verdict and "and 2 more" in bad.verdict
    assert json.loads(json.dumps(bad.facts()))["lines"] == {"covered": 6, "total": 10, "percent": 60.0}

    collector.keep(program.counters(tmp_path / "b", "1", "2"))
    small = measure(tmp_path, program)
    silent = "has not run, and kernel/uncovered.toml says not why"
    assert [fault.partition(":")[0] for fault in small.faults][1:] == [silent, silent]
    good = measure(tmp_path, program, NEVER_THREE, only=frozenset(range(1, 100)) - {line_of("three"), line_of("abort")})
    assert (good.lines.percent, good.faults, good.verdict) == (100, [], "")
    assert good.stale == (NEVER_THREE,), "a reason for a line that is not uncovered"
    assert "out of date" in good.details()


def test_report_is_replaced_and_shows_the_kept_lines_alone(tmp_path: Path, program: Program) -> None:
    Collector(tmp_path / "kept").keep(program.counters(tmp_path / "a", "0"))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "old").write_text("")
    only = measure(tmp_path, program, only=frozenset({line_of("one"), line_of("number == 1")}))
    assert only.lines == Count(1, 2)
    assert only.html == tmp_path / "report" / "index.html"
    assert "some-kernel" in only.html.read_text()
    assert not (tmp_path / "report" / "old").exists()
    (page,) = (tmp_path / "report").glob("index.program.c.*.html")
    assert page.read_text().count('class="linecount uncoveredLine') <= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "kept", "program", "report"]


def test_without_notes_of_the_compiler(tmp_path: Path, program: Program) -> None:
    (program.sources / "kernel" / "program.gcno").unlink()
    with pytest.raises(HarnessError, match="not compiled for coverage"):
        measure(tmp_path, program)


# -- reasons


def test_functions_of_the_driver() -> None:
    text = SourceText((repository.ROOT / "kernel" / "hv_azure_blob.c").read_text())
    assert {"az_blob_page_count", "az_blob_mpb_create", "az_blob_same_cred", "az_blob_init"} <= text.functions.keys()
    for name, lines in text.functions.items():
        assert name.startswith(("az_blob_", "pending_requests_show")), (name, lines)
        assert text.function_at(lines[-1]) == name
        assert text.lines[lines[-1] - 1] == "}"
    assert text.function_at(1) == ""


def test_quotation_tells_equal_lines_apart() -> None:
    lines = ["int f(void)", "{", " if (a)", "  return 1;", " if (b)", "  return 1;", "}"]
    text = SourceText("\n".join([*lines, "", "int g(void)", *lines[1:2], *lines[4:]]))
    sources = {"x.c": text}
    uncovered = {("x.c", 4), ("x.c", 6), ("x.c", 12)}
    reason = Reason("x.c", "f", "if (b)\nreturn 1;", "why")
    assert explain([reason], sources, uncovered) == ({("x.c", 6): "why"}, [])
    for absent in (replace(reason, file="y.c"), replace(reason, function="h"), replace(reason, source="return 2;")):
        assert explain([absent], sources, uncovered) == ({}, [absent])
    assert explain([reason], sources, {("x.c", 4)}) == ({}, [reason]), "its lines have run"


def test_the_table_quotes_what_is_there() -> None:
    reasons = load_reasons()
    text = SourceText((repository.ROOT / "kernel" / "hv_azure_blob.c").read_text())
    for reason in reasons:
        if reason.file == "kernel/hv_azure_blob.c":
            assert text.quoted(reason), str(reason)
        assert reason.reason.strip()


@pytest.mark.parametrize("content", ["", "[[uncovered]]\nfile = 'x'\n", "uncovered = ", "uncovered = [1]"])
def test_damaged_table(tmp_path: Path, content: str) -> None:
    table = tmp_path / "uncovered.toml"
    table.write_text(content)
    with pytest.raises(HarnessError, match=r"uncovered\.toml is no table of reasons"):
        load_reasons(table)


# -- lines that patches change


def test_changed_lines_of_two_patches_that_meet(tmp_path: Path) -> None:
    old = [f"line {number}" for number in range(30)]
    middle = [*old[:10], "first", "first too", *old[10:]]
    new = [*middle[:3], "second", *middle[3:11], "changed", *middle[12:20], *middle[22:]]
    versions = []
    for index, lines in enumerate((old, middle, new)):
        path = tmp_path / str(index) / "dir" / "file.c"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines) + "\n")
        versions.append(path.relative_to(tmp_path))
    patches = []
    for index in (1, 2):
        diff = subprocess.run(
            ["diff", "-u", versions[index - 1], versions[index]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        patch = tmp_path / f"{index}.patch"
        patch.write_text(diff.stdout.replace(f"--- {index - 1}/", "--- a/").replace(f"+++ {index}/", "+++ b/"))
        patches.append(patch)
    changed = changed_lines(patches, tmp_path / "2", "dir/file.c")
    assert [new[number - 1] for number in sorted(changed)] == ["second", "first", "changed"]
