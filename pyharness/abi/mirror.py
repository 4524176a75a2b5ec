# SPDX-License-Identifier: GPL-2.0-only
"""What a module of Python takes an interface for: structures of ctypes, layouts of `pyharness.vsp`, numbers."""

from __future__ import annotations

import ctypes
import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

from pyharness.abi.model import Field, Struct
from pyharness.vsp.layout import Layout


@dataclass(frozen=True)
class Mirror:
    """What a module defines; `fault` is why it did not run to its end, if so.

    Members of an enum are numbers too: `Status.SUCCESS`.
    """

    structs: dict[str, Struct]
    numbers: dict[str, int]
    fault: str = ""


def load(path: Path) -> Mirror:
    """Run the module of that file, wherever it is; what it imports is the running harness's."""
    module = ModuleType(f"_abi_{path.stem}")
    module.__file__ = str(path)
    fault = ""
    try:
        # Not by importlib, which would take an earlier copy's bytecode for one of the same size and second.
        exec(compile(path.read_text(), path, "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    own = {name: value for name, value in vars(module).items() if _is_own(value, module)}
    structures = [one for one in own.values() if isinstance(one, type) and issubclass(one, ctypes.Structure)]
    layouts = [one for one in own.values() if isinstance(one, Layout)]
    structs = [*map(_of_ctypes, structures), *map(_of_layout, layouts)]
    return Mirror({one.name: one for one in structs}, _numbers(own), fault)


def snake_case(name: str) -> str:
    """The name in C of a class of ctypes: AzBlobResponse is az_blob_response."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _is_own(value: object, module: ModuleType) -> bool:
    return not isinstance(value, type) or value.__module__ == module.__name__


def _numbers(own: dict[str, Any]) -> dict[str, int]:
    enums = [value for value in own.values() if isinstance(value, type) and issubclass(value, IntEnum)]
    members = {f"{enum.__name__}.{name}": int(one) for enum in enums for name, one in enum.__members__.items()}
    plain = {name: value for name, value in own.items() if re.fullmatch(r"[A-Z]\w*", name) and type(value) is int}
    return plain | members


def _of_ctypes(kind: type[ctypes.Structure]) -> Struct:
    fields = []
    described: list[tuple[str, Any]] = [(name, of) for name, of, *_ in kind._fields_]
    for name, of in described:
        place = getattr(kind, name)
        count = getattr(of, "_length_", 0)
        fields.append(Field(name, place.offset, place.size, _ctypes_name(of._type_ if count else of), count))
    return Struct(snake_case(kind.__name__), ctypes.sizeof(kind), ctypes.alignment(kind), tuple(fields))


def _ctypes_name(kind: Any) -> str:
    if issubclass(kind, ctypes.Structure):
        return f"struct {snake_case(kind.__name__)}"
    if kind._type_ in "zZPO":
        return "pointer"
    return _integer(kind._type_, ctypes.sizeof(kind))


def _of_layout(layout: Layout) -> Struct:
    fields, at = [], 0
    for name, code in layout.fields:
        size = struct.calcsize("<" + code)
        count = size if code.endswith("s") else 0
        fields.append(Field(name, at, size, "u8" if count else _integer(code, size), count))
        at += size
    return Struct(layout.name, layout.size, None, tuple(fields))


def _integer(code: str, size: int) -> str:
    """The type of one of struct's or ctypes' codes: signed ones are small letters."""
    return f"{'s' if code.islower() else 'u'}{8 * size}"
