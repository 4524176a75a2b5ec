# SPDX-License-Identifier: GPL-2.0-only
"""Structs in BTF, the kernel's own type format (Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pyharness.abi.model import Field, Struct
from pyharness.artifacts.run import run
from pyharness.errors import CheckFailed, HarnessError

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_ARRAY = struct.Struct("<III")
_INT = struct.Struct("<I")

_KIND_INT, _KIND_PTR, _KIND_ARRAY, _KIND_STRUCT, _KIND_UNION, _KIND_ENUM, _KIND_ENUM64 = 1, 2, 3, 4, 5, 6, 19
_TRANSPARENT = (8, 9, 10, 11, 18)  # typedef, volatile, const, restrict, type tag
_POINTER_SIZE = 8

# What follows a type of each kind: bytes in any case, and bytes for each of its elements. Other kinds: nothing.
_TAIL = {
    _KIND_INT: (_INT.size, 0),
    _KIND_ARRAY: (_ARRAY.size, 0),
    _KIND_STRUCT: (0, _MEMBER.size),
    _KIND_UNION: (0, _MEMBER.size),
    _KIND_ENUM: (0, 8),
    13: (0, 8),  # prototype of a function
    14: (4, 0),  # variable
    15: (0, 12),  # section
    17: (4, 0),  # declaration tag
    _KIND_ENUM64: (0, 12),
}
_WORD = {_KIND_STRUCT: "struct", _KIND_UNION: "union", _KIND_ENUM: "enumeration", _KIND_ENUM64: "enumeration"}


def of_module(module: Path) -> bytes:
    """The BTF of a module that has DWARF.

    It is what the kernel's build makes of it, but whole: types that vmlinux has too are not left out, so that vmlinux
    is not needed to read it. Raises HarnessError when pahole is missing or fails.
    """
    with TemporaryDirectory(prefix="pyharness-btf.") as directory:
        target = Path(directory) / "btf"
        run(["pahole", "-J", f"--btf_encode_detached={target}", module])
        return target.read_bytes()


def structs_of(blob: bytes, names: Collection[str]) -> dict[str, Struct]:
    """Those of the named structs that there are.

    Raises HarnessError for what is no BTF, and CheckFailed for a bit-field: compilers differ on where it is.
    """
    types = _read(blob)
    chosen = [each for each in types if each.kind == _KIND_STRUCT and each.name in names]
    return {each.name: Struct(each.name, each.size, None, tuple(_fields(types, each))) for each in chosen}


@dataclass(frozen=True)
class _Type:
    """`size` in bytes where the kind has one, else the number of the type that this one is made of."""

    name: str
    kind: int
    size: int
    has_bit_fields: bool = False
    members: tuple[tuple[str, int, int], ...] = ()
    """Of a struct: name, number of the type, offset in bits."""
    detail: int = 0
    """Of an integer: its encoding. Of an array: how many elements it has."""


def _read(blob: bytes) -> list[_Type]:
    """All types by their number."""
    magic, _, _, start, type_at, type_size, string_at, string_size = _HEADER.unpack_from(blob.ljust(_HEADER.size))
    if magic != _MAGIC or len(blob) < start + string_at + string_size:
        raise HarnessError("what pahole wrote is not BTF", mend="install the Debian package pahole anew")

    def text(at: int) -> str:
        begin = start + string_at + at
        return blob[begin : blob.index(0, begin)].decode()

    types = [_Type("void", 0, 0)]
    at, end = start + type_at, start + type_at + type_size
    while at < end:
        name, info, size = _TYPE.unpack_from(blob, at)
        at += _TYPE.size
        kind = info >> 24 & 0x1F
        fixed, each = _TAIL.get(kind, (0, 0))
        tail = blob[at : at + fixed + each * (info & 0xFFFF)]
        at += len(tail)
        members: tuple[tuple[str, int, int], ...] = ()
        detail = 0
        if kind == _KIND_STRUCT:
            members = tuple((text(named), number, bits) for named, number, bits in _MEMBER.iter_unpack(tail))
        elif kind == _KIND_INT:
            (detail,) = _INT.unpack(tail)
        elif kind == _KIND_ARRAY:
            size, _, detail = _ARRAY.unpack(tail)
        types.append(_Type(text(name), kind, size, bool(info >> 31), members, detail))
    return types


def _fields(types: list[_Type], owner: _Type) -> Iterator[Field]:
    for name, number, bits in owner.members:
        if owner.has_bit_fields and bits >> 24:
            raise CheckFailed(f"{owner.name}.{name} is a bit-field: give it a type and masks instead")
        kind, count = _resolve(types, number), 0
        if kind.kind == _KIND_ARRAY:
            count = 1
            while kind.kind == _KIND_ARRAY:
                count *= kind.detail
                kind = _resolve(types, kind.size)
            if not count:
                continue
        size = _POINTER_SIZE if kind.kind == _KIND_PTR else kind.size
        yield Field(name, bits // 8, size * (count or 1), _type_name(kind), count)


def _resolve(types: list[_Type], number: int) -> _Type:
    """The type behind typedefs and qualifiers."""
    while types[number].kind in _TRANSPARENT:
        number = types[number].size
    return types[number]


def _type_name(kind: _Type) -> str:
    if kind.kind == _KIND_INT:
        is_signed = kind.detail >> 24 & 1
        return f"{'s' if is_signed else 'u'}{8 * kind.size}"
    return f"{_WORD.get(kind.kind, 'pointer')} {kind.name}".rstrip()
