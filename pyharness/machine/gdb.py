# SPDX-License-Identifier: GPL-2.0-only
"""A guest that waits for gdb, and what gdb must be told of it: symbols, the modules' addresses, sources."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyharness.errors import HarnessError
from pyharness.machine.command import quote
from pyharness.machine.vm import Machine

_POLL_S = 0.1

# Sections that stay in memory and that DWARF speaks of; those of a module's initialisation are freed.
_KEPT = (".text", ".noinstr.text", ".exit.text", ".data", ".rodata", ".bss")


@dataclass(frozen=True)
class LoadedModule:
    """A module in the guest: the host's file with its DWARF, its sources, and where the kernel put its sections."""

    debug: Path
    sources: Path
    sections: Mapping[str, int]


def wait_for_gdb(machine: Machine, tell: Callable[[str], None]) -> None:
    """Stop the guest until somebody has attached gdb and let it go on.

    `tell` is given the command that does it. gdb may be attached again at any time after. Raises HarnessError when
    QEMU does not listen for gdb.
    """
    run_dir = machine.run_dir
    commands = gdb_commands(run_dir.gdb_socket, machine.config.kernel.vmlinux, loaded_modules(machine))
    run_dir.gdb_commands.write_text(commands)
    answer = machine.qmp.execute(
        "human-monitor-command", command_line=f'gdbserver "unix:{quote(run_dir.gdb_socket)},server=on,wait=off"'
    )
    if not run_dir.gdb_socket.exists():
        raise HarnessError(f"QEMU does not listen for gdb: {answer.strip()}")
    before = _resumptions(machine)
    machine.qmp.execute("stop")
    tell(f"gdb -x {run_dir.gdb_commands}")
    while _resumptions(machine) == before:
        machine.check()
        time.sleep(_POLL_S)


def _resumptions(machine: Machine) -> int:
    return sum(event["event"] == "RESUME" for event in machine.qmp.events)


def loaded_modules(machine: Machine) -> list[LoadedModule]:
    """What was loaded into the guest from files of the host that have their DWARF and their sources beside them."""
    sections = machine.guest.module("pyharness.guest.kernel").sections
    return [
        LoadedModule(debug, path.parent / "sources", dict(sections(name)))
        for name, path in machine.guest.loaded.items()
        if (debug := path.with_suffix(".debug.ko")).exists()
    ]


def gdb_commands(socket: Path, vmlinux: Path | None, modules: Sequence[LoadedModule]) -> str:
    """A command file that attaches gdb to the guest whose gdbstub listens on `socket`."""
    lines = ["set pagination off", "set confirm off"]
    if vmlinux:
        lines.append(f"file {vmlinux}")
    lines += [f"directory {loaded.sources}" for loaded in modules]
    lines += [_add_symbols(loaded) for loaded in modules]
    return "\n".join([*lines, "set confirm on", f"target remote {socket}", ""])


def _add_symbols(loaded: LoadedModule) -> str:
    kept = {name: address for name, address in loaded.sections.items() if _is_kept(name)}
    sections = " ".join(f"-s {name} {address:#x}" for name, address in sorted(kept.items()))
    return f"add-symbol-file {loaded.debug} {sections}"


def _is_kept(section: str) -> bool:
    return any(section == name or section.startswith(f"{name}.") for name in _KEPT)
