# SPDX-License-Identifier: GPL-2.0-only
"""A static check: a row of the table in `pyharness.checks`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pyharness.artifacts.cache import key_of
from pyharness.checks.context import Context
from pyharness.checks.finding import Finding
from pyharness.checks.needs import Need

_FRAMEWORK = ("check", "context", "finding", "needs", "tools")


class Uses(Enum):
    """What was fetched or built that a check's verdict depends on."""

    KERNEL = "kernel"
    KERNELS = "kernels"
    SCRIPTS = "scripts"
    HEADERS = "headers"
    QEMU_CHECKPATCH = "qemu checkpatch"
    SOURCES = "sources"


_KEYS: dict[Uses, Callable[[Context], str]] = {
    Uses.KERNEL: lambda context: context.artifacts.kernel.key,
    Uses.KERNELS: lambda context: " ".join(kernel.key for kernel in context.artifacts.kernels),
    Uses.SCRIPTS: lambda context: context.artifacts.source.key,
    Uses.HEADERS: lambda context: context.artifacts.headers.name,
    Uses.SOURCES: lambda context: " ".join(f"{tree.name} {tree.base}" for tree in context.artifacts.sources),
    Uses.QEMU_CHECKPATCH: lambda context: context.artifacts.qemu_checkpatch.parent.name,
}


@dataclass(frozen=True)
class Check:
    """A named check.

    `inputs` are patterns of the files that its verdict depends on (* matches / as well), `needs` what it runs, `uses`
    what has to be fetched for it. `examine` returns what it objects to; `fix` mends what it can, in the tree.
    """

    name: str
    summary: str
    examine: Callable[[Context], Sequence[Finding]]
    inputs: tuple[str, ...]
    needs: tuple[Need, ...] = ()
    uses: tuple[Uses, ...] = ()
    fix: Callable[[Context], None] | None = None

    @property
    def missing(self) -> list[str]:
        """What is missing on this machine, and what to do about it."""
        return [need.missing for need in self.needs if need.missing]

    def key(self, context: Context) -> str:
        """A key of all that the verdict depends on: the files, the tools and this check's own code."""
        own = Path(sys.modules[self.examine.__module__].__file__ or "")
        here = Path(__file__).parent
        code = {f"code {path.name}": path for path in (own, *(here / f"{name}.py" for name in _FRAMEWORK))}
        read = {file: context.root / file for file in context.select(*self.inputs)}
        tools = [f"{need.name} {need.version}" for need in self.needs]
        used = [_KEYS[use](context) for use in self.uses]
        return key_of(self.name, *tools, *used, files=code | read)
