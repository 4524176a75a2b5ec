# SPDX-License-Identifier: GPL-2.0-only
"""A transcript's lines as typed records. The format is in docs/transcripts.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from pyharness.errors import UsageError

FORMAT = 1
"""Of the lines; grows when one changes its meaning."""
_FORMAT_KEY = "vmbus-transcript"

Side = Literal["guest", "host"]
SIDES: tuple[Side, ...] = get_args(Side)

_BITS = {"ns": 64, "relid": 32, "type": 16, "flags": 16, "id": 64, "segments": 32, "bytes": 64}


@dataclass(frozen=True)
class Header:
    """What a transcript was recorded with."""

    kernel: str = ""
    qemu: str = ""
    driver: str = ""
    accelerator: str = ""

    def line(self) -> str:
        """The transcript's first line."""
        return json.dumps({_FORMAT_KEY: FORMAT, **asdict(self)})


@dataclass(frozen=True)
class Message:
    """A control message. `ns` is nanoseconds of guest time since power-on, in each kind of record."""

    ns: int
    sender: Side
    message: bytes


@dataclass(frozen=True)
class Packet:
    """A packet of a channel, as it was taken out of a ring or put into one; `data` is what is inline.

    `segments` is how many pieces of guest memory a GPA-direct packet names, `memory` their bytes in all.
    """

    ns: int
    sender: Side
    relid: int
    type: int
    flags: int
    id: int
    data: bytes
    segments: int = 0
    memory: int = 0


@dataclass(frozen=True)
class RawPacket:
    """A packet that the host made byte by byte: its descriptor may lie."""

    ns: int
    sender: Side
    relid: int
    raw: bytes


Record = Message | Packet | RawPacket


@dataclass(frozen=True)
class Line:
    """A record and the number of its line in the transcript."""

    number: int
    record: Record
    source: dict[str, Any]
    """The line's JSON object as it is."""


class Transcript:
    """The records of a transcript, read as they are iterated over, once: the lines may still be coming in."""

    def __init__(self, lines: Iterable[bytes], name: str) -> None:
        """`name` is what error messages call it."""
        self.name = name
        self.header: Header | None = None
        """Known when the first record is. A part of a transcript may lack it."""
        self.is_cut = False
        """Whether the last line is incomplete, as the end of QEMU may leave it. It is not read."""
        self._lines = lines

    def __iter__(self) -> Iterator[Line]:
        """Raises UsageError, which names the line, at one that is not of this format."""
        for number, line in enumerate(self._lines, 1):
            try:
                entry = _entry(line)
                if number == 1 and _FORMAT_KEY in entry:
                    self.header = _header(entry)
                else:
                    yield Line(number, _record(entry), entry)
            except _MalformedError as error:
                if not line.endswith(b"\n"):
                    self.is_cut = True
                    return
                raise UsageError(
                    f"{self.name}: line {number} is none of a VMBus transcript: {error}",
                    mend="name a file that `pyharness run --trace` has written",
                ) from error


class _MalformedError(Exception):
    """What is wrong with a line."""


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise _MalformedError("it is not JSON") from error
    if not isinstance(entry, dict):
        raise _MalformedError("it is not a JSON object")
    return entry


def _header(entry: dict[str, Any]) -> Header:
    if entry[_FORMAT_KEY] != FORMAT:
        raise UsageError(
            f"the transcript has format {_plain(entry[_FORMAT_KEY])[:20]}, this version reads {FORMAT}",
            mend="read it with the version that recorded it",
        )
    return Header(**{name: _plain(entry.get(name, "")) for name in asdict(Header())})


def _plain(value: object) -> str:
    """A text of a file that anybody may have written, fit for a terminal."""
    text = str(value) if isinstance(value, str | int) else "?"
    return "".join(character if character.isascii() and character.isprintable() else "?" for character in text)


def _record(entry: dict[str, Any]) -> Record:
    ns, sender = _number(entry, "ns"), entry.get("from")
    if sender not in SIDES:
        raise _MalformedError('"from" is neither guest nor host')
    sender = cast(Side, sender)
    if "message" in entry:
        return Message(ns, sender, _octets(entry, "message"))
    relid = _number(entry, "relid")
    if "raw" in entry:
        return RawPacket(ns, sender, relid, _octets(entry, "raw"))
    kind, flags, id_ = (_number(entry, key) for key in ("type", "flags", "id"))
    segments, memory = (_number(entry, key) if key in entry else 0 for key in ("segments", "bytes"))
    return Packet(ns, sender, relid, kind, flags, id_, _octets(entry, "data"), segments, memory)


def _number(entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if type(value) is not int or not 0 <= value < 1 << _BITS[key]:
        raise _MalformedError(f'"{key}" is no number of {_BITS[key]} bits')
    return value


def _octets(entry: dict[str, Any], key: str) -> bytes:
    try:
        return bytes.fromhex(entry.get(key))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise _MalformedError(f'"{key}" is not in hexadecimal') from error
