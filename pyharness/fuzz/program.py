# SPDX-License-Identifier: GPL-2.0-only
"""The ioctl fuzzer's inputs: programs, sequences of steps that a process in the guest takes.

A kind of step is a row of `KINDS`: what arguments it has, and of what sort each is. Making, changing, simplifying and
writing down a program all go by that table. `pyharness.guest.fuzz` carries the steps out.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from random import Random
from typing import Any

from pyharness.client.abi import AZURE_BLOB_IOCTL, MAX_PAGES
from pyharness.client.buffers import pages_touched
from pyharness.guest.fuzz import CREDENTIALS, FLAGS, MISUSES, PAGE, PLACES, PROTECTIONS, SLOTS

Value = Any
"""An argument as JSON has it."""

_U32 = 0xFFFFFFFF
_STRUCT = struct.Struct("<16s6I3Q8s")
_DEVICES = 2


@dataclass(frozen=True)
class Choice:
    """One of some values; the first is the simplest, and `common` of a thousand are it."""

    values: tuple[Value, ...]
    common: int = 0

    @property
    def simplest(self) -> Value:
        """What a program is simplified to."""
        return self.values[0]

    def make(self, rng: Random) -> Value:
        """A new value."""
        return self.values[0] if rng.randrange(1000) < self.common else rng.choice(self.values)

    def change(self, rng: Random, value: Value) -> Value:
        """Another value, which may owe something to `value`."""
        return rng.choice(self.values)


@dataclass(frozen=True)
class Number:
    """An integer of so many bits: one of some that matter, one beside another, or any."""

    interesting: tuple[int, ...] = (0, 1)
    bits: int = 32
    common: int = 0
    rare: tuple[int, ...] = ()
    """Those that matter too, but take long."""

    @property
    def simplest(self) -> int:
        """What a program is simplified to."""
        return self.interesting[0]

    def make(self, rng: Random) -> int:
        """A new value."""
        if rng.randrange(1000) < self.common:
            return self.simplest
        if self.rare and not rng.randrange(50):
            return rng.choice(self.rare)
        if rng.randrange(8):
            return rng.choice(self.interesting)
        return rng.getrandbits(rng.randrange(1, self.bits + 1))

    def change(self, rng: Random, value: int) -> int:
        """Another value, near `value` or not."""
        how = rng.randrange(4)
        if how == 0:
            value ^= 1 << rng.randrange(self.bits)
        elif how == 1:
            value += rng.choice((-PAGE, -8, -1, 1, 8, PAGE))
        else:
            value = self.make(rng)
        return value & ((1 << self.bits) - 1)


@dataclass(frozen=True)
class Address:
    """[place, offset], see `pyharness.guest.fuzz.PLACES`."""

    simplest: tuple[str, int] = ("rw", 0)

    def make(self, rng: Random) -> list[Value]:
        """A new value: mostly where it works."""
        name = self.simplest[0] if rng.randrange(3) else rng.choice(_PLACE_NAMES)
        return [name, rng.choice(_offsets(PLACES[name].pages))]

    def change(self, rng: Random, value: Sequence[Value]) -> list[Value]:
        """Another place, or another offset in the same."""
        name, offset = value
        how = rng.randrange(4)
        if how == 0:
            return self.make(rng)
        if how == 1:
            return [name, rng.choice(_offsets(PLACES[name].pages))]
        offset += rng.choice((-PAGE, -64, -8, -1, 1, 8, 64, PAGE))
        return [name, max(0, min(offset, max(PAGE, PLACES[name].pages * PAGE)))]


_PLACE_NAMES = tuple(PLACES)


def _offsets(pages: int) -> tuple[int, ...]:
    """Where things matter in a place of so many pages: its start and end, and those of its pages."""
    ends = (pages * PAGE - beyond for beyond in (PAGE, 72, 64, 8, 1) if pages)
    return (0, 1, 8, 40, 64, 72, PAGE - 72, PAGE - 64, PAGE - 8, PAGE - 1, PAGE, 2 * PAGE, *ends)


Sort = Choice | Number | Address

_LIMIT = MAX_PAGES * PAGE
_SMALL = (40, 64, 0, 1, 8, 72, 512, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 5 * PAGE + 7, 16 * PAGE, 64 * PAGE)
_LARGE = (_LIMIT - 2 * PAGE, _LIMIT - 2 * PAGE + 1, _LIMIT - PAGE, _LIMIT, _LIMIT + 1)
_HUGE = (0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFFFF)
_LENGTH = Number((*_SMALL, *_HUGE), common=500, rare=_LARGE)
_COMMANDS = Choice(
    (
        AZURE_BLOB_IOCTL,
        0,
        AZURE_BLOB_IOCTL ^ 1,
        AZURE_BLOB_IOCTL ^ 1 << 16,
        AZURE_BLOB_IOCTL ^ 1 << 30,
        AZURE_BLOB_IOCTL ^ 1 << 31,
        AZURE_BLOB_IOCTL ^ 1 << 8,
        AZURE_BLOB_IOCTL | 1 << 32,
        0xFFFFFFFF,
        0x5401,  # TCGETS
        0x5413,  # TIOCGWINSZ
        0x1261,  # BLKFLSBUF
    ),
    common=900,
)
_SLOT = Choice(tuple(range(SLOTS)))
_DEVICE = Choice(tuple(range(_DEVICES)))


@dataclass(frozen=True)
class Kind:
    """A kind of step.

    New steps are of it as `weight` says, and the more rarely the more it costs: about how many ioctls could be made
    instead.
    """

    arguments: Mapping[str, Sort]
    weight: int = 1
    cost: int = 1
    following: bool = False
    """It is about the `count` steps that follow."""


KINDS: dict[str, Kind] = {
    "ioctl": Kind(
        {
            "slot": Choice((0, 1, 2, 3), common=600),
            "gate": Choice((64, 32), common=800),
            "command": _COMMANDS,
            "at": Address(("rw", 0)),
            "timeout": Number((0, 1, _U32)),
            "request_len": _LENGTH,
            "response_len": _LENGTH,
            "data_len": Number((0, *_SMALL, *_HUGE), common=500, rare=_LARGE),
            "data_valid": Number((0, 1, 40, PAGE, 64 * PAGE, _U32), common=700),
            "pad": Number((0, 1, 0x80000000), common=900),
            "request": Address(("rw", PAGE)),
            "response": Address(("rw", 2 * PAGE)),
            "data": Address(("big", 0)),
        },
        weight=60,
    ),
    "open": Kind({"slot": _SLOT, "device": _DEVICE, "flags": Choice(tuple(FLAGS))}, weight=4),
    "close": Kind({"slot": _SLOT}, weight=3),
    "dup": Kind({"slot": _SLOT, "other": _SLOT}, weight=2),
    "misuse": Kind({"slot": _SLOT, "how": Choice(MISUSES)}),
    "fill": Kind(
        {"at": Address(), "seed": Number((0, 1), bits=16), "length": Number((64, 1, PAGE), bits=13)}, weight=3
    ),
    "protect": Kind({"protection": Choice(tuple(PROTECTIONS))}, weight=3),
    "drop": Kind({"place": Choice(("rw", "var", "file"))}, weight=2),
    "credentials": Kind({"change": Choice(CREDENTIALS)}, weight=3),
    "limit": Kind({"pages": Choice((0, 1, 3, 4, 5, 100))}, weight=2),
    "alarm": Kind({"microseconds": Choice((1, 100, 1000))}, weight=2),
    "thread": Kind({"count": Choice((1, 2, 3))}, weight=1, cost=30, following=True),
    "fork": Kind(
        {"kill_after": Choice((-1, 0, 200, 1000, 3000)), "count": Choice((1, 2))}, weight=1, cost=300, following=True
    ),
    "rebind": Kind({"device": _DEVICE}, weight=1, cost=100),
}
_KIND_NAMES = tuple(KINDS)
_WEIGHTS = tuple(kind.weight / sqrt(kind.cost) for kind in KINDS.values())
_MOST_STEPS = 12
# What the pins of so many pages cost is about one ioctl.
_PAGES_OF_AN_IOCTL = 100


@dataclass(frozen=True)
class Step:
    """One step: a kind, and a value for each of its arguments."""

    kind: str
    values: tuple[Value, ...]

    @classmethod
    def of(cls, kind: str, **values: Value) -> Step:
        """A step whose other arguments are the simplest ones."""
        if kind not in KINDS or (unknown := values.keys() - KINDS[kind].arguments.keys()):
            raise ValueError(f"no step {kind!r}" if kind not in KINDS else f"{kind} has no {sorted(unknown)[0]!r}")
        return cls(
            kind, tuple(_frozen(values.get(name, sort.simplest)) for name, sort in KINDS[kind].arguments.items())
        )

    @property
    def named(self) -> dict[str, Value]:
        """The arguments by name."""
        return dict(zip(KINDS[self.kind].arguments, self.values, strict=True))

    @property
    def cost(self) -> int:
        """About how many plain ioctls could be made instead."""
        pages = _pages(self.named) if self.kind == "ioctl" else 0
        return KINDS[self.kind].cost + (pages // _PAGES_OF_AN_IOCTL if pages <= MAX_PAGES else 0)

    def replaced(self, index: int, value: Value) -> Step:
        """The step with another value for the argument of that number."""
        return Step(self.kind, (*self.values[:index], _frozen(value), *self.values[index + 1 :]))

    def simpler(self) -> list[Step]:
        """The step with one argument simplified, for each that is not."""
        sorts = KINDS[self.kind].arguments.values()
        return [
            self.replaced(index, sort.simplest)
            for index, (sort, value) in enumerate(zip(sorts, self.values, strict=True))
            if value != _frozen(sort.simplest)
        ]


Program = tuple[Step, ...]


def cost_of(program: Program) -> int:
    """About how many plain ioctls could be made instead."""
    return sum(step.cost for step in program)


def _frozen(value: Value) -> Value:
    return tuple(value) if isinstance(value, list) else value


# -- as text


def to_json(programs: Sequence[Program]) -> str:
    """A line for each step, with those arguments that are not the simplest."""
    return "[\n" + ",\n".join(" [\n" + ",\n".join(map(_line, program)) + "\n ]" for program in programs) + "\n]\n"


def _line(step: Step) -> str:
    sorts = KINDS[step.kind].arguments
    shown = {name: value for name, value in step.named.items() if value != _frozen(sorts[name].simplest)}
    return "  " + json.dumps([step.kind, shown] if shown else [step.kind])


def from_json(text: str) -> tuple[Program, ...]:
    """Raises ValueError for what are no programs."""
    try:
        return tuple(tuple(Step.of(kind, **dict(*values)) for kind, *values in program) for program in json.loads(text))
    except TypeError as error:
        raise ValueError(f"not a program: {error}") from error


# -- making and changing


def make_step(rng: Random) -> Step:
    """A new step."""
    (kind,) = rng.choices(_KIND_NAMES, _WEIGHTS)
    return Step(kind, tuple(_frozen(sort.make(rng)) for sort in KINDS[kind].arguments.values()))


def _change_argument(rng: Random, program: list[Step], other: Program) -> None:
    at = rng.randrange(len(program))
    step = program[at]
    sorts = tuple(KINDS[step.kind].arguments.values())
    index = rng.randrange(len(sorts))
    program[at] = step.replaced(index, sorts[index].change(rng, step.values[index]))


def _insert(rng: Random, program: list[Step], other: Program) -> None:
    program.insert(rng.randrange(len(program) + 1), make_step(rng))


def _delete(rng: Random, program: list[Step], other: Program) -> None:
    if len(program) > 1:
        del program[rng.randrange(len(program))]


def _repeat(rng: Random, program: list[Step], other: Program) -> None:
    at = rng.randrange(len(program))
    program.insert(at, program[at])


def _splice(rng: Random, program: list[Step], other: Program) -> None:
    program[rng.randrange(len(program)) :] = other[rng.randrange(len(other)) :]


_CHANGES = (_change_argument, _insert, _delete, _repeat, _splice)
_CHANGE_WEIGHTS = (60, 14, 10, 6, 10)


def mutate(rng: Random, program: Program, other: Program) -> Program:
    """A changed copy of `program`, with something of `other` in it perhaps."""
    steps = list(program)
    while True:
        (change,) = rng.choices(_CHANGES, _CHANGE_WEIGHTS)
        change(rng, steps, other)
        if rng.randrange(2):
            return tuple(steps[:_MOST_STEPS])


# -- for the guest


def compiled(program: Program) -> list[tuple[Value, ...]]:
    """What `pyharness.guest.fuzz.Executor` takes."""
    raced = any(step.kind == "thread" for step in program)
    return [_COMPILERS.get(step.kind, _as_it_is)(step, raced) for step in program]


def _as_it_is(step: Step, raced: bool) -> tuple[Value, ...]:
    return (step.kind, *step.values)


def _address(value: Sequence[Value]) -> int:
    name, offset = value
    return (PLACES[name].address + int(offset)) % 2**64


def _room(value: Sequence[Value]) -> int:
    """Bytes from there to the end of the place, if the fuzzer may write to it."""
    name, offset = value
    place = PLACES[name]
    return max(0, place.pages * PAGE - int(offset)) if place.writable or name == "var" else 0


def _pages(ioctl: Mapping[str, Value]) -> int:
    return sum(pages_touched(_address(ioctl[name]), ioctl[f"{name}_len"]) for name in ("request", "response", "data"))


def _ioctl(step: Step, raced: bool) -> tuple[Value, ...]:
    named = step.named
    numbers = [named[name] for name in ("timeout", "request_len", "response_len", "data_len", "data_valid", "pad")]
    buffers = [_address(named[name]) for name in ("request", "response", "data")]
    # A thread may be about to protect what "var" is.
    room = 0 if raced and named["at"][0] == "var" else _room(named["at"])
    fields = _STRUCT.pack(b"fuzz", *numbers, *buffers, b"\xee" * 8)[:room]
    return (
        "ioctl",
        named["slot"],
        named["gate"],
        named["command"],
        _address(named["at"]),
        fields,
        _verdict(named, len(fields), raced),
    )


def _verdict(ioctl: Mapping[str, Value], written: int, raced: bool) -> str:
    """What the errno contract of uapi/hv_azure_blob.h says, as far as it does not depend on what was before."""
    if ioctl["command"] & _U32 != AZURE_BLOB_IOCTL:
        return "other"
    if raced or written != _STRUCT.size or ioctl["at"][0] == "var":
        return "unknown"
    wrong = (
        ioctl["pad"]
        or not ioctl["request_len"]
        or not ioctl["response_len"]
        or ioctl["data_valid"] > ioctl["data_len"]
        or _pages(ioctl) > MAX_PAGES
    )
    return "invalid" if wrong else "valid"


def _fill(step: Step, raced: bool) -> tuple[Value, ...]:
    named = step.named
    room = 0 if named["at"][0] == "var" else _room(named["at"])
    data = Random(named["seed"]).randbytes(min(named["length"], room))
    return ("fill", _address(named["at"]), data)


_COMPILERS = {"ioctl": _ioctl, "fill": _fill}
