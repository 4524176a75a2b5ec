# SPDX-License-Identifier: GPL-2.0-only
"""What a machine is made of."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pyharness import repository
from pyharness.machine.accel import Accelerator


class KernelFiles(Protocol):
    """What the machine needs of `pyharness.artifacts.kernels.Kernel`."""

    @property
    def release(self) -> str:
        """The kernel's `uname -r`."""

    @property
    def vmlinuz(self) -> Path:
        """The bootable image."""

    @property
    def root(self) -> Path:
        """The tree that holds `lib/modules/RELEASE`."""


class QemuFiles(Protocol):
    """What the machine needs of `pyharness.artifacts.qemu.Qemu`."""

    @property
    def binary(self) -> Path:
        """`qemu-system-x86_64` with the Hyper-V enlightenments and the VMBus devices."""

    @property
    def firmware(self) -> Path:
        """Directory of the BIOS and the option ROMs."""


class ImageFile(Protocol):
    """What the machine needs of `pyharness.artifacts.rootimage.RootImage`."""

    @property
    def path(self) -> Path:
        """The read-only erofs image."""


@dataclass(frozen=True)
class BlobDevice:
    """One `hv-azure-blob` device; without a backend it answers by itself (docs/vsp-protocol.md)."""

    instance: uuid.UUID
    backend: bool = True


@dataclass(frozen=True)
class MachineConfig:
    """A machine; times in seconds of the host's clock."""

    kernel: KernelFiles
    qemu: QemuFiles
    root_image: ImageFile
    accelerator: Accelerator
    cpus: int = 2
    memory_mib: int = 1024
    blob_devices: tuple[BlobDevice, ...] = ()
    vpci_companion: bool = False
    hyperv: bool = True
    kernel_args: tuple[str, ...] = ()
    qemu_args: tuple[str, ...] = ()
    boot_timeout_s: float = 180.0
    call_timeout_s: float = 120.0
    """How long one call into the guest may take, so that a guest that hangs silently is noticed."""
    log_root: Path = repository.BUILD / "logs"
    """Each machine gets a directory here for `console.log` and `qemu.log`; the newest few are kept."""
