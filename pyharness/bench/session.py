# SPDX-License-Identifier: GPL-2.0-only
"""The benchmark: one guest, all paths in turns."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pyharness.artifacts.prepare import Prepared
from pyharness.bench.results import KIB, MIB, Cell, Measured, Results
from pyharness.bench.stands import STANDS, Stand
from pyharness.errors import CheckFailed, HarnessError, UsageError
from pyharness.guest.bench import Figures, Job, Sample, Setup, Verified
from pyharness.machine.accel import Accelerator
from pyharness.machine.config import BlobDevice, MachineConfig
from pyharness.machine.initramfs import unpack_modules
from pyharness.progress import Progress
from pyharness.rig import INSTANCE, Rig, rig_on
from pyharness.vsp.request import VspRequest

FLOOR = uuid.UUID("0c9d2a6e-2f3b-4f8e-9a53-6d5f5b1e0a02")
"""The instance of the device that has no backend."""

OPS = ("read", "write")
_ADDRESS = "10.0.2.15"
"""What slirp expects of the guest."""
_NETWORK = ("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=")
_MEMORY_MIB = 3072
_SMALL = 4 * KIB
_CEILING_SIZES = (4 * KIB, 4 * MIB)
_STAGES = ("ioctl", "bare", "null")
"""Paths on which a request goes a part of its way."""
_TO_THE_STORE = ("driver", "request", "http")
"""Paths on which it goes all of it."""
_VERIFY_BYTES = 4 * MIB
_VERIFY_CLIENTS = 4
_SAMPLED = 1
"""How many clients of each cell make one more request, all of whose bytes are hashed."""


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    sizes: tuple[int, ...]
    clients: tuple[int, ...]
    ceiling: tuple[int, ...]
    """Further numbers of clients, for what one channel carries."""
    repetitions: int
    seconds: float
    """How long each cell begins new requests."""
    verify_bytes: int
    backends: tuple[str, ...] = ("memory",)

    def cells(self) -> Iterator[Cell]:
        """In the order in which they are measured: the paths of one cell one after the other."""
        for op, size, clients in product(OPS, self.sizes, self.clients):
            if size == _SMALL and clients == 1:
                yield from (Cell(path, "", op, size, clients) for path in _STAGES)
                yield from (Cell("request", backend, op, size, clients) for backend in self.backends)
            yield Cell("floor", "", op, size, clients)
            for backend, path in product(self.backends, ("driver", "http")):
                yield Cell(path, backend, op, size, clients)
        for size, clients in product(_CEILING_SIZES, self.ceiling):
            if size in self.sizes and clients not in self.clients:
                yield Cell("floor", "", "read", size, clients)
                yield from (Cell("driver", backend, "read", size, clients) for backend in self.backends)

    @property
    def most_clients(self) -> int:
        """How many processes the guest needs."""
        return max(*self.clients, *self.ceiling, _VERIFY_CLIENTS)

    @property
    def largest(self) -> int:
        """Bytes of each process's buffer."""
        return max(*self.sizes, _VERIFY_BYTES if self.verify_bytes else 0)


class _Null:
    """A backend that does nothing: what a request costs the VSP alone."""

    def handle(self, request: VspRequest) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.data)
        request.response.write(head)
        request.complete(response_len=len(head))


def measure(prepared: Prepared, accelerator: Accelerator, progress: Progress, plan: Plan, results: Results) -> None:
    """Fill `results`. Raises CheckFailed for a wrong byte and for what the driver leaves behind."""
    if not (prepared.kernel.has("INET") and prepared.kernel.has("VIRTIO_NET")):
        raise UsageError(f"kernel {prepared.kernel.name} has no TCP/IP", mend="choose one of Debian's kernels")
    config = MachineConfig(
        kernel=prepared.kernel,
        qemu=prepared.qemu,
        root_image=prepared.root_image,
        accelerator=accelerator,
        memory_mib=_MEMORY_MIB,
        blob_devices=(BlobDevice(INSTANCE), BlobDevice(FLOOR, backend=False)),
        qemu_args=_NETWORK,
        # A cell of large requests over HTTP takes minutes.
        call_timeout_s=None,
    )
    with ExitStack() as stack:
        stands = {name: stack.enter_context(STANDS[name]()) for name in plan.backends}
        for stand, size in product(stands.values(), plan.sizes):
            stand.write(f"size-{size}", random.Random(size).randbytes(size))
        running = stack.enter_context(rig_on(config, prepared, progress, stands[plan.backends[0]].backend))
        results.driver = prepared.modules.driver.hash
        with progress.stage("network"):
            _load_network(running)
        with progress.stage("clients"):
            clients = _Clients(running, plan)
        results.load.append(os.getloadavg()[0])
        with progress.stage("measure"):
            _measure(clients, stands, plan, results, progress)
        if plan.verify_bytes:
            with progress.stage("verify"):
                for name, stand in stands.items():
                    results.verified[name] = clients.verify(name, stand, plan.verify_bytes)._asdict()
        results.load.append(os.getloadavg()[0])
        clients.close()
        running.unload()
        running.judge.verdict()
    for name, moved in results.verified.items():
        if moved["wrong"]:
            raise CheckFailed(f"{moved['wrong']} of {moved['requests']} requests to {name} brought other bytes back")


