# SPDX-License-Identifier: GPL-2.0-only
"""`pyharness trace`: what is printed of a transcript."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pexpect
import pytest

from pyharness import cli
from pyharness.errors import Exit, HarnessError, UsageError
from pyharness.machine.vm import Machine
from pyharness.machine.vmbus import BRIDGE
from pyharness.trace.compare import comparable
from pyharness.trace.output import empty_transcript
from pyharness.trace.record import recording
from pyharness.trace.records import Header
from pyharness.trace.summary import Latency, latency
from tests.unit.transcript import completion, events, life, message, offer, request

Printed = Callable[..., list[str]]
NOBODY = 65534


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "transcript"
    path.write_bytes(b"".join(life()))
    return path


@pytest.fixture
def printed(file: Path, capsys: pytest.CaptureFixture[str]) -> Printed:
    def run(*options: str, lines: list[bytes] | None = None) -> list[str]:
        if lines is not None:
            file.write_bytes(b"".join(lines))
        assert cli.main(["trace", *options, str(file)]) == Exit.OK
        return capsys.readouterr().out.splitlines()

    return run


def test_one_line_each(printed: Printed) -> None:
    head, *lines = printed()
    assert head == "# kernel k 6.12, qemu q, driver d, tcg; -> the guest sends, <- the host"
    assert len(lines) == 20
    assert lines[0] == (
        "     2     8.000000 -> -                       INITIATE_CONTACT     "
        "version=4.1 target_vp=0 interrupt_page=0x1000"
    )
    assert lines[1] == (
        "     3     8.000001 <- -                       VERSION_RESPONSE     supported=no [request in 2, 1.0 us]"
    )
    assert lines[13] == (
        "    15     8.000143 <- 2 Azure Blob 0c9d2a6e   COMPLETION           "
        "id=1 status=SUCCESS response_len=7 [request in 14, 123.4 us]"
    )


def test_delta_times(printed: Printed) -> None:
    lines = printed("--delta", lines=[request(10**9, 2, 1), completion(10**9 + 1500, 2, 1), request(10**9, 2, 2)])
    assert [line.split()[:2] for line in lines] == [["1", "0.000000"], ["2", "0.000001"], ["3", "-0.000001"]]


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (("--relid", "2"), [7, *range(9, 20)]),
        (("--relid", "9"), []),
        (("--from", "host"), [3, 5, 7, 8, 11, 13, 15, 18, 21]),
        (("--from", "host", "--relid", "2"), [7, 11, 13, 15, 18]),
    ],
)
def test_filters_leave_the_numbers_and_pairs_as_they_are(
    printed: Printed, options: tuple[str, ...], numbers: list[int]
) -> None:
    everything = printed()
    shown = printed(*options)
    assert [int(line.split()[0]) for line in shown if line[0] != "#"] == numbers
    assert set(shown) <= set(everything)


def test_json_keeps_what_was_recorded_and_adds_what_it_means(printed: Printed) -> None:
    lines = [json.loads(line) for line in printed("--json")]
    for line, recorded in zip(lines, life()[1:], strict=True):
        assert json.loads(recorded).items() <= line.items()
    answer = lines[13]
    assert (answer["line"], answer["what"], answer["request"], answer["latency_ns"]) == (15, "COMPLETION", 14, 123_400)
    assert (answer["channel"], answer["fields"]["status"]) == (2, "SUCCESS")


def test_json_of_what_is_odd(printed: Printed) -> None:
    (line,) = printed("--json", lines=[completion(0, 2, 1)])
    assert json.loads(line)["oddity"] == "answers nothing"


def test_a_summary_counts_and_measures(printed: Printed) -> None:
    requests = [request(0, 2, number) for number in range(100)]
    answers = [completion(1000 * (number + 1), 2, number) for number in range(99)]
    lines = printed("--summary", lines=[offer(0, 2), *requests, *answers, completion(0, 2, 500)])
    assert [line.split() for line in lines[:4]] == [
        ["CHANNEL", "WHAT", "COUNT", "MIN", "us", "MEDIAN", "us", "P99", "us", "MAX", "us"],
        ["2", "Azure", "Blob", "0c9d2a6e", "<-", "OFFERCHANNEL", "1"],
        ["2", "Azure", "Blob", "0c9d2a6e", "->", "GPA_DIRECT", "100"],
        ["2", "Azure", "Blob", "0c9d2a6e", "<-", "COMPLETION", "100", "1.0", "50.0", "99.0", "99.0"],
    ]
    assert lines[4:] == ["unanswered at the end: 1", "  line 101", "odd: 1", "  line 201: answers nothing"]


def test_a_summary_of_much_that_is_odd_is_short(printed: Printed) -> None:
    lines = printed("--summary", lines=[completion(0, 2, number) for number in range(50)])
    assert lines[-1] == "  and 40 more"
    assert len(lines) == 14


def test_a_summary_of_one_channel_tells_of_no_other(printed: Printed) -> None:
    text = "\n".join(printed("--summary", "--relid", "3", lines=[request(0, 2, 1), request(0, 3, 1)]))
    assert "line 2" in text and "line 1" not in text


def test_a_summary_is_sorted_by_channel(printed: Printed) -> None:
    lines = printed("--summary", lines=[request(0, 10, 1), request(0, 2, 1), *life()[1:3]])
    assert [line.split()[0] for line in lines[1:5]] == ["-", "-", "2", "10"]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [([5], (5, 5, 5, 5)), ([4, 1, 3, 2], (1, 2, 4, 4)), (range(1, 1001), (1, 500, 990, 1000))],
)
def test_latencies_are_those_of_answers(samples: list[int], expected: tuple[int, ...]) -> None:
    assert latency(samples) == Latency(*expected)


def test_two_runs_that_say_the_same_compare_equal() -> None:
    first, second = (comparable(events(*life(ns, relid, gpadl, id_))) for ns, relid, gpadl, id_ in RUNS)
    assert len(first) == 22
    # An offer's connection is the host's choice, as the relid is, but is not made up anew by each run.
    assert first == [line.replace("0x2007", "0x2002") for line in second]


RUNS = ((8_000_000_000, 2, 0xE1E10, 1), (9_123_456_789, 7, 0xE1E11, 5))


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [*lines, message(9, "host", 4)],
        lambda lines: lines[:-1],
        lambda lines: [line.replace(b'"bytes": 12288', b'"bytes": 8192') for line in lines],
        lambda lines: [*lines[:14], completion(0, 2, 1, error=3221225485), *lines[15:]],
        lambda lines: [*lines[:15], completion(0, 2, 1), *lines[15:]],
        lambda lines: [*lines[:16], lines[17], lines[16], *lines[18:]],
    ],
    ids=["more", "less", "other memory", "other status", "answered twice", "order"],
)
def test_what_a_run_says_otherwise_is_seen(change: Callable[[list[bytes]], list[bytes]]) -> None:
    assert comparable(events(*change(life()))) != comparable(events(*life()))


def test_channels_are_compared_one_by_one() -> None:
    """Which of two devices comes first is not the same in each run."""
    one, other = [[offer(0, relid, UUID(int=relid)), request(1, relid, 1), completion(2, relid, 1)] for relid in (2, 3)]
    mixed = [line for pair in zip(one, other, strict=True) for line in pair]
    assert comparable(events(*one, *other)) == comparable(events(*mixed))
    assert comparable(events(*mixed))[1:5:3] == [
        "channel 1",
        "  <- COMPLETION status=SUCCESS response_len=7 [answers 1 up]",
    ]


def test_standard_input_and_a_reader_that_goes_away(file: Path) -> None:
    command = [sys.executable, "-m", "pyharness", "trace", "-"]
    whole = subprocess.run(command, input=file.read_bytes(), capture_output=True, check=True)
    assert len(whole.stdout.splitlines()) == 21
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdin and running.stdout and running.stderr
        running.stdout.close()
        running.stdin.write(file.read_bytes())
        running.stdin.close()
        assert running.wait() == Exit.HARNESS
        assert running.stderr.read() == b""


def test_a_cut_line_is_told_of(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(file.read_bytes()[:-10])
    assert cli.main(["trace", str(file)]) == Exit.OK
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 20
    assert captured.err == f"{file}: the last line is cut off, and left out\n"


def test_an_empty_transcript(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    assert cli.main(["trace", "-"]) == Exit.OK
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "reason"), [("absent", "no such file"), (".", "is a directory"), ("text", "line 1 is none of")]
)
def test_what_is_no_transcript(name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("something else\n")
    assert cli.main(["trace", str(tmp_path / name)]) == Exit.USAGE
    error, mend = capsys.readouterr().err.splitlines()
    assert reason in error and mend.startswith("  mend: ")


@pytest.mark.parametrize("colourless", [False, True])
def test_colour_is_for_terminals(file: Path, colourless: bool) -> None:
    environment = {**os.environ, "NO_COLOR": "1" if colourless else ""}
    output = pexpect.run(f"{sys.executable} -m pyharness trace {file}", env=environment)
    assert (b"\033[" in output) is not colourless


# -- recording


def machine_that(execute: Callable[..., Any]) -> Machine:
    return cast(Machine, SimpleNamespace(qmp=SimpleNamespace(execute=execute)))


def test_a_recording_begins_with_the_header_and_ends_with_the_block(tmp_path: Path) -> None:
    path, said = tmp_path / "transcript", []
    header = Header("k", "q", "d", "tcg")

    def execute(command: str, **arguments: str) -> None:
        said.append((command, arguments, path.read_text()))

    path.write_text("what was there before")
    with recording(machine_that(execute), path, header):
        assert len(said) == 1
    known = {"path": BRIDGE, "property": "transcript"}
    text = header.line() + "\n"
    assert said == [("qom-set", {**known, "value": str(path)}, text), ("qom-set", {**known, "value": ""}, text)]


def test_a_machine_that_died_is_not_what_a_recording_reports(tmp_path: Path) -> None:
    calls = []

    def execute(*_: str, **__: str) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise HarnessError("QEMU is gone")

    with (
        pytest.raises(ZeroDivisionError),
        recording(machine_that(execute), tmp_path / "transcript", Header()),
    ):
        _ = 1 / 0
    assert len(calls) == 2


def test_a_qemu_that_cannot_record_is_an_error(tmp_path: Path) -> None:
    def execute(*_: str, **__: str) -> None:
        raise HarnessError("QEMU refused qom-set")

    with pytest.raises(HarnessError, match="refused"), recording(machine_that(execute), tmp_path / "t", Header()):
        pytest.fail("nothing is recorded")


def test_a_transcript_is_emptied_and_its_path_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t").write_text("old")
    assert empty_transcript(Path("t")) == tmp_path / "t"
    assert (tmp_path / "t").read_bytes() == b""


@pytest.mark.parametrize("name", [".", "absent/t", "file/t", "pipe"])
def test_a_transcript_that_cannot_be_written_is_known_at_once(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="cannot write"):
        empty_transcript(tmp_path / name)
    assert cli.main(["run", "--trace", str(tmp_path / name)]) == Exit.USAGE
    error, mend = capsys.readouterr().err.splitlines()
    assert "cannot write" in error and mend.startswith("  mend: ")
