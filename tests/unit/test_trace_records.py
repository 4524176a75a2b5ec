# SPDX-License-Identifier: GPL-2.0-only
"""A transcript's lines: those that are of the format, and every other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyharness.errors import UsageError
from pyharness.trace.dialogue import Dialogue
from pyharness.trace.records import Header, Message, Packet, RawPacket, Record, Transcript
from pyharness.trace.render import Lines, as_json
from tests.unit.transcript import HEADER, life

MESSAGE = b'{"ns":1234,"from":"guest","message":"0300000000000000"}\n'


def read(*lines: bytes) -> list[Record]:
    return [line.record for line in Transcript(lines, "file")]


def test_each_kind_of_line() -> None:
    assert read(
        MESSAGE,
        b'{"ns":5,"from":"guest","relid":2,"type":9,"flags":1,"id":17,"data":"00ff","segments":3,"bytes":12288}\n',
        b'{"ns":6,"from":"host","relid":2,"type":11,"flags":0,"id":18446744073709551615,"data":""}\n',
        b'{"ns":7,"from":"host","relid":2,"raw":"0b"}\n',
    ) == [
        Message(1234, "guest", b"\3\0\0\0\0\0\0\0"),
        Packet(5, "guest", 2, 9, 1, 17, b"\0\xff", 3, 12288),
        Packet(6, "host", 2, 11, 0, 2**64 - 1, b""),
        RawPacket(7, "host", 2, b"\x0b"),
    ]


def test_a_header_comes_back() -> None:
    header = Header("debian-6.12 6.12.1", "10.0.13", "abc", "tcg")
    transcript = Transcript([header.line().encode() + b"\n", MESSAGE], "file")
    assert [line.number for line in transcript] == [2]
    assert transcript.header == header


def test_a_header_cannot_hurt_a_terminal() -> None:
    line = {"vmbus-transcript": 1, "kernel": "\033[31m\ud800\n", "qemu": ["q"], "driver": 7}
    transcript = Transcript([json.dumps(line).encode()], "file")
    assert list(transcript) == []
    assert transcript.header == Header("?[31m??", "?", "7", "")


def test_another_format_is_refused() -> None:
    with pytest.raises(UsageError, match="format 2, this version reads 1"):
        read(b'{"vmbus-transcript": 2}\n')


def test_a_part_of_a_transcript_has_no_header() -> None:
    transcript = Transcript(life()[5:9], "file")
    assert len(list(transcript)) == 4
    assert transcript.header is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\n", "not JSON"),
        (b"\xff\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"1" * 10_000 + b"\n", "not JSON"),
        (b"[1]\n", "not a JSON object"),
        (b"{}\n", '"ns"'),
        (b'{"ns":true}\n', '"ns"'),
        (b'{"ns":1.5}\n', '"ns"'),
        (b'{"ns":-1}\n', '"ns"'),
        (b'{"ns":1}\n', '"from"'),
        (b'{"ns":1,"from":["host"]}\n', '"from"'),
        (b'{"ns":1,"from":"me"}\n', '"from"'),
        (b'{"ns":1,"from":"host"}\n', '"relid"'),
        (b'{"ns":1,"from":"host","message":"0"}\n', '"message"'),
        (b'{"ns":1,"from":"host","message":7}\n', '"message"'),
        (b'{"ns":1,"from":"host","relid":4294967296,"raw":""}\n', '"relid"'),
        (b'{"ns":1,"from":"host","relid":1,"type":11,"flags":0,"id":1}\n', '"data"'),
        (b'{"ns":1,"from":"host","relid":1,"type":65536,"flags":0,"id":1,"data":""}\n', '"type"'),
        (HEADER, '"ns"'),
    ],
)
def test_a_line_of_another_kind_is_named(line: bytes, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(MESSAGE, line, MESSAGE)
    assert caught.value.message.startswith("file: line 2 is none of a VMBus transcript: ")
    assert reason in caught.value.message
    assert "pyharness run --trace" in caught.value.mend


@pytest.mark.parametrize("length", [1, len(MESSAGE) // 2, len(MESSAGE) - 2])
def test_the_last_line_may_be_cut_off(length: int) -> None:
    transcript = Transcript([MESSAGE, MESSAGE[:length]], "file")
    assert len(list(transcript)) == 1
    assert transcript.is_cut


def test_the_last_line_break_may_be_missing() -> None:
    transcript = Transcript([MESSAGE, MESSAGE.rstrip()], "file")
    assert len(list(transcript)) == 2
    assert not transcript.is_cut


def test_lines_are_read_as_they_come() -> None:
    """So a transcript can be followed while it is written."""
    given_out = 0

    def coming() -> Iterator[bytes]:
        nonlocal given_out
        for line in life():
            given_out += 1
            yield line

    follower = iter(Dialogue(Transcript(coming(), "file")))
    next(follower)
    assert given_out == 2
    next(follower)
    assert given_out == 3


def digest(lines: list[bytes]) -> None:
    """Read, decode, pair and render, of which only the reading may complain."""
    renderer = Lines()
    try:
        for event in Dialogue(Transcript(lines, "file")):
            assert "\n" not in renderer.render(event)
            json.loads(as_json(event))
    except UsageError as error:
        assert error.message.startswith(("file: line ", "the transcript has format "))


# The same examples in each run, however slow the machine is.
anything = settings(deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary().map(bytes.hex)
VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(), PLAIN, max_size=3)
KEYS = ("ns", "from", "message", "relid", "type", "flags", "id", "data", "segments", "bytes", "raw", "vmbus-transcript")


@anything
@given(st.lists(st.binary(), max_size=5))
def test_any_bytes(lines: list[bytes]) -> None:
    digest(lines)


@anything
@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES), max_size=5))
def test_any_object(entries: list[dict[str, object]]) -> None:
    digest([json.dumps(entry).encode() + b"\n" for entry in entries])


def packed(**values: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    sender = st.sampled_from(("guest", "host"))
    return st.fixed_dictionaries({"ns": st.integers(0, 2**64 - 1), "from": sender, **values})


HEX = st.binary(max_size=250).map(bytes.hex)
SMALL = st.integers(0, 3)
CONTROL = st.builds(lambda kind, body: (bytes((kind, *(0,) * 7)) + body).hex(), st.integers(0, 30), st.binary())
RECORDS = st.one_of(
    packed(message=HEX),
    packed(message=CONTROL),
    packed(relid=SMALL, raw=HEX),
    packed(relid=SMALL, type=st.sampled_from((6, 9, 11, 99)), flags=SMALL, id=SMALL, data=HEX),
)


@anything
@given(st.lists(RECORDS, max_size=30))
def test_any_messages_and_packets(entries: list[dict[str, object]]) -> None:
    """Every one of them is shown, whatever sense it makes."""
    lines = [json.dumps(entry).encode() + b"\n" for entry in entries]
    found = list(Dialogue(Transcript(lines, "file")))
    assert [event.line.source for event in found] == entries
    digest(lines)


@anything
@given(st.data())
def test_a_damaged_transcript(data: st.DataObject) -> None:
    whole = bytearray(b"".join(life()))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    digest(bytes(whole).splitlines(keepends=True))


def test_the_file_is_read_by_its_lines_alone(tmp_path: Path) -> None:
    """What Python takes for a line's end in text is none here."""
    file = tmp_path / "transcript"
    file.write_bytes(b'{"ns":1,"from":"host","message":"","note":"a\xc2\x85b\xe2\x80\xa8c"}\n')
    with file.open("rb") as stream:
        assert len(list(Transcript(stream, "file"))) == 1