def _load_network(running: Rig) -> None:
    guest = running.machine.guest
    with tempfile.TemporaryDirectory(prefix="pyharness-") as directory:
        for module in unpack_modules(running.prepared.kernel.modules, ("virtio_net",), Path(directory)):
            guest.insmod(module)
    for words in (f"addr add {_ADDRESS}/24 dev eth0", "link set eth0 up"):
        done = guest.run("ip", *words.split())
        if done.status:
            raise HarnessError(f"the guest has no network: {done.stderr.decode(errors='replace').strip()}")


def _measure(clients: _Clients, stands: dict[str, Stand], plan: Plan, results: Results, progress: Progress) -> None:
    cells = list(plan.cells())
    for repetition in range(plan.repetitions):
        for number, cell in enumerate(cells):
            progress.step(
                f"repetition {repetition + 1}/{plan.repetitions}, cell {number + 1}/{len(cells)}: "
                f"{cell.path} {cell.op} {cell.size >> 10} KiB, {cell.clients} clients"
            )
            stand = stands[cell.backend or plan.backends[0]]
            figures = clients.run(cell, stand, plan.seconds)
            for sample in figures.samples if cell.path in _TO_THE_STORE else ():
                if hashlib.sha256(stand.read(sample.blob)).hexdigest() != sample.sha256:
                    raise CheckFailed(f"{cell.path}: a {cell.op} of {cell.size} bytes brought other bytes")
                results.sampled += 1
            results.measured.append(
                Measured(
                    cell,
                    repetition,
                    figures.requests,
                    figures.seconds,
                    figures.p50_us,
                    figures.p99_us,
                    figures.cpu_seconds,
                )
            )


class _Clients:
    """The clients in the guest."""

    def __init__(self, running: Rig, plan: Plan) -> None:
        self._vsp = running.vsp
        path = running.machine.guest.module("pathlib").Path
        served, floor = (
            f"/dev/{next(iter(path(f'/sys/bus/vmbus/devices/{instance}/misc').iterdir())).name}"
            for instance in (INSTANCE, FLOOR)
        )
        setup = pickle.dumps(tuple(Setup(served, floor, plan.largest)))
        self._bench = running.machine.guest.module("pyharness.guest.bench").Bench(setup, plan.most_clients)

    def run(self, cell: Cell, stand: Stand, seconds: float) -> Figures:
        """Measure one cell."""
        self._vsp.backend = _Null() if cell.path == "null" else stand.backend
        job = Job(cell.path, cell.op, cell.size, stand.target, stand.port, seconds, _SAMPLED)
        figures = Figures(*_plain(self._bench.run(pickle.dumps(tuple(job)), cell.clients)))
        return figures._replace(samples=tuple(Sample(*sample) for sample in figures.samples))

    def verify(self, name: str, stand: Stand, total: int) -> Verified:
        """Move `total` bytes through the driver, each of them hashed before and after."""
        self._vsp.backend = stand.backend
        job = Job("driver", "write", _VERIFY_BYTES, stand.target, stand.port, 0, 0)
        return Verified(*_plain(self._bench.verify(pickle.dumps(tuple(job)), _VERIFY_CLIENTS, total)))

    def close(self) -> None:
        """End them."""
        self._bench.close()


def _plain(answer: bytes) -> Any:
    return pickle.loads(answer)


def machine_of(config_cpus: int) -> str:
    """The host's processors and the guest's, in words."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    host = len(os.sched_getaffinity(0))
    return f"{model[1] if model else 'unknown CPU'}, {host} CPUs, guest {config_cpus} vCPUs"
