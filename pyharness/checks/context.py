# SPDX-License-Identifier: GPL-2.0-only
"""What a check is given: the tree that it examines, and what was fetched or built for the purpose."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import DEFAULT_KERNEL, KERNELS, Kernel, cached_kernel, ensure_kernel
from pyharness.artifacts.kernels.source import Source, ensure_headers
from pyharness.artifacts.qemu import ensure_qemu_checkpatch
from pyharness.artifacts.run import environment
from pyharness.checks.tools import Output, Runner
from pyharness.errors import HarnessError
from pyharness.progress import Progress
from pyharness.series.target import SERIES_KERNELS, Target, named_target, source_of


class Artifacts:
    """What is fetched or built, each when it is first asked for. The keys of the checks ask, before any check runs."""

    def __init__(self, cache: Cache, progress: Progress) -> None:
        self.cache = cache
        self.progress = progress

    @cached_property
    def kernel(self) -> Kernel:
        """The kernel that the project follows. Raises as `ensure_kernel`."""
        return ensure_kernel(DEFAULT_KERNEL, self.cache, self.progress)

    @cached_property
    def kernels(self) -> list[Kernel]:
        """The kernels to compile against: the default one, and what the cache has of other versions."""
        cached = (cached_kernel(name, self.cache) for name in KERNELS if name != DEFAULT_KERNEL)
        found = {self.kernel.version: self.kernel}
        for kernel in cached:
            if kernel:
                found.setdefault(kernel.version, kernel)
        return list(found.values())

    @cached_property
    def source(self) -> Source:
        """The default kernel's source, with its scripts and licences. Raises as `source_of`."""
        return source_of(DEFAULT_KERNEL, self.cache, self.progress)

    @property
    def scripts(self) -> Path:
        """The source's scripts."""
        return self.source.directory / "scripts"

    @cached_property
    def headers(self) -> Path:
        """Where its headers for user space are installed. Raises as `ensure_headers`."""
        return ensure_headers(self.source, self.cache, self.progress)

    @cached_property
    def sources(self) -> list[Target]:
        """The trees that the series are for. Raises as `named_target`."""
        return [named_target(name, self.cache, self.progress) for name in SERIES_KERNELS]

    @cached_property
    def qemu_checkpatch(self) -> Path:
        """QEMU's checkpatch.pl. Raises as `ensure_qemu_checkpatch`."""
        return ensure_qemu_checkpatch(self.cache, self.progress)


@dataclass(frozen=True)
class Context:
    """One tree to examine, which only a fix writes to.

    `files` are all that git does not ignore, relative to `root`; `work` is an empty directory of this check alone.
    """

    root: Path
    files: tuple[str, ...]
    artifacts: Artifacts
    runner: Runner
    work: Path

    def select(self, *patterns: str) -> list[str]:
        """The files that any of the patterns fits, whose * matches / as well."""
        return [file for file in self.files if any(fnmatchcase(file, pattern) for pattern in patterns)]

    def text(self, file: str) -> str:
        """A file's content."""
        return (self.root / file).read_text(errors="replace")

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        stdin: str = "",
    ) -> Output:
        """Run a tool in the root, or in `cwd`. Raises ToolFailed when it cannot be started."""
        return self.runner.run(argv, cwd=cwd or self.root, stdin=stdin)


def list_files(root: Path) -> tuple[str, ...]:
    """All files of a git checkout that are not ignored. Raises HarnessError when git cannot tell."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise HarnessError(
            f"git cannot list the files of {root}",
            mend="install the Debian package git, and run in a checkout that git trusts",
            detail=error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error),
        ) from error
    return tuple(sorted(file for file in set(done.stdout.split("\0")) if file and (root / file).is_file()))
