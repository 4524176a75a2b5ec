# SPDX-License-Identifier: GPL-2.0-only
"""Opens a kernel's memory with drgn, with the symbols that belong to it out of the cache.

Which kernel and which builds of the modules they are is told by their build ids, which the memory holds: nobody has to
say, and symbols of another build are never taken.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import drgn
from qemu.qmp import QMPError

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import DEBUG_KERNEL
from pyharness.artifacts.modules import DRIVER, VMBUS
from pyharness.errors import HarnessError, UsageError
from pyharness.machine.qmp import Qmp


def open_dump(dump: Path, cache: Cache) -> drgn.Program:
    """The memory in a dump of a guest.

    Raises UsageError when it is no dump of a kernel, HarnessError when the cache has no symbols for it.
    """
    program = drgn.Program()
    try:
        program.set_core_dump(dump)
    except Exception as error:  # what libkdumpfile complains of comes as such
        raise UsageError(
            f"cannot read {dump}: {error}", mend="name a dump that --dump has left, of a kernel with symbols"
        ) from error
    _require_kernel(program, f"the dump {dump}")
    return _with_symbols(program, cache)


@contextmanager
def open_live(debug_socket: Path, cache: Cache) -> Iterator[drgn.Program]:
    """The memory of the running guest whose QEMU listens there (RunDir.debug_socket); it stands still meanwhile.

    Raises HarnessError when there is no such guest, or the cache has no symbols for it.
    """
    with _standing_still(debug_socket), socket.socket(socket.AF_UNIX) as qmp:
        program = drgn.Program()
        try:
            qmp.connect(str(debug_socket))
            program.set_qemu_qmp(os.dup(qmp.fileno()))  # it closes what it is given
        except (OSError, ValueError) as error:
            raise HarnessError(f"drgn cannot read the guest at {debug_socket}: {error}") from error
        try:
            _require_kernel(program, "the guest")
            yield _with_symbols(program, cache)
        finally:
            # QEMU serves one client, and nobody knows when the last reference to the program goes.
            qmp.shutdown(socket.SHUT_RDWR)


@contextmanager
def _standing_still(debug_socket: Path) -> Iterator[None]:
    """Stop the guest, unless somebody has."""
    with closing(_connect(debug_socket)) as qmp:
        running = qmp.execute("query-status")["running"]
        if running:
            qmp.execute("stop")
    try:
        yield
    finally:
        if running:
            with closing(_connect(debug_socket)) as qmp:
                qmp.execute("cont")


def _connect(debug_socket: Path) -> Qmp:
    try:
        return Qmp(debug_socket)
    except (OSError, QMPError) as error:
        raise HarnessError(f"no guest answers at {debug_socket}: {error}") from error


def _require_kernel(program: drgn.Program, what: str) -> None:
    if not program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
        raise UsageError(
            f"{what} does not say which kernel is in it",
            mend=f"choose a kernel that says so and has symbols, such as {DEBUG_KERNEL}: Debian's do not "
            "(CONFIG_FW_CFG_SYSFS=y, CONFIG_PROC_KCORE=y)",
        )


def _with_symbols(program: drgn.Program, cache: Cache) -> drgn.Program:
    """Load the DWARF of the kernel and of our modules, and of nothing else."""
    # The kernel comes first, and its symbols are what finds the modules.
    for module, _ in program.loaded_modules():
        if isinstance(module, drgn.MainModule):
            _load(module, cache, "kernel", "vmlinux", "choose a kernel with symbols: Debian's have none")
        elif module.name in (VMBUS, DRIVER):
            _load(module, cache, "module", f"{module.name}.debug.ko", "build the same sources again")
    return program


def _load(module: drgn.Module, cache: Cache, kind: str, name: str, mend: str) -> None:
    """Take the file `name` of the entry that belongs to the module; the last used is the most likely one."""
    for entry in reversed([entry for entry in cache.entries() if entry.kind == kind]):
        path = entry.path / name
        if path.exists() and cache.get(kind, entry.key):
            module.try_file(path)
        if not module.wants_debug_file():
            return
    raise HarnessError(f"the cache has no symbols for this build of {module.name}", mend=mend)
