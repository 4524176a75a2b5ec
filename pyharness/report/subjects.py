# SPDX-License-Identifier: GPL-2.0-only
"""The kernels that a test session runs on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import Kernel, KernelChoice, KernelTree
from pyharness.artifacts.modules import Modules
from pyharness.artifacts.prepare import Prepared, prepare
from pyharness.artifacts.qemu import Qemu, ensure_qemu
from pyharness.artifacts.rootimage import RootImage
from pyharness.progress import Progress


@dataclass(frozen=True)
class Subject:
    """A kernel under test with all that a guest needs, and the arguments of `pyharness` that choose it."""

    prepared: Prepared
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """What test ids call it."""
        return self.prepared.kernel.name

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what was built, not who builds it."""
        prepared = self.prepared
        return _restored, (prepared.kernel, prepared.root_image, prepared.qemu, prepared.modules, self.arguments)


def _restored(
    kernel: Kernel, root_image: RootImage, qemu: Qemu, modules: Modules, arguments: tuple[str, ...]
) -> Subject:
    built: Future[Modules] = Future()
    built.set_result(modules)
    return Subject(Prepared(kernel, root_image, qemu, built), arguments)


def arguments_for(choice: KernelChoice) -> tuple[str, ...]:
    """The arguments of `pyharness` that choose this kernel."""
    if not isinstance(choice, KernelTree):
        return ("--kernel", choice)
    configs = [word for config in choice.configs for word in ("--kernel-config", str(config.resolve()))]
    return ("--kernel-dir", str(choice.directory.resolve()), *configs)


def subject_of(choice: KernelChoice, cache: Cache, progress: Progress, own_modules: Path | None = None) -> Subject:
    """Build or fetch what is missing for this kernel. Raises what `prepare` raises."""
    prepared = prepare(choice, cache, progress, own_modules=own_modules)
    prepared.building.result()
    given = ("--modules", str(own_modules.resolve())) if own_modules else ()
    return Subject(prepared, (*arguments_for(choice), *given))


class Subjects:
    """The session's kernels by name, in their order; one that was not handed over is prepared when it is asked for."""

    def __init__(
        self,
        names: Iterable[str],
        ready: Mapping[str, Subject] | None = None,
        cold: bool = False,
        counters: Path | None = None,
        dump: bool = False,
    ) -> None:
        """`cold` machines boot; those that crash leave their memory with `dump`.

        `counters` is the directory in which to collect what kernels with gcov have counted.
        """
        self.names = tuple(names)
        self.cold = cold
        self.counters = counters
        self.dump = dump
        self._ready = dict(ready or {})

    @classmethod
    def of(cls, subjects: Sequence[Subject], cold: bool, counters: Path | None, dump: bool) -> Subjects:
        """Kernels that are ready."""
        return cls([one.name for one in subjects], {one.name: one for one in subjects}, cold, counters, dump)

    def __getitem__(self, name: str) -> Subject:
        if name not in self._ready:
            self._ready[name] = subject_of(name, Cache.open(), Progress(quiet=True))
        return self._ready[name]

    def qemu(self) -> Qemu:
        """QEMU, which is the same for every kernel."""
        for subject in self._ready.values():
            return subject.prepared.qemu
        return ensure_qemu(Cache.open(), Progress(quiet=True))

    def named_in(self, nodeid: str) -> str:
        """The kernel in a test's id, or nothing: the plugin puts it first among the parameters."""
        return _named_in(self.names, nodeid)


def _named_in(names: tuple[str, ...], nodeid: str) -> str:
    _, _, parameters = nodeid.partition("[")
    fits = partial(re.match, string=parameters)
    return max((name for name in names if fits(re.escape(name) + r"[-\]]")), key=len, default="")
