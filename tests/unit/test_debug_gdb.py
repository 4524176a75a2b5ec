# SPDX-License-Identifier: GPL-2.0-only
"""What gdb is told."""

from __future__ import annotations

from pathlib import Path

from pyharness.machine.gdb import LoadedModule, gdb_commands

SECTIONS = {".text": 0xFFFFFFFFC0001000, ".init.text": 0xFFFFFFFFC0009000, ".data.once": 0x3000, "__ksymtab": 0x5000}
MODULE = LoadedModule(Path("/cache/m.debug.ko"), Path("/cache/sources"), SECTIONS)


def test_sections_that_stay_have_their_addresses_and_freed_ones_are_left_out() -> None:
    (line,) = [line for line in gdb_commands(Path("/run/gdb"), None, [MODULE]).splitlines() if "add-symbol" in line]
    assert line == "add-symbol-file /cache/m.debug.ko -s .data.once 0x3000 -s .text 0xffffffffc0001000"


def test_the_kernel_comes_before_its_modules_and_the_guest_last() -> None:
    words = [line.split()[0] for line in gdb_commands(Path("/run/gdb"), Path("/vmlinux"), [MODULE]).splitlines()]
    assert words == ["set", "set", "file", "directory", "add-symbol-file", "set", "target"]


def test_a_kernel_without_symbols_is_not_named() -> None:
    lines = gdb_commands(Path("/run/gdb"), None, [MODULE]).splitlines()
    assert not any(line.startswith("file") for line in lines)
    assert lines[-1] == "target remote /run/gdb"
