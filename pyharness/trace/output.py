# SPDX-License-Identifier: GPL-2.0-only
"""The file that a transcript goes to."""

from __future__ import annotations

import stat
from pathlib import Path

from pyharness.errors import UsageError

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
