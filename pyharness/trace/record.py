# SPDX-License-Identifier: GPL-2.0-only
"""Recording: QEMU writes the transcript, the harness its first line."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pyharness.errors import HarnessError, UsageError
from pyharness.trace.records import Header

if TYPE_CHECKING:
    from pyharness.machine.vm import Machine

_BRIDGE = "/machine/peripheral/vmbus"
_MEND = "name a file that can be written"


def empty_transcript(path: Path) -> Path:
    """Empty the file, or make it, before anything is started; returns its absolute path.

    Raises UsageError when it cannot be written, or is no regular file: QEMU could not open a pipe of this process.
    """
    path = path.absolute()
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"cannot write {path}: not a regular file", mend=_MEND)
        path.write_bytes(b"")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {(error.strerror or str(error)).lower()}", mend=_MEND) from error
    return path


@contextmanager
def recording(machine: Machine, path: Path, header: Header) -> Iterator[None]:
    """Record what passes over the machine's VMBus meanwhile. `path` is absolute, and what it holds is overwritten.

    Raises UsageError as `empty_transcript`, HarnessError when QEMU cannot record. A machine that ends meanwhile
    leaves the transcript as it is by then.
    """
    empty_transcript(path).write_text(header.line() + "\n")
    _record_to(machine, str(path))
    try:
        yield
    finally:
        with suppress(HarnessError):
            _record_to(machine, "")


def _record_to(machine: Machine, path: str) -> None:
    machine.qmp.execute("qom-set", path=_BRIDGE, property="transcript", value=path)
