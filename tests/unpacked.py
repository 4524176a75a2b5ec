# SPDX-License-Identifier: GPL-2.0-only
"""Trees that come into the guest as a tar."""

from pathlib import Path

from pyharness.guest.host import Guest


def unpack(guest: Guest, tar: Path, directory: str) -> None:
    """Put a tar of the host into a directory of the guest, which is made, and its content beside it."""
    inside = f"{directory}/{tar.name}"
    guest.push(tar, inside)
    ended = guest.run("busybox", "tar", "-xf", inside, "-C", directory)
    assert ended.status == 0, ended.stderr
