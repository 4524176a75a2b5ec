# SPDX-License-Identifier: GPL-2.0-only
"""What the compiler makes of a header of C."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from pyharness.abi import dwarf
from pyharness.abi.model import Interface, Ioctl, Struct
from pyharness.artifacts.run import run

_MACRO = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+(?!__attribute__)(\S.*)$", re.MULTILINE)
_STRUCT = re.compile(r"\bstruct\b[^;{}()]*?\b(\w+)\s*\{")
_IOCTL = re.compile(r"_IO(?:\(|(?:R|W|WR)\(.*,\s*(?:struct\s+)?(?P<argument>\w+)\s*\))")
_COMPILE = ("gcc", "-c", "-g", "-std=gnu11", "-ffreestanding", "-fno-eliminate-unused-debug-types")


def compile_header(header: Path, bits: int) -> Interface:
    """The structs, the constants (macros and enumerators) and the ioctls of a header, in a program of 32 or 64 bits.

    Raises CommandFailed when it does not compile.
    """
    text = header.read_text()
    macros = dict(_MACRO.findall(_without_comments(text)))
    # Headers that the host has for the kernel's own interface serve 32-bit programs as well; gcc just looks elsewhere.
    multiarch = run(["gcc", "-print-multiarch"])[-1]
    command = [*_COMPILE, f"-m{bits}", f"-I/usr/include/{multiarch}"]
    with TemporaryDirectory(prefix="pyharness-abi.") as directory:
        source, target = Path(directory) / "abi.c", Path(directory) / "abi.o"

        def compiled(lines: list[str]) -> Path:
            source.write_text("\n".join([f'#include "{header}"', *lines, ""]))
            run([*command, source, "-o", target])
            return target

        own = set(_STRUCT.findall(text))
        found = {name: struct for name, struct in dwarf.structs_of(compiled([])).items() if name in own}
        asked = {name: name for name in macros} | {f"align_{name}": f"_Alignof(struct {name})" for name in found}
        told = compiled([f"const unsigned long long abi_{name} = {value};" for name, value in asked.items()])
        values = dwarf.values_of(told, "abi_")
        enumerators = {name: value for name, value in dwarf.enumerators_of(told).items() if name in text}
    return _interface(found, macros, values, enumerators)


def _without_comments(text: str) -> str:
    """And with lines that go on joined."""
    return re.sub(r"\\\n", " ", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL))


def _interface(
    structs: Mapping[str, Struct], macros: Mapping[str, str], values: Mapping[str, int], enumerators: Mapping[str, int]
) -> Interface:
    ioctls = {name: match["argument"] or "" for name, text in macros.items() if (match := _IOCTL.match(text.strip()))}
    return Interface(
        {name: Struct(name, one.size, values[f"align_{name}"], one.fields) for name, one in structs.items()},
        dict(enumerators) | {name: values[name] for name in macros if name not in ioctls},
        {name: Ioctl(values[name], argument) for name, argument in ioctls.items()},
    )
