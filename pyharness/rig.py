# SPDX-License-Identifier: GPL-2.0-only
"""The whole thing running: a guest with both modules loaded, and a VSP attached to its device."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from pyharness.artifacts.modules import Modules
from pyharness.artifacts.prepare import Prepared
from pyharness.errors import CheckFailed, TimedOut
from pyharness.judge import Judge
from pyharness.machine.accel import Accelerator
from pyharness.machine.config import BlobDevice, MachineConfig
from pyharness.machine.gdb import wait_for_gdb
from pyharness.machine.vm import Machine
from pyharness.progress import Progress
from pyharness.trace.record import recording
from pyharness.trace.records import Header
from pyharness.vsp.backends import Backend
from pyharness.vsp.backends.choice import BackendChoice
from pyharness.vsp.backends.memory import MemoryBackend
from pyharness.vsp.scenario import HONEST, Scenario
from pyharness.vsp.server import VspServer

INSTANCE = uuid.UUID("0c9d2a6e-2f3b-4f8e-9a53-6d5f5b1e0a01")
"""The VMBus instance GUID of the rig's device."""

VMBUS, DRIVER = "hv_vmbus", "hv_azure_blob"
NODE = "/dev/azure_blob"
_NODE_TIMEOUT_S = 60.0
_NODE_SLICE_S = 1.0
_PROBE_FAILED = "failed with error"
_GDB_WAITS = """\
the guest waits for gdb; attach it from another terminal, set breakpoints, and let the guest go on with `continue`:
  {command}"""


@dataclass(frozen=True)
class Rig:
    """A guest whose `/dev/azure_blob` is served by `vsp`."""

    machine: Machine
    vsp: VspServer
    prepared: Prepared
    judge: Judge
    """Begun before the modules were loaded: its verdict is due when they are unloaded again."""
    boot_messages: int
    """How many messages the kernel had logged by then."""
    node = NODE

    def load(self) -> None:
        """Load the patched hv_vmbus and the driver, and wait for the node.

        Raises CheckFailed with the kernel's log when a module does not load or the driver fails to take the device,
        TimedOut when no node appears.
        """
        modules = self.prepared.modules
        for module in (modules.vmbus, modules.driver):
            with _kernel_verdict(f"{module.name} does not load"):
                self.machine.guest.insmod(module.path)
        self._wait_for_node()

    def _wait_for_node(self) -> None:
        deadline = time.monotonic() + _NODE_TIMEOUT_S
        while True:
            try:
                return self.machine.guest.wait_for_node(self.node, _NODE_SLICE_S)
            except TimedOut:
                said = [str(message) for message in self.machine.guest.dmesg(self.boot_messages)]
                if failed := [line for line in said if DRIVER in line and _PROBE_FAILED in line]:
                    raise CheckFailed(
                        f"the driver has not taken the device: {failed[0]}", detail="\n".join(said)
                    ) from None
                if time.monotonic() > deadline:
                    raise

    def unload(self) -> None:
        """Unload both modules. Raises CheckFailed when one is in use."""
        for name in (DRIVER, VMBUS):
            with _kernel_verdict(f"{name} does not unload"):
                self.machine.guest.rmmod(name)

    def warnings(self) -> list[str]:
        """The kernel's warnings since the modules were loaded: those of the boot are the platform's."""
        return [str(message) for message in self.machine.guest.warnings(self.boot_messages)]

    def pending_requests(self) -> list[str]:
        """The requests that the driver has in hand, as debugfs lists them."""
        path = self.machine.guest.module("pathlib").Path(f"/sys/kernel/debug/{DRIVER}/{INSTANCE}/pending_requests")
        lines = str(path.read_text()).splitlines()
        return [line for line in lines if not line.startswith("#")]


@contextmanager
def _kernel_verdict(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckFailed(f"{what}: {error.strerror}", detail="\n".join(getattr(error, "__notes__", ()))) from error


@dataclass(frozen=True)
class RigOptions:
    """How a rig is started.

    Without `cold` a snapshot is restored. With `dump` a crash leaves the guest's memory beside the logs; with `gdb` the
    guest waits for gdb once the modules are loaded. `trace` gets the transcript of its VMBus, from before they are
    loaded until the caller is done. Of `scenario`, what concerns the device is in force from the start; the rest is for
    `vsp.behaving`.
    """

    cold: bool
    dump: bool
    gdb: bool
    trace: Path | None
    scenario: Scenario
    backend: BackendChoice


@contextmanager
def rig(
    prepared: Prepared,
    accelerator: Accelerator,
    progress: Progress,
    options: RigOptions,
    identify: Callable[[Modules], None] = lambda _: None,
) -> Iterator[Rig]:
    """Start a guest, attach a VSP, load the modules; nothing is left running afterwards.

    The guest starts while the modules are still building; `identify` is told of them before they are loaded.
    """
    config = MachineConfig(
        kernel=prepared.kernel,
        qemu=prepared.qemu,
        root_image=prepared.root_image,
        accelerator=accelerator,
        blob_devices=(BlobDevice(INSTANCE),),
        cold=options.cold,
        dump_on_crash=options.dump,
        # Who holds the guest at a breakpoint decides how long a call takes.
        call_timeout_s=None if options.gdb else MachineConfig.call_timeout_s,
    )
    with (
        options.backend.running() as served,
        rig_on(
            config,
            prepared,
            progress,
            served,
            workers=options.backend.workers,
            trace=options.trace,
            scenario=options.scenario,
            identify=identify,
        ) as running,
    ):
        if options.gdb:
            with progress.stage("gdb"):
                wait_for_gdb(running.machine, lambda command: progress.line(_GDB_WAITS.format(command=command)))
        yield running


@contextmanager
def rig_on(
    config: MachineConfig,
    prepared: Prepared,
    progress: Progress,
    backend: Backend | None = None,
    *,
    workers: int = 0,
    trace: Path | None = None,
    scenario: Scenario = HONEST,
    identify: Callable[[Modules], None] = lambda _: None,
) -> Iterator[Rig]:
    """As `rig`, with a machine of the caller's: `backend`, or an empty object store, serves its first device."""
    machine = Machine(config)
    try:
        with progress.stage("start"):
            machine.start()
        with VspServer(machine.vsp_socket(0), backend or MemoryBackend(), workers=workers) as vsp:
            judge = Judge(machine)
            judge.begin("the run")
            scenario.prepare(machine.blob_device(0))
            running = Rig(machine, vsp, prepared, judge, len(machine.guest.dmesg()))
            identify(prepared.modules)
            header = _header(prepared, config.accelerator)
            with recording(machine, trace, header) if trace else nullcontext():
                with progress.stage("load"):
                    running.load()
                yield running
    finally:
        machine.stop()


def _header(prepared: Prepared, accelerator: Accelerator) -> Header:
    kernel, qemu = prepared.kernel, prepared.qemu
    return Header(
        kernel=f"{kernel.name} {kernel.release}",
        qemu=f"{qemu.version} {qemu.key}",
        driver=prepared.modules.driver.hash,
        accelerator=accelerator.name,
    )
