# SPDX-License-Identifier: GPL-2.0-only
"""What an interface consists of, however it was found out: structs, constants, ioctl numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Field:
    """A field of a struct; `offset` and `size` in bytes.

    `type` is u8 to u64, s8 to s64, or `struct NAME`; `count` is the number of elements of an array, 0 for no array.
    """

    name: str
    offset: int
    size: int
    type: str
    count: int = 0

    @property
    def full_type(self) -> str:
        """The type as C writes it: u8[16]."""
        return f"{self.type}[{self.count}]" if self.count else self.type


@dataclass(frozen=True)
class Hole:
    """Bytes that belong to no field: before the field `before`, or at the end of the struct."""

    before: str
    size: int


@dataclass(frozen=True)
class Struct:
    """A struct; `size` and `align` in bytes. Not every source can tell the alignment.

    An array of no fixed length at the end is not one of the fields: its elements are a struct of their own.
    """

    name: str
    size: int
    align: int | None
    fields: tuple[Field, ...]

    def field(self, name: str) -> Field | None:
        """The field of that name."""
        return next((field for field in self.fields if field.name == name), None)

    def holes(self) -> Iterator[Hole]:
        """Padding that the compiler has put in."""
        end = 0
        for one in sorted(self.fields, key=lambda one: one.offset):
            if one.offset > end:
                yield Hole(one.name, one.offset - end)
            end = max(end, one.offset + one.size)
        if self.size > end:
            yield Hole("", self.size - end)


@dataclass(frozen=True)
class Ioctl:
    """An ioctl: the command as _IOWR() and its like make it, and the struct that is its argument."""

    command: int
    argument: str = ""

    @property
    def number(self) -> str:
        """Type and number, by which one ioctl is told from another: `'R' 0xf0`."""
        return f"{chr(self.command >> 8 & 0xFF)!r} {self.command & 0xFF:#04x}"


@dataclass(frozen=True)
class Interface:
    """What two sides agree upon; structs, constants and ioctls by their names."""

    structs: Mapping[str, Struct] = field(default_factory=dict)
    constants: Mapping[str, int] = field(default_factory=dict)
    ioctls: Mapping[str, Ioctl] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, int]:
        """The constants, and the ioctls' commands among them."""
        return {**self.constants, **{name: ioctl.command for name, ioctl in self.ioctls.items()}}

    def reached_by(self, struct: str) -> frozenset[str]:
        """The struct of that name and those within it."""
        found = {struct}
        for inner in self.structs[struct].fields if struct in self.structs else ():
            if inner.type.startswith("struct "):
                found |= self.reached_by(inner.type.removeprefix("struct "))
        return frozenset(found)

    def as_json(self) -> dict[str, Any]:
        """What JSON holds of it, always in the same order."""
        return {
            "structs": {name: _struct_as_json(struct) for name, struct in sorted(self.structs.items())},
            "constants": dict(sorted(self.constants.items())),
            "ioctls": {
                name: {"command": f"{ioctl.command:#x}", "number": ioctl.number, "argument": ioctl.argument}
                for name, ioctl in sorted(self.ioctls.items())
            },
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Interface:
        """The reverse of `as_json`. Raises KeyError, TypeError or ValueError for what that has not made."""
        return cls(
            {name: _struct_from_json(name, struct) for name, struct in value["structs"].items()},
            {name: int(number) for name, number in value["constants"].items()},
            {name: Ioctl(int(one["command"], 16), one["argument"]) for name, one in value["ioctls"].items()},
        )


def _struct_as_json(struct: Struct) -> dict[str, Any]:
    fields = {one.name: {"offset": one.offset, "size": one.size, "type": one.full_type} for one in struct.fields}
    align = {} if struct.align is None else {"align": struct.align}
    return {"size": struct.size, **align, "fields": fields}


def _struct_from_json(name: str, value: Mapping[str, Any]) -> Struct:
    fields = []
    for inner, one in value["fields"].items():
        kind, _, count = one["type"].rstrip("]").partition("[")
        fields.append(Field(inner, one["offset"], one["size"], kind, int(count or 0)))
    return Struct(name, value["size"], value.get("align"), tuple(fields))
