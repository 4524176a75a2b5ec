# SPDX-License-Identifier: GPL-2.0-only
"""The kernel tree that a series is made for. It is read, and never written to."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import spec_of
from pyharness.artifacts.kernels.built import require_tree, vmbus_option
from pyharness.artifacts.kernels.source import Source, ensure_source
from pyharness.artifacts.run import CommandFailed, environment, run
from pyharness.errors import UsageError
from pyharness.progress import Progress

SERIES_KERNELS = ("debian-6.1", "debian-6.12", "lean-7")
"""Whose trees the gate proves the series on: the oldest, the default, and the newest 7.x."""


@dataclass(frozen=True)
class Target:
    """A tree. `base` says which version it is; with a `commit`, the tree is what git has there."""

    name: str
    directory: Path
    base: str
    commit: str = ""

    def read(self, file: str) -> str | None:
        """The text of a file of the tree, or None when there is none."""
        if self.commit:
            shown = subprocess.run(
                ["git", "-C", self.directory, "show", f"{self.commit}:{file}"],
                env=environment(),
                capture_output=True,
                check=False,
            )
            return shown.stdout.decode() if shown.returncode == 0 else None
        path = self.directory / file
        return path.read_text() if path.is_file() else None

    def maintainers(self, *asked: str | Path, cwd: Path | None = None) -> list[str]:
        """Whom the tree's get_maintainer.pl names, by MAINTAINERS in `cwd` or the tree's own. Raises CommandFailed."""
        script = self.directory / "scripts/get_maintainer.pl"
        options = ("--no-tree", "--no-git", "--no-git-fallback", "--no-rolestats", "--no-roles")
        return run(["perl", script, *options, *asked], cwd=cwd or self.directory)

    @property
    def vmbus_option(self) -> str:
        """The option without which there is no hv_vmbus."""
        return vmbus_option(self.read("drivers/hv/Kconfig") or "")


def source_of(name: str, cache: Cache, progress: Progress) -> Source:
    """The source of a named kernel. Raises UsageError for a name that there is not."""
    return ensure_source(name, spec_of(name), cache, progress)


def named_target(name: str, cache: Cache, progress: Progress) -> Target:
    """The tree of a named kernel."""
    source = source_of(name, cache, progress)
    return Target(name, source.directory, str(source))


def tree_target(directory: Path) -> Target:
    """A developer's tree: what git has as HEAD there, or the files if it is no git tree.

    Raises UsageError for what is no kernel tree.
    """
    directory = directory.resolve()
    require_tree(directory)
    if not (directory / ".git").exists():
        return Target(directory.name, directory, directory.name)
    try:
        commit = run(["git", "-C", directory, "rev-parse", "HEAD"])[-1]
    except CommandFailed as error:
        raise UsageError(
            f"git does not know the HEAD of {directory}: {error.output[-1] if error.output else error.message}",
            mend="give a tree with a commit",
        ) from error
    return Target(directory.name, directory, f"commit {commit[:12]}", commit)
