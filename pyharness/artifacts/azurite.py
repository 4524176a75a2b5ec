# SPDX-License-Identifier: GPL-2.0-only
"""Azurite, the emulator of Azure's blob service, from npm: the versions that npm/package-lock.json pins."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from pyharness.artifacts.cache import GIB, Cache, files_below, key_of
from pyharness.artifacts.run import CommandFailed, run
from pyharness.errors import HarnessError
from pyharness.progress import Progress

_RECIPE = "1"  # raise it when the way of installing changes
_DISK_NEEDED = GIB // 2
_LOCK = Path(__file__).with_name("npm")


def ensure_azurite(cache: Cache, progress: Progress) -> Path:
    """The directory with Azurite's node_modules, filled unless it is cached. Raises HarnessError."""
    key = key_of(_RECIPE, files=files_below(_LOCK, base=_LOCK))
    return cache.build("azurite", key, partial(_install, progress), needs=_DISK_NEEDED, progress=progress)


def _install(progress: Progress, directory: Path) -> None:
    progress.step("installing Azurite")
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(_LOCK / name, directory / name)
    try:
        # No script of a package runs: none of these needs one.
        run(["npm", "ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund"], cwd=directory)
    except CommandFailed as error:
        raise HarnessError(
            "Azurite cannot be installed",
            mend="see that `npm ping` works on this machine, then run it again",
            detail="\n".join(error.output[-10:]),
        ) from error
