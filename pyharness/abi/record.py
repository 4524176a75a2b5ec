# SPDX-License-Identifier: GPL-2.0-only
"""uapi/abi.json, the recorded ABI, and which changes of it may be recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pyharness.abi.model import Interface, Struct
from pyharness.errors import CheckFailed

FILE = "uapi/abi.json"

Interfaces = Mapping[str, Interface]


class Kind(Enum):
    """What can happen to an interface."""

    STRUCT_ADDED = "struct added"
    STRUCT_REMOVED = "struct removed"
    STRUCT_RESIZED = "struct's size changed"
    STRUCT_REALIGNED = "struct's alignment changed"
    FIELD_ADDED = "field added"
    FIELD_REMOVED = "field removed"
    FIELD_MOVED = "field's offset changed"
    FIELD_RETYPED = "field's type changed"
    CONSTANT_ADDED = "constant added"
    CONSTANT_REMOVED = "constant removed"
    CONSTANT_CHANGED = "constant changed"
    IOCTL_ADDED = "ioctl added"
    IOCTL_REMOVED = "ioctl removed"
    IOCTL_CHANGED = "ioctl's command changed"


COMPATIBLE = {
    Kind.STRUCT_ADDED: True,
    Kind.STRUCT_REMOVED: False,
    Kind.STRUCT_RESIZED: False,
    Kind.STRUCT_REALIGNED: False,
    Kind.FIELD_ADDED: False,
    Kind.FIELD_REMOVED: False,
    Kind.FIELD_MOVED: False,
    Kind.FIELD_RETYPED: False,
    Kind.CONSTANT_ADDED: True,
    Kind.CONSTANT_REMOVED: False,
    Kind.CONSTANT_CHANGED: False,
    Kind.IOCTL_ADDED: True,
    Kind.IOCTL_REMOVED: False,
    Kind.IOCTL_CHANGED: False,
}
"""Whether what was built before goes on working when this has happened."""

NUMBER_OF = {
    "user": "a new ioctl number",
    "wire": "a new version of the request (AZ_BLOB_WIRE_V...)",
    "backend": "a new AZURE_BLOB_PROTOCOL_VERSION",
}
"""By what the two sides of each interface tell an incompatible one from the one before."""

_VERSION = re.compile(r"AZ_BLOB_WIRE_V\d+|AZURE_BLOB_PROTOCOL_VERSION")


@dataclass(frozen=True)
class Change:
    """Something that has happened to `item` of an interface; `carriers` are the numbers that stood for it before."""

    kind: Kind
    item: str
    detail: str = ""
    carriers: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.item}: {self.kind.value}{self.detail}"


def load(root: Path) -> dict[str, Interface]:
    """The recorded interfaces by name; empty when nothing is recorded.

    Raises CheckFailed for a file that is no record.
    """
    try:
        recorded = json.loads((root / FILE).read_text())
        return {name: Interface.from_json(value) for name, value in recorded.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckFailed(
            f"{FILE} is no record of the ABI: {error!r}", mend=f"take it back with git checkout {FILE}"
        ) from error


def store(root: Path, interfaces: Interfaces) -> list[Change]:
    """Record the interfaces in place of what is recorded; returns what has changed.

    Raises CheckFailed, and leaves the record as it is, for an incompatible change that has no new number.
    """
    before = load(root)
    known = [name for name in interfaces if name in before]
    refused = [(name, change) for name in known for change in refusals(name, before[name], interfaces[name])]
    if refused:
        name, change = refused[0]
        more = f", and {len(refused) - 1} more changes" if len(refused) > 1 else ""
        raise CheckFailed(
            f"{change}{more}: incompatible, needs {NUMBER_OF[name]}",
            mend="keep what there is, and add the new beside it under a new number (docs/abi.md)",
            detail="\n".join(str(change) for _, change in refused) if more else "",
        )
    text = json.dumps({name: interface.as_json() for name, interface in interfaces.items()}, indent=2)
    (root / FILE).write_text(text + "\n")
    return [change for name in interfaces for change in changes(before.get(name, Interface()), interfaces[name])]


def refusals(name: str, before: Interface, after: Interface) -> list[Change]:
    """The incompatible changes by which something that was built before would be misunderstood.

    A struct may change when none of the numbers that stood for it is in use any more, and there is a new one; all else
    when there is a new number.
    """
    numbers = numbers_of(after)
    has_new = bool(numbers.keys() - numbers_of(before).keys())
    return [
        change
        for change in changes(before, after)
        if not COMPATIBLE[change.kind] and not (has_new and not change.carriers & numbers.keys())
    ]


def numbers_of(interface: Interface) -> dict[str, frozenset[str]]:
    """The numbers by which one side tells the other what it means, and the structs that each stands for."""
    versions = {f"{name} {value}" for name, value in interface.constants.items() if _VERSION.fullmatch(name)}
    stands_for = {version: frozenset(interface.structs) for version in versions}
    return stands_for | {one.number: interface.reached_by(one.argument) for one in interface.ioctls.values()}


def changes(before: Interface, after: Interface) -> Iterator[Change]:
    """What has happened, structs first."""
    numbers = numbers_of(before)
    for name in _both(before.structs, after.structs):
        carriers = frozenset(number for number, structs in numbers.items() if name in structs)
        old, new = before.structs.get(name), after.structs.get(name)
        if old is None or new is None:
            yield Change(Kind.STRUCT_ADDED if new else Kind.STRUCT_REMOVED, name, carriers=carriers)
        else:
            yield from _struct_changes(old, new, carriers)
    for name in _both(before.constants, after.constants):
        was, now = before.constants.get(name), after.constants.get(name)
        if was is None or now is None:
            yield Change(Kind.CONSTANT_REMOVED if now is None else Kind.CONSTANT_ADDED, name)
        elif was != now:
            yield Change(Kind.CONSTANT_CHANGED, name, f", {was} to {now}")
    for name in _both(before.ioctls, after.ioctls):
        first, second = before.ioctls.get(name), after.ioctls.get(name)
        if first is None or second is None:
            yield Change(Kind.IOCTL_ADDED if second else Kind.IOCTL_REMOVED, name)
        elif first != second:
            detail = f", {first.command:#x} to {second.command:#x}"
            yield Change(Kind.IOCTL_CHANGED, name, detail, frozenset({first.number}))


def _struct_changes(old: Struct, new: Struct, carriers: frozenset[str]) -> Iterator[Change]:
    for name in _both({one.name: one for one in old.fields}, {one.name: one for one in new.fields}):
        item, was, now = f"{old.name}.{name}", old.field(name), new.field(name)
        if was is None or now is None:
            yield Change(Kind.FIELD_ADDED if now else Kind.FIELD_REMOVED, item, carriers=carriers)
            continue
        if was.offset != now.offset:
            yield Change(Kind.FIELD_MOVED, item, f", {was.offset} to {now.offset}", carriers)
        if (was.full_type, was.size) != (now.full_type, now.size):
            yield Change(Kind.FIELD_RETYPED, item, f", {was.full_type} to {now.full_type}", carriers)
    if old.size != new.size:
        yield Change(Kind.STRUCT_RESIZED, old.name, f", {old.size} to {new.size} bytes", carriers)
    if old.align != new.align:
        yield Change(Kind.STRUCT_REALIGNED, old.name, f", {old.align} to {new.align}", carriers)


def _both(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    return list(dict.fromkeys([*before, *after]))
