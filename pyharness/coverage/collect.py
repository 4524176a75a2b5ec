# SPDX-License-Identifier: GPL-2.0-only
"""Keeping what the machines of a session counted.

A .gcda file starts with four words: magic, version, stamp, checksum (gcc's gcov-io.h). The compiler gives each object
that it makes another stamp and writes it into the .gcno file too. So data are kept by stamp, and those of another
build, such as a driver with a planted fault, never meet the sources under test.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

from pyharness.machine.vm import Machine

_HEAD = struct.Struct("<III")


def stamp_of(data: bytes) -> int:
    """The stamp in the head of a .gcda or .gcno file."""
    return int(_HEAD.unpack_from(data)[2])


def kept_name(stem: str, stamp: int) -> str:
    """Under which name a machine's data of the object `stem` with this stamp are kept."""
    return f"{stem}.{stamp:08x}.gcda"


class Collector:
    """Keeps in `directory`, which several processes may share, one directory for each machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def collect(self, machine: Machine) -> None:
        """Keep what this machine has counted so far; nothing when its kernel does not count.

        A machine is to be asked once, before it ends (`MachineConfig.before_stop`). Raises what a call into the guest
        raises.
        """
        self.keep(machine.guest.module("pyharness.guest.gcov").counters())

    def keep(self, counters: tuple[tuple[str, bytes], ...]) -> None:
        """Keep the .gcda files (name, content) of one machine."""
        if not counters:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".", dir=self.directory))
        for name, data in counters:
            (aside / kept_name(Path(name).stem, stamp_of(data))).write_bytes(data)
        # From here on it counts, whole.
        aside.rename(self.directory / aside.name[1:])


def machines(directory: Path) -> list[Path]:
    """The directories of the machines that were collected."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
