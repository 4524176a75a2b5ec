# SPDX-License-Identifier: GPL-2.0-only
"""A 32-bit Python for the guest, as a tar of a directory to chroot into: Debian's, for i386."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pyharness.artifacts.apt import Apt, Package
from pyharness.artifacts.cache import Cache, key_of
from pyharness.artifacts.rootimage import choose, compile_python, ensure_root_tree, pack, python_library, unpack
from pyharness.progress import Progress

_RECIPE = "2"  # raise it when the way of making it changes
_RELEASE = "bookworm-i386"
_PACKAGES = ("python3",)
_NAME = "python32.tar"


def ensure_python32(cache: Cache, progress: Progress) -> Path:
    """The tar, made unless it is cached. Raises HarnessError."""
    tree = ensure_root_tree(cache, progress)
    apt = Apt(cache, _RELEASE, progress)

    def build(packages: list[Package]) -> Path:
        make = partial(_make, tree / "root", packages, apt, progress)
        return cache.build("python32", key_of(_RECIPE, tree.name, *map(str, packages)), make, progress=progress)

    return apt.fetch_remembered("python32", lambda: choose(apt, _PACKAGES), build) / _NAME


def _make(native: Path, packages: Sequence[Package], apt: Apt, progress: Progress, directory: Path) -> None:
    root = directory / "root"
    unpack(packages, apt, root, progress)
    for name in ("dev", "mnt"):
        (root / name).mkdir(exist_ok=True)
    # Bytecode knows no architecture, and not every host runs what is in there.
    compile_python(native, python_library(root), strip=root)
    pack(root, directory / _NAME)
