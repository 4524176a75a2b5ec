# SPDX-License-Identifier: GPL-2.0-only
"""Recording: QEMU writes the transcript, the harness its first line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyharness.errors import HarnessError
from pyharness.machine.vm import Machine
from pyharness.machine.vmbus import BRIDGE
from pyharness.trace.output import empty_transcript
from pyharness.trace.records import Header


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
    machine.qmp.execute("qom-set", path=BRIDGE, property="transcript", value=path)
