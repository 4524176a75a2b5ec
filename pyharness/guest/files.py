# SPDX-License-Identifier: GPL-2.0-only
"""Moving files in and out of the guest, piece by piece."""

from __future__ import annotations

from pathlib import Path


def create(path: str, mode: int) -> None:
    """Make an empty file, and its directory."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"")
    target.chmod(mode)


def append(path: str, data: bytes) -> None:
    """Write `data` at the file's end."""
    with Path(path).open("ab", buffering=0) as target:
        target.write(data)


def piece(path: str, offset: int, size: int) -> bytes:
    """At most `size` bytes from `offset` on; empty at the end."""
    with Path(path).open("rb", buffering=0) as source:
        source.seek(offset)
        return source.read(size)


def exists(path: str) -> bool:
    """Whether there is something at `path`."""
    return Path(path).exists()
