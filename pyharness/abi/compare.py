# SPDX-License-Identifier: GPL-2.0-only
"""What several sources say of one interface, and where they contradict each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pyharness.abi.model import Hole, Interface
from pyharness.checks.finding import Finding

LAYOUT, HOLE, UNRECORDED = "abi-layout", "abi-hole", "abi-record"

_Facts = dict[str, dict[str, object]]


def everything(_name: str) -> bool:
    """What a source that knows the whole interface covers."""
    return True


def nothing(_name: str) -> bool:
    """What a source covers that has been read in part."""
    return False


@dataclass(frozen=True)
class Source:
    """What one source says, and where it can be mended.

    `name` is what messages call it, `file` is relative to the root of the tree, `places` has lines by `struct`,
    `struct.field` and `CONSTANT`; `covers` tells the structs and constants that the source must have. `pads` says that
    a compiler lays the structs out and may have put holes in.
    """

    name: str
    file: str
    interface: Interface
    places: Mapping[str, int] = field(default_factory=dict)
    covers: Callable[[str], bool] = everything
    pads: bool = False

    @cached_property
    def facts(self) -> _Facts:
        """Each struct, field and constant by its name, with what is said of it; None stands for what cannot be told."""
        found: _Facts = {}
        for struct in self.interface.structs.values():
            found[struct.name] = {"size": struct.size, "alignment": struct.align}
            for one in struct.fields:
                # The size of an integer is in the name of its type.
                size = None if one.type[1:].isdigit() else one.size
                found[f"{struct.name}.{one.name}"] = {"offset": one.offset, "type": one.full_type, "size": size}
        found |= {name: {"value": value} for name, value in self.interface.constants.items()}
        for name, ioctl in self.interface.ioctls.items():
            found[name] = {"value": ioctl.command, "argument": ioctl.argument or None}
        return found

    def place(self, item: str) -> int:
        """The line of a struct, field or constant, or else of what it should be in; 0 when neither is there."""
        return self.places.get(item) or self.places.get(_owner(item), 0)


def differences(sources: Sequence[Source], record: Source | None) -> Iterator[Finding]:
    """A finding for each fact that is not the same in all sources, at the first that is wrong.

    The record is right, and where there is none, the first source.
    """
    everyone = [*sources, *([record] if record else [])]
    for item in dict.fromkeys(item for source in everyone for item in source.facts):
        asked = [source for source in everyone if source.covers(_owner(item)) or item in source.facts]
        # Of a struct that is missing altogether nothing more is to be said.
        asked = [source for source in asked if item == _owner(item) or _owner(item) in source.facts]
        having = [source for source in asked if item in source.facts]
        if len(having) < len(asked):
            yield _finding(item, "", asked, [source in having for source in asked], record)
        for attribute in dict.fromkeys(name for source in having for name in source.facts[item]):
            told = [source for source in having if source.facts[item].get(attribute) is not None]
            values = [source.facts[item][attribute] for source in told]
            if len(set(values)) > 1:
                yield _finding(item, attribute, told, values, record)


def holes(sources: Sequence[Source]) -> Iterator[Finding]:
    """A finding for each hole that a compiler has put into a struct."""
    found: dict[tuple[str, Hole], list[Source]] = {}
    for source in sources:
        for struct in source.interface.structs.values() if source.pads else ():
            for hole in struct.holes():
                found.setdefault((struct.name, hole), []).append(source)
    for (name, hole), where in found.items():
        item = f"{name}.{hole.before}" if hole.before else name
        side = "before it" if hole.before else "at its end"
        message = f"{item}: {hole.size} bytes of implicit padding {side} in {_names(where)}: fill them with a field"
        yield Finding(where[0].file, where[0].place(item), message, HOLE)


def _owner(item: str) -> str:
    return item.partition(".")[0]


def _finding(
    item: str, attribute: str, told: Sequence[Source], values: Sequence[object], record: Source | None
) -> Finding:
    groups: dict[object, list[Source]] = {}
    for source, value in zip(told, values, strict=True):
        groups.setdefault(value, []).append(source)
    reference = next((index for index, source in enumerate(told) if source is record), 0)
    wrong = next(source for source, value in zip(told, values, strict=True) if value != values[reference])
    is_command = attribute == "value" and any(item in source.interface.ioctls for source in told)
    said = ", ".join(f"{_text(value, is_command)} in {_names(group)}" for value, group in groups.items())
    only_the_record = record is not None and any(group == [record] for group in groups.values()) and len(groups) == 2
    rule = UNRECORDED if only_the_record else LAYOUT
    hint = "; `pyharness abi --record` takes an intended change" if only_the_record else ""
    return Finding(wrong.file, wrong.place(item), f"{item}: {attribute + ' ' if attribute else ''}{said}{hint}", rule)


def _text(value: object, is_command: bool) -> str:
    if isinstance(value, bool):
        return "present" if value else "missing"
    return f"{value:#x}" if is_command else str(value)


def _names(sources: Sequence[Source]) -> str:
    names = [source.name for source in sources]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
