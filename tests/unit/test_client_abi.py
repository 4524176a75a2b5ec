# SPDX-License-Identifier: GPL-2.0-only
"""The ctypes mirror against the header itself, compiled for 64-bit and 32-bit programs."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from pyharness.client import abi

HEADER = Path(__file__).parents[2] / "uapi" / "hv_azure_blob.h"
STRUCTS: dict[str, type[ctypes.Structure]] = {
    "az_blob_request_sync": abi.AzBlobRequestSync,
    "az_blob_response": abi.AzBlobResponse,
}


def compile_header(directory: Path, mode: str) -> Path:
    source = directory / "abi.c"
    source.write_text(
        f'#include "{HEADER}"\n'
        "struct az_blob_request_sync sync;\n"
        "unsigned int ioctl_number = AZURE_BLOB_IOCTL;\n"
        "unsigned int max_pages = AZURE_BLOB_MAX_PAGES;\n"
    )
    # A 32-bit compiler without its own library still finds the kernel's headers, which serve both.
    multiarch = subprocess.run(["gcc", "-print-multiarch"], capture_output=True, text=True, check=True).stdout.strip()
    includes = f"-I/usr/include/{multiarch}"
    target = directory / f"abi{mode}.o"
    subprocess.run(
        ["gcc", mode, "-c", "-g", "-ffreestanding", "-Wall", "-Werror", "-Wpadded", includes, source, "-o", target],
        check=True,
    )
    return target


@pytest.fixture(scope="module", params=["-m64", "-m32"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_header(tmp_path_factory.mktemp("abi"), request.param)


def resolve(die: DIE) -> DIE:
    """The type behind typedefs and qualifiers."""
    found = die.get_DIE_from_attribute("DW_AT_type")
    while found.tag in ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type"):
        found = found.get_DIE_from_attribute("DW_AT_type")
    return found


def size_of(die: DIE) -> int:
    if die.tag == "DW_TAG_array_type":
        (bound,) = (child.attributes["DW_AT_upper_bound"].value for child in die.iter_children())
        return int(bound + 1) * size_of(resolve(die))
    return int(die.attributes["DW_AT_byte_size"].value)


def dwarf_layout(path: Path) -> dict[str, tuple[int, list[tuple[str, int, int]]]]:
    """Size and (field, offset, size) of each struct of the header."""
    layout = {}
    with path.open("rb") as stream:
        for unit in ELFFile(stream).get_dwarf_info().iter_CUs():
            for die in unit.iter_DIEs():
                name = die.attributes.get("DW_AT_name")
                if die.tag == "DW_TAG_structure_type" and name is not None:
                    fields = [
                        (
                            child.attributes["DW_AT_name"].value.decode(),
                            child.attributes["DW_AT_data_member_location"].value,
                            size_of(resolve(child)),
                        )
                        for child in die.iter_children()
                    ]
                    layout[name.value.decode()] = (size_of(die), fields)
    return layout


def ctypes_layout(struct: type[ctypes.Structure]) -> tuple[int, list[tuple[str, int, int]]]:
    fields = [field[0] for field in struct._fields_]
    described = [(name, getattr(struct, name).offset, getattr(struct, name).size) for name in fields]
    return ctypes.sizeof(struct), described


@pytest.mark.parametrize("name", STRUCTS)
def test_layout_is_that_of_the_header(compiled: Path, name: str) -> None:
    assert ctypes_layout(STRUCTS[name]) == dwarf_layout(compiled)[name]


def test_request_is_72_bytes_without_holes() -> None:
    size, fields = ctypes_layout(abi.AzBlobRequestSync)
    assert size == 72
    at = 0
    for _, offset, length in fields:
        assert offset == at
        at += length
    assert at == size


def test_numbers_are_those_of_the_header(compiled: Path) -> None:
    with compiled.open("rb") as stream:
        elf = ELFFile(stream)
        data = elf.get_section_by_name(".data")
        table = elf.get_section_by_name(".symtab")
        assert data is not None
        assert isinstance(table, SymbolTableSection)
        symbols = {symbol.name: symbol for symbol in table.iter_symbols()}

        def value(name: str) -> int:
            at = symbols[name]["st_value"]
            return int.from_bytes(data.data()[at : at + 4], "little")

        assert value("ioctl_number") == abi.AZURE_BLOB_IOCTL
        assert value("max_pages") == abi.MAX_PAGES
