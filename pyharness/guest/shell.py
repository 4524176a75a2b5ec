# SPDX-License-Identifier: GPL-2.0-only
"""A shell for a person, on the guest's second console."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import termios
from pathlib import Path

import pyharness

_CONSOLE = "/dev/hvc0"


def start(rows: int, columns: int, terminal: str) -> subprocess.Popen[bytes]:
    """Start a login shell with the given window size and TERM."""
    console = os.open(_CONSOLE, os.O_RDWR | os.O_NOCTTY)
    try:
        fcntl.ioctl(console, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        return subprocess.Popen(
            ["setsid", "--ctty", "bash", "--login"],
            stdin=console,
            stdout=console,
            stderr=console,
            cwd="/root",
            env={
                "PATH": os.defpath + ":/usr/sbin:/sbin",
                "HOME": "/root",
                "TERM": terminal,
                "LANG": "C.UTF-8",
                # The archive that the host sent: a person wants to import the client too.
                "PYTHONPATH": str(Path(pyharness.__file__).parents[1]),
            },
        )
    finally:
        os.close(console)
