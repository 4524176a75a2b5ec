# SPDX-License-Identifier: GPL-2.0-only
"""How many instructions the guest executes for one request: the same on a loaded machine and on a quiet one.

A TCG plugin (qemu/plugins/instructions.c) counts them. What they came to is recorded in tests/bench/instructions.toml.
"""

from __future__ import annotations

import pickle
import random
import socket
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.plugin import ensure_plugin
from pyharness.artifacts.prepare import Prepared
from pyharness.errors import UsageError
from pyharness.guest.bench import Job, Setup
from pyharness.machine.accel import Accelerator
from pyharness.machine.config import BlobDevice, MachineConfig
from pyharness.progress import Progress
from pyharness.rig import DRIVER, INSTANCE, VMBUS, Rig, rig_on
from pyharness.vsp.backends.memory import MemoryBackend
from pyharness.vsp.request import VspRequest

RECORD = repository.ROOT / "tests/bench/instructions.toml"
TOLERANCE = {"driver": 0.05, "vmbus": 0.05, "kernel": 0.25, "user": 0.1}
"""By part of the guest, how far a count may be from the record. Interrupts and the scheduler are in `kernel`."""

_ROUNDS = 3
_REQUESTS = 400
_NAP_S = 0.001
_HEADER = """\
# SPDX-License-Identifier: GPL-2.0-only
# Instructions that the guest executes for one request, by kernel, request and part of the guest:
# hv_azure_blob, hv_vmbus, the rest of the kernel, user space (pyharness.client). Written by
# `pyharness bench --instructions --record`; how far off a count may be is said in pyharness/bench/instructions.py.
"""


class Request(NamedTuple):
    """What is counted."""

    name: str
    op: str
    size: int
    path: str = "driver"
    """Of pyharness.guest.bench."""


REQUESTS = (
    Request("read-4K", "read", 4 << 10),
    Request("read-4K-unprepared", "read", 4 << 10, "request"),
    Request("write-4K", "write", 4 << 10),
    Request("read-1M", "read", 1 << 20),
)

Parts = Mapping[str, int]
"""Instructions by part of the guest, the keys of TOLERANCE."""


class _Late:
    """Answers when the guest has gone to sleep, so that each request takes the same way."""

    def __init__(self, store: MemoryBackend) -> None:
        self._store = store

    def handle(self, request: VspRequest) -> None:
        time.sleep(_NAP_S)
        self._store.handle(request)


@dataclass(frozen=True)
class Counting:
    """A guest whose instructions are counted."""

    rig: Rig
    socket: Path

    def count(self) -> dict[str, Parts]:
        """By name of the request: what one takes when nothing else happens, as far as that can be had."""
        guest = self.rig.machine.guest
        texts = {part: self._text(name) for part, name in (("driver", DRIVER), ("vmbus", VMBUS))}
        setup = Setup(self.rig.node, self.rig.node, max(request.size for request in REQUESTS))
        client = guest.module("pyharness.guest.bench").Repeated(pickle.dumps(tuple(setup)))
        counts: dict[str, Parts] = {}
        for request in REQUESTS:
            job = pickle.dumps(tuple(Job(request.path, request.op, request.size, "/bench/{blob}", 0, 0, 0)))
            client.run(job, _REQUESTS)
            rounds = [[self._executed(client, job, times, texts) for times in (0, _REQUESTS)] for _ in range(_ROUNDS)]
            # Other work only adds: the least is nearest to the truth. The call into the guest itself is in both.
            for_call, for_all = (
                {part: min(one[part] for one in same) for part in TOLERANCE} for same in zip(*rounds, strict=True)
            )
            counts[request.name] = {part: round((for_all[part] - for_call[part]) / _REQUESTS) for part in TOLERANCE}
        return counts

    def _executed(self, client: Any, job: bytes, times: int, texts: Mapping[str, range]) -> Parts:
        """What one call into the guest takes that makes so many requests."""
        before = self._pages()
        client.run(job, times)
        after = self._pages()
        return _parts({page: count - before.get(page, 0) for page, count in after.items()}, texts)

    def _pages(self) -> dict[int, int]:
        """Instructions so far, by page; those of user space as page 0."""
        with socket.socket(socket.AF_UNIX) as plugin:
            plugin.connect(str(self.socket))
            with plugin.makefile() as lines:
                return {int(page, 16): int(count) for page, count in (line.split() for line in lines)}

    def _text(self, module: str) -> range:
        guest = self.rig.machine.guest
        sections = dict(guest.module("pyharness.guest.kernel").sections(module))
        # The loader gives a module's code pages of its own, which begin with .text.
        size = int(guest.module("pathlib").Path(f"/sys/module/{module}/coresize").read_text())
        return range(sections[".text"], sections[".text"] + size)


def _parts(pages: Mapping[int, int], texts: Mapping[str, range]) -> Parts:
    parts = dict.fromkeys(TOLERANCE, 0)
    for page, count in pages.items():
        inside = (part for part, text in texts.items() if page in text)
        parts[next(inside, "kernel" if page else "user")] += count
    return parts


@contextmanager
def counting(prepared: Prepared, accelerator: Accelerator, progress: Progress, cache: Cache) -> Iterator[Counting]:
    """A guest of one CPU, which counts from its boot on. Raises UsageError without TCG."""
    if accelerator.name != "tcg":
        raise UsageError(f"{accelerator.name} cannot count instructions", mend="run it where there is no KVM")
    plugin = ensure_plugin(prepared.qemu, cache)
    store = MemoryBackend()
    for request in REQUESTS:
        store.write(f"/bench/size-{request.size}", random.Random(request.size).randbytes(request.size))
    with tempfile.TemporaryDirectory(prefix="pyharness-") as directory:
        path = Path(directory) / "plugin"
        config = MachineConfig(
            kernel=prepared.kernel,
            qemu=prepared.qemu,
            root_image=prepared.root_image,
            accelerator=accelerator,
            cpus=1,
            cold=True,
            blob_devices=(BlobDevice(INSTANCE),),
            qemu_args=("-plugin", f"{plugin},socket={path}"),
        )
        with rig_on(config, prepared, progress, _Late(store)) as running:
            # Whether a buffer gets a huge page, which is pinned at once, is a matter of luck.
            switch = running.machine.guest.module("pathlib").Path("/sys/kernel/mm/transparent_hugepage/enabled")
            if switch.exists():
                switch.write_text("never")
            yield Counting(running, path)


def recorded(path: Path = RECORD) -> dict[str, dict[str, Parts]]:
    """The record: by kernel, by request."""
    return tomllib.loads(path.read_text())


def record(kernel: str, counts: Mapping[str, Parts], path: Path = RECORD) -> None:
    """Put this kernel's counts in place of what was recorded of it."""
    known = {**(recorded(path) if path.exists() else {}), kernel: counts}
    tables = [
        "\n".join([f'["{name}".{request}]', *(f"{part} = {count}" for part, count in parts.items()), ""])
        for name, requests in sorted(known.items())
        for request, parts in requests.items()
    ]
    path.write_text("\n".join([_HEADER, *tables]))


def differences(counts: Mapping[str, Parts], known: Mapping[str, Parts]) -> list[str]:
    """What is further from the record than may be, in words."""
    found = []
    for request, parts in counts.items():
        for part, count in parts.items():
            before = known[request][part]
            if abs(count - before) > TOLERANCE[part] * before:
                found.append(
                    f"{request}: {count} instructions in {part}, recorded are {before} "
                    f"({count / before - 1:+.1%}, allowed {TOLERANCE[part]:.0%})"
                )
    return found
