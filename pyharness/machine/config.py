# SPDX-License-Identifier: GPL-2.0-only
"""What a machine is made of."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyharness import repository
from pyharness.artifacts.kernels import Kernel
from pyharness.artifacts.qemu import Qemu
from pyharness.artifacts.rootimage import RootImage
from pyharness.machine.accel import Accelerator

if TYPE_CHECKING:
    from pyharness.machine.vm import Machine


@dataclass(frozen=True)
class BlobDevice:
    """One `hv-azure-blob` device; without a backend it answers by itself (docs/vsp-protocol.md)."""

    instance: uuid.UUID
    backend: bool = True


@dataclass(frozen=True)
class MachineConfig:
    """A machine; times in seconds of the host's clock."""

    kernel: Kernel
    qemu: Qemu
    root_image: RootImage
    accelerator: Accelerator
    cpus: int = 2
    memory_mib: int = 0
    """0: what the kernel needs."""
    blob_devices: tuple[BlobDevice, ...] = ()
    vpci_companion: bool = False
    hyperv: bool = True
    kernel_args: tuple[str, ...] = ()
    qemu_args: tuple[str, ...] = ()
    cold: bool = False
    """Boot, instead of restoring a snapshot of an earlier boot."""
    before_stop: tuple[Callable[[Machine], None], ...] = ()
    """Called when the machine is stopped, as long as its guest still answers."""
    boot_timeout_s: float = 180.0
    call_timeout_s: float | None = 120.0
    """How long one call into the guest may take, so that a guest that hangs silently is noticed; None: any time."""
    dump_on_crash: bool = False
    """Leave the memory of a guest that crashes or hangs as `vmcore` beside the logs."""
    log_root: Path = repository.BUILD / "logs"
    """Each machine gets a directory here for `console.log` and `qemu.log`; the newest few are kept."""

    @property
    def ram_mib(self) -> int:
        """The guest's memory. KASAN takes an eighth of it, and its freed objects stay for a while."""
        return self.memory_mib or (1280 if self.kernel.has("KASAN") else 1024)
