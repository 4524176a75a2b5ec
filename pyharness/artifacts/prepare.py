# SPDX-License-Identifier: GPL-2.0-only
"""Everything that a guest needs, built or taken from the cache in one call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import Kernel, KernelChoice, ensure_kernel
from pyharness.artifacts.modules import Modules, build_modules
from pyharness.artifacts.qemu import Qemu, ensure_qemu, examine_qemu
from pyharness.artifacts.rootimage import RootImage, ensure_root_image
from pyharness.progress import Progress


@dataclass(frozen=True)
class Prepared:
    """The artifacts of one guest."""

    kernel: Kernel
    modules: Modules
    root_image: RootImage
    qemu: Qemu


def prepare(choice: KernelChoice, cache: Cache, progress: Progress, own_qemu: Path | None = None) -> Prepared:
    """Build what is not cached: the quick parts first, so that a broken driver shows before the long QEMU build.

    `own_qemu` is a binary of the user's to take instead. Raises what the parts raise.
    """
    own = examine_qemu(own_qemu) if own_qemu else None
    with progress.stage("kernel"):
        kernel = ensure_kernel(choice, cache, progress)
    with progress.stage("modules"):
        modules = build_modules(kernel, cache, progress)
    with progress.stage("guest image"):
        root_image = ensure_root_image(cache, progress)
    with progress.stage("qemu"):
        qemu = ensure_qemu(cache, progress, own)
    return Prepared(kernel, modules, root_image, qemu)
