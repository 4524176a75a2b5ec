# SPDX-License-Identifier: GPL-2.0-only
"""Scenario files: TOML that describes how the host behaves. `docs/behaviours.md` has the format."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pyharness.errors import UsageError
from pyharness.machine.vmbus import MessageType, VmbusDevice
from pyharness.vsp.behaviours import BEHAVIOURS, CONDITIONS, Maker, besides, hold
from pyharness.vsp.parameters import BadParameter, Signature
from pyharness.vsp.play import Behaviour

MESSAGES = {
    "open": MessageType.OPENCHANNEL,
    "close": MessageType.CLOSECHANNEL,
    "gpadl": MessageType.GPADL_HEADER,
    "gpadl_teardown": MessageType.GPADL_TEARDOWN,
    "released": MessageType.RELID_RELEASED,
}
"""The VMBus messages about a device that a host may ignore."""

REFUSABLE = ("open", "gpadl")
"""Those that have an answer in which to refuse."""

CHOICES: Mapping[str, Maker[...]] = {name: maker for name, maker in BEHAVIOURS.items() if maker is not hold}
"""What a file may do: nobody would release what it holds."""


@dataclass(frozen=True)
class Scenario:
    """How a host behaves, and what its guest's kernel may say to that. The default is an honest host."""

    summary: str = ""
    behaviours: tuple[Behaviour, ...] = ()
    tolerate: tuple[str, ...] = ()
    """Parts of the kernel's warnings that are no fault."""
    ignore: tuple[str, ...] = ()
    refuse: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Scenario:
        """Raises UsageError, which names the file and the key, and says what is allowed."""
        file = _File(path)
        top = file.table(file.content(), "", _TOP)
        device = file.table(top.get("device", {}), "device", _DEVICE)
        rows = [
            _behaviour(file, row, f"behaviour[{number}]")
            for number, row in enumerate(top.get("behaviour", ()), start=1)
        ]
        return cls(
            top.get("summary", ""),
            tuple(rows),
            tuple(top.get("tolerate", ())),
            tuple(device.get("ignore", ())),
            tuple(device.get("refuse", ())),
        )

    def prepare(self, device: VmbusDevice) -> None:
        """Let the device itself misbehave, below the VSP, before the guest's driver finds it."""
        if self.ignore:
            device.ignore(*(MESSAGES[name] for name in self.ignore))
        if self.refuse:
            device.refuse(*(MESSAGES[name] for name in self.refuse))


HONEST = Scenario()


@dataclass(frozen=True)
class _Value:
    """What a key of a table may hold."""

    allowed: str
    fits: Callable[[Any], bool]


def _list_of(allowed: str, fits: Callable[[Any], bool]) -> _Value:
    return _Value(allowed, lambda value: isinstance(value, list) and all(map(fits, value)))


def _names(names: Iterable[str]) -> _Value:
    return _list_of(f"a list of {', '.join(names)}", lambda name: name in names)


_TOP = {
    "summary": _Value("a string", lambda value: isinstance(value, str)),
    "tolerate": _list_of("a list of strings that are not empty", lambda part: isinstance(part, str) and bool(part)),
    "behaviour": _list_of("tables, each headed [[behaviour]]", lambda row: isinstance(row, dict)),
    "device": _Value("a table, headed [device]", lambda value: isinstance(value, dict)),
}
_DEVICE = {"ignore": _names(MESSAGES), "refuse": _names(REFUSABLE)}


@dataclass(frozen=True)
class _File:
    path: Path

    def content(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.path.read_text())
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(f"cannot read {self.path}: {reason}", mend="name a scenario file") from error
        except ValueError as error:  # not TOML, or not UTF-8
            raise UsageError(
                f"{self.path} is not TOML: {error}", mend="see docs/behaviours.md for the format"
            ) from error

    def wrong(self, key: str, what: str, allowed: str) -> NoReturn:
        raise UsageError(f"{self.path}: {key}: {what}", mend=f"allowed: {allowed}")

    def table(self, table: dict[str, Any], where: str, keys: Mapping[str, _Value]) -> dict[str, Any]:
        """The table, once its keys and values are known to be right."""
        for name, value in table.items():
            key = f"{where}.{name}" if where else name
            if name not in keys:
                self.wrong(key, "there is no such key", ", ".join(keys))
            if not keys[name].fits(value):
                self.wrong(key, f"{value!r} cannot be", keys[name].allowed)
        return table


def _behaviour(file: _File, row: dict[str, Any], where: str) -> Behaviour:
    name = row.get("do")
    if name is None:
        file.wrong(f"{where}.do", "it is missing", ", ".join(CHOICES))
    if not isinstance(name, str) or name not in CHOICES:
        file.wrong(f"{where}.do", f"there is no behaviour {name!r}", ", ".join(CHOICES))
    maker = CHOICES[name]
    given = {key: value for key, value in row.items() if key not in CONDITIONS and key not in ("do", "besides")}
    if unknown := [key for key in given if key not in maker.signature.parameters]:
        allowed = ", ".join(("do", *maker.signature.parameters, "besides", *CONDITIONS))
        file.wrong(f"{where}.{unknown[0]}", f"{name} has no such key", allowed)
    behaviour = maker(**_checked(file, where, maker.signature, given))
    both = row.get("besides", False)
    if not isinstance(both, bool):
        file.wrong(f"{where}.besides", f"{both!r} cannot be", "true or false")
    if both:
        behaviour = besides(behaviour)
    # The last condition is the innermost: it counts what the others have let through.
    for condition in reversed([condition for condition in CONDITIONS if condition in row]):
        signature = Signature(CONDITIONS[condition])
        value = row[condition]
        first = next(iter(signature.parameters))
        inside = value if isinstance(value, dict) else {first: value}
        arguments = _checked(file, f"{where}.{condition}", signature, inside)
        behaviour = CONDITIONS[condition](arguments.pop(first), behaviour, **arguments)
    return behaviour


def _checked(file: _File, where: str, signature: Signature, given: Mapping[str, object]) -> dict[str, Any]:
    try:
        return signature.check(given)
    except BadParameter as error:
        file.wrong(f"{where}.{error.name}", error.reason, error.allowed)
