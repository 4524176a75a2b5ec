# SPDX-License-Identifier: GPL-2.0-only
"""Opens a kernel's memory with drgn, with the symbols that belong to it out of the cache.

Which kernel and which builds of the modules they are is told by their build ids, which the memory holds: nobody has to
say, and symbols of another build are never taken.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import drgn

from pyharness.artifacts.cache import Cache
from pyharness.errors import HarnessError, UsageError
from pyharness.machine.vm import Machine

_WANTED = ("hv_vmbus", "hv_azure_blob")


def open_dump(dump: Path, cache: Cache) -> drgn.Program:
    """The memory in a dump of a guest.

    Raises UsageError when it is no dump of a kernel, HarnessError when the cache has no symbols for it.
    """
    program = drgn.Program()
    try:
        program.set_core_dump(dump)
    except Exception as error:  # drgn passes libkdumpfile's complaints on as such
        raise UsageError(f"cannot read {dump}: {error}", mend="name a dump that --dump has left") from error
    if not program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
        raise UsageError(
            f"{dump} does not say which kernel it is of",
            mend="the kernel says so once it has got through most of its boot (CONFIG_FW_CFG_SYSFS)",
        )
    return _with_symbols(program, cache)


@contextmanager
def open_live(machine: Machine, cache: Cache) -> Iterator[drgn.Program]:
    """The memory of a running guest, which stands still meanwhile.

    Raises HarnessError when the guest cannot be read, or the cache has no symbols for it.
    """
    with machine.paused(), socket.socket(socket.AF_UNIX) as qmp:
        try:
            qmp.connect(str(machine.run_dir.debug_socket))
            program = drgn.Program()
            program.set_qemu_qmp(os.dup(qmp.fileno()))  # it closes what it is given
        except (OSError, ValueError) as error:
            raise HarnessError(f"drgn cannot read the guest's memory: {error}") from error
        try:
            yield _with_symbols(program, cache)
        finally:
            # QEMU serves one client, and nobody knows when the last reference to the program goes.
            qmp.shutdown(socket.SHUT_RDWR)


def _with_symbols(program: drgn.Program, cache: Cache) -> drgn.Program:
    """Load the DWARF of the kernel and of our modules, and of nothing else."""
    # The kernel comes first, and its symbols are what finds the modules.
    for module, _ in program.loaded_modules():
        if isinstance(module, drgn.MainModule):
            _load(module, cache, "kernel", "vmlinux", "choose a kernel with symbols: Debian's have none")
        elif module.name in _WANTED:
            _load(module, cache, "module", f"{module.name}.debug.ko", "build its sources again")
    return program


def _load(module: drgn.Module, cache: Cache, kind: str, name: str, mend: str) -> None:
    """Take the file `name` of the entry that belongs to the module; the last used is the most likely one."""
    for entry in reversed([entry for entry in cache.entries() if entry.kind == kind]):
        path = entry.path / name
        if path.exists() and cache.get(kind, entry.key):
            module.try_file(path)
        if not module.wants_debug_file():
            return
    raise HarnessError(f"the cache has no symbols for this build of {Path(name).stem.split('.')[0]}", mend=mend)
