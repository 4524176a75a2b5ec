# SPDX-License-Identifier: GPL-2.0-only
"""What the parameters of a behaviour may be, said once, in its signature: for Python and for scenario files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Annotated, Any, get_args, get_origin, get_type_hints

_MAX_U64 = 2**64 - 1


@dataclass(frozen=True)
class Within:
    """A number in these bounds, both included. `names` are other words for some of them."""

    least: float
    most: float
    names: type[IntEnum] | None = None


Seconds = Annotated[float, Within(0, 3600)]
Count = Annotated[int, Within(1, 1 << 20)]
Bytes = Annotated[int, Within(0, 1 << 32)]
PayloadSize = Annotated[int, Within(0, 4096)]
Probability = Annotated[float, Within(0, 1)]
Seed = Annotated[int, Within(0, _MAX_U64)]
TransactionId = Annotated[int, Within(0, _MAX_U64)]
U32 = Annotated[int, Within(0, 2**32 - 1)]
U16 = Annotated[int, Within(0, 2**16 - 1)]
U8 = Annotated[int, Within(0, 2**8 - 1)]


class BadParameter(ValueError):
    """A parameter is none of those that a behaviour has, or not what it may be."""

    def __init__(self, name: str, reason: str, allowed: str) -> None:
        super().__init__(f"{name}: {reason}; allowed: {allowed}")
        self.name = name
        self.reason = reason
        self.allowed = allowed


@dataclass(frozen=True)
class Parameter:
    """One parameter: its name, what it may be, and its default, if it has one."""

    name: str
    kind: type
    within: Within | None
    choices: tuple[str, ...]
    default: Any

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is inspect.Parameter.empty

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.within is None:
            return {str: "a string", bool: "true or false"}[self.kind]
        least, most = self.within.least, self.within.most
        bound = f"{most:#x}" if isinstance(most, int) and most > 1 << 20 else str(most)
        words = f"{'a whole number' if self.kind is int else 'a number'} {least} to {bound}"
        names = [member.name for member in self.within.names or ()]
        return f"{words}, or one of {', '.join(names)}" if names else words

    def checked(self, value: object) -> Any:
        """The value as the behaviour is to get it. Raises BadParameter."""
        if self.within and self.within.names and isinstance(value, str) and value in self.within.names.__members__:
            return self.within.names[value]
        right = isinstance(value, (int, float) if self.kind is float else self.kind)
        if isinstance(value, bool) and self.kind is not bool:
            right = False
        if right and self.within:
            right = self.within.least <= value <= self.within.most  # type: ignore[operator]
        if right and self.choices:
            right = value in self.choices
        if not right:
            raise BadParameter(self.name, f"{value!r} cannot be", self.allowed)
        return value


class Signature:
    """The parameters of a function, as its annotations describe them."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """By name; what is annotated otherwise than with the types above is no parameter."""
        hints = get_type_hints(self._function, include_extras=True)
        found = {}
        for name, parameter in inspect.signature(self._function).parameters.items():
            if parameter.kind is not inspect.Parameter.VAR_POSITIONAL and (kind := _kind_of(hints.get(name))):
                found[name] = Parameter(name, *kind, parameter.default)
        return found

    def check(self, given: Mapping[str, object]) -> dict[str, Any]:
        """The parameters as the function is to get them. Raises BadParameter."""
        for name in given:
            if name not in self.parameters:
                raise BadParameter(name, "there is no such parameter", ", ".join(self.parameters) or "none")
        for parameter in self.parameters.values():
            if parameter.required and parameter.name not in given:
                raise BadParameter(parameter.name, "it is missing", parameter.allowed)
        return {name: self.parameters[name].checked(value) for name, value in given.items()}


def _kind_of(hint: Any) -> tuple[type, Within | None, tuple[str, ...]] | None:
    if hint in (str, bool):
        return hint, None, ()
    if get_origin(hint) is Annotated:
        kind, extra = get_args(hint)
        return (kind, extra, ()) if isinstance(extra, Within) else (kind, None, extra)
    return None
