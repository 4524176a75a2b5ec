# SPDX-License-Identifier: GPL-2.0-only
"""Structs, enumerators and the values of variables in an object that the compiler has made."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from pyharness.abi.model import Field, Struct
from pyharness.errors import CheckFailed

_TRANSPARENT = ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type")
_SIGNED = {0x05: "s", 0x06: "s"}  # DW_ATE_signed, DW_ATE_signed_char


def structs_of(path: Path) -> dict[str, Struct]:
    """Each struct that has a name. Raises CheckFailed for a bit-field: compilers differ on where it is."""
    return {
        struct.name: struct
        for die in _top_level(path, "DW_TAG_structure_type")
        if "DW_AT_name" in die.attributes and "DW_AT_declaration" not in die.attributes
        for struct in [_struct(die)]
    }


def enumerators_of(path: Path) -> dict[str, int]:
    """The enumerators of all enums."""
    return {
        _name(each): int(each.attributes["DW_AT_const_value"].value)
        for die in _top_level(path, "DW_TAG_enumeration_type")
        for each in die.iter_children()
    }


def values_of(path: Path, prefix: str) -> dict[str, int]:
    """The values of the constants of 8 bytes whose names begin with `prefix`, by the rest of the name."""
    found = {}
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        for symbol in table.iter_symbols():
            if symbol.name.startswith(prefix):
                at = symbol["st_value"]
                octets = elf.get_section(symbol["st_shndx"]).data()[at : at + 8]
                found[symbol.name.removeprefix(prefix)] = int.from_bytes(octets, "little")
    return found


def _top_level(path: Path, tag: str) -> Iterator[DIE]:
    with path.open("rb") as stream:
        for unit in ELFFile(stream).get_dwarf_info().iter_CUs():
            yield from (die for die in unit.get_top_DIE().iter_children() if die.tag == tag)


def _name(die: DIE) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return str(attribute.value.decode()) if attribute else ""


def _struct(die: DIE) -> Struct:
    members = [child for child in die.iter_children() if child.tag == "DW_TAG_member"]
    fields = [_field(member, _name(die)) for member in members]
    size = int(die.attributes["DW_AT_byte_size"].value)
    return Struct(_name(die), size, None, tuple(one for one in fields if one is not None))


def _field(member: DIE, struct: str) -> Field | None:
    if "DW_AT_data_member_location" not in member.attributes:
        raise CheckFailed(f"{struct}.{_name(member)} is a bit-field: give it a type and masks instead")
    kind, count = _resolve(member), 0
    if kind.tag == "DW_TAG_array_type":
        count = prod(_elements(child) for child in kind.iter_children())
        if not count:
            return None
        kind = _resolve(kind)
    each = int(kind.attributes["DW_AT_byte_size"].value)
    offset = int(member.attributes["DW_AT_data_member_location"].value)
    return Field(_name(member), offset, each * (count or 1), _type_name(kind, each), count)


def _elements(bounds: DIE) -> int:
    upper = bounds.attributes.get("DW_AT_upper_bound")
    return int(upper.value) + 1 if upper else 0


def _resolve(die: DIE) -> DIE:
    """The type behind typedefs and qualifiers."""
    found = die.get_DIE_from_attribute("DW_AT_type")
    while found.tag in _TRANSPARENT:
        found = found.get_DIE_from_attribute("DW_AT_type")
    return found


def _type_name(die: DIE, size: int) -> str:
    if die.tag == "DW_TAG_base_type":
        return f"{_SIGNED.get(die.attributes['DW_AT_encoding'].value, 'u')}{8 * size}"
    kind = str(die.tag).removeprefix("DW_TAG_").removesuffix("_type").replace("structure", "struct")
    return f"{kind} {_name(die)}".rstrip()
