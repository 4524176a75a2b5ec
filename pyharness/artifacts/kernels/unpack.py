# SPDX-License-Identifier: GPL-2.0-only
"""Debian's packages of kernel sources: an archive in each, of which a part is taken."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from pyharness.artifacts.apt import Apt, Package
from pyharness.artifacts.run import run
from pyharness.progress import Progress


def unpack_source(
    package: Package, apt: Apt, progress: Progress, into: Path, *options: str, members: Iterable[str] = ()
) -> None:
    """Fetch a linux-source package and lay its archive into a directory: all of it, or `members` of the tree's top.

    `options` are tar's. Raises as `Apt.download`.
    """
    debs = into / "debs"
    debs.mkdir()
    (deb,) = apt.download([package], debs)
    progress.step(f"unpacking {deb.name}")
    run(["dpkg-deb", "-x", deb, debs])
    (archive,) = (debs / "usr/src").glob("linux-source-*.tar.xz")
    top = archive.name.removesuffix(".tar.xz")
    named = [f"{top}/{member}" for member in members]
    run(["tar", "-xf", archive, "-C", into, "--strip-components=1", *options, *named], env={"XZ_DEFAULTS": "-T0"})
    shutil.rmtree(debs)
