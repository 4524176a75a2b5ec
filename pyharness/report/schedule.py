# SPDX-License-Identifier: GPL-2.0-only
"""Which worker runs what: a worker stays on its kernel, whose guests it has running, for as long as there is work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from xdist.report import report_collection_diff
from xdist.workermanage import WorkerController

# A worker starts a test only when it knows the next one, or that there is none: so it needs one in reserve.
_RESERVE = 2

# Tests handed out at a time. A worker stays with a file, but when another one has nothing left to do it can have the
# rest of it: so both end within a few tests of each other.
_AT_ONCE = 8


@dataclass
class Unit:
    """Some tests of one file on one kernel, as indices into the collection."""

    kernel: str
    file: str
    indices: list[int]


class KernelScheduling:
    """Hands out units; has what `xdist.scheduler.protocol.Scheduling` asks for.

    A worker without work takes the next unit of its kernel, then of one that no other worker runs, then of none, and
    helps another worker at last.
    """

    def __init__(self, config: pytest.Config, kernel_of: Callable[[str], str]) -> None:
        self.config = config
        self._kernel_of = kernel_of
        self._expected = len(config.option.tx)
        self._pending: dict[WorkerController, list[int]] = {}
        self._kernel: dict[WorkerController, str] = {}
        self._collections: dict[WorkerController, list[str]] = {}
        self._units: list[Unit] = []
        self._collection: list[str] | None = None

    @property
    def nodes(self) -> list[WorkerController]:
        """The workers."""
        return list(self._pending)

    @property
    def collection_is_completed(self) -> bool:
        """Every worker has said what it found."""
        return len(self._collections) >= self._expected

    @property
    def tests_finished(self) -> bool:
        """All is handed out, and no worker waits to know its next test."""
        if not self.collection_is_completed or self._units:
            return False
        return all(len(pending) < _RESERVE for pending in self._pending.values())

    @property
    def has_pending(self) -> bool:
        """Something has not been run."""
        return bool(self._units) or any(self._pending.values())

    def add_node(self, node: WorkerController) -> None:
        """A worker is there."""
        self._pending[node] = []

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        """A worker has found these tests; they must be the same for all."""
        self._collections[node] = list(collection)

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        """A worker has run this test."""
        self._pending[node].remove(item_index)
        self._supply(node)

    def mark_test_pending(self, item: str) -> None:
        """Nothing runs twice."""
        raise NotImplementedError

    def remove_pending_tests_from_node(self, node: WorkerController, indices: Sequence[int]) -> None:
        """Nothing is taken back from a worker."""
        raise NotImplementedError

    def remove_node(self, node: WorkerController) -> str | None:
        """A worker has gone; returns the test that it died in. What it had not begun goes to the others."""
        pending = self._pending.pop(node)
        if not pending:
            return None
        assert self._collection is not None
        died_in, *rest = pending
        self._units = [*self._split(rest), *self._units]
        for other in self.nodes:
            self._supply(other)
        return self._collection[died_in]

    def schedule(self) -> None:
        """Hand out work: at the start, and to a worker that replaces one."""
        if self._collection is None:
            first, *others = self._collections.values()
            if differences := [difference for other in others if (difference := self._difference(first, other))]:
                self.config.hook.pytest_collectreport(
                    report=pytest.CollectReport("workers", "failed", differences[0], [])
                )
                return
            self._collection = first
            self._units = self._split(range(len(first)))
        # One unit each first, so that each kernel gets a worker.
        for node in self.nodes:
            if self._units and not self._pending[node] and self._takes_work(node):
                self._hand_out(node)
        for node in self.nodes:
            self._supply(node)

    def _difference(self, first: list[str], other: list[str]) -> str:
        return report_collection_diff(first, other, "one worker", "another") or "" if first != other else ""

    def _split(self, indices: Sequence[int]) -> list[Unit]:
        assert self._collection is not None
        files: dict[tuple[str, str], list[int]] = {}
        for index in indices:
            nodeid = self._collection[index]
            files.setdefault((self._kernel_of(nodeid), nodeid.partition("::")[0]), []).append(index)
        return [
            Unit(kernel, file, tests[first : first + _AT_ONCE])
            for (kernel, file), tests in files.items()
            for first in range(0, len(tests), _AT_ONCE)
        ]

    def _takes_work(self, node: WorkerController) -> bool:
        return not node.shutting_down and self._collections.get(node) == self._collection

    def _supply(self, node: WorkerController) -> None:
        if not self._takes_work(node):
            return
        while self._units and len(self._pending[node]) < _RESERVE:
            self._hand_out(node)
        if not self._units:
            node.shutdown()

    def _hand_out(self, node: WorkerController) -> None:
        others = Counter(kernel for other, kernel in self._kernel.items() if other in self._pending and other != node)
        waiting = Counter(unit.kernel for unit in self._units)

        def preference(unit: Unit) -> tuple[bool, bool, bool, int]:
            kernel = unit.kernel
            return kernel != self._kernel.get(node), others[kernel] > 0, not kernel, -waiting[kernel]

        unit = min(self._units, key=preference)
        self._units.remove(unit)
        if unit.kernel:
            self._kernel[node] = unit.kernel
        self._pending[node] += unit.indices
        node.send_runtest_some(unit.indices)
