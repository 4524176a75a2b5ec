# SPDX-License-Identifier: GPL-2.0-only
"""The ABI: what its sources say, whether they agree, and what is recorded of it (docs/abi.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyharness.abi import record
from pyharness.abi.compare import UNRECORDED, Source, differences, holes
from pyharness.abi.model import Interface
from pyharness.abi.record import Change
from pyharness.abi.sources import merged, read_sources
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import Kernel
from pyharness.checks.finding import Finding
from pyharness.errors import CheckFailed
from pyharness.progress import Progress

__all__ = ["Examination", "examine", "findings"]


@dataclass(frozen=True)
class Examination:
    """The interfaces by name (`user`, `wire`, `backend`), and what is wrong with them."""

    root: Path
    interfaces: dict[str, Interface]
    findings: tuple[Finding, ...]

    def record(self) -> list[Change]:
        """Make what was found the recorded ABI; returns what has changed.

        Raises CheckFailed when the sources contradict each other, and as `record.store`.
        """
        if others := [found for found in self.findings if found.rule != UNRECORDED]:
            raise CheckFailed(
                "what the sources say cannot be recorded, for they do not agree",
                mend="mend what is listed first",
                detail="\n".join(map(str, others)),
            )
        return record.store(self.root, self.interfaces)


def findings(root: Path, kernel: Kernel, cache: Cache, progress: Progress) -> list[Finding]:
    """All that is wrong with the ABI of the tree `root`, whose driver is built for `kernel`; raises as `examine`."""
    return list(examine(root, kernel, cache, progress).findings)


def examine(root: Path, kernel: Kernel, cache: Cache, progress: Progress) -> Examination:
    """Read every source of the tree `root` and compare them with each other and with uapi/abi.json.

    Raises HarnessError when gcc or pahole is missing, and CheckFailed when uapi/abi.json is none of ours or a struct
    has a bit-field.
    """
    root = root.resolve()
    reading = read_sources(root, kernel, cache, progress)
    recorded = record.load(root)
    found = list(reading.faults)
    if not recorded:
        found.append(Finding(record.FILE, 0, "missing; `pyharness abi --record` makes it", UNRECORDED))
    for part in reading.parts:
        known = Source(record.FILE, record.FILE, recorded[part.name]) if part.name in recorded else None
        found += [*holes(part.sources), *differences(part.sources, known)]
    return Examination(root, {part.name: merged(part.sources) for part in reading.parts}, tuple(found))
