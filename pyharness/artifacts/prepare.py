# SPDX-License-Identifier: GPL-2.0-only
"""Everything that a guest needs, built or taken from the cache in one call."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import Kernel, KernelChoice, ensure_kernel
from pyharness.artifacts.modules import Modules, build_modules, given_modules
from pyharness.artifacts.qemu import Qemu, ensure_qemu, examine_qemu
from pyharness.artifacts.rootimage import RootImage, ensure_root_image
from pyharness.progress import Progress


@dataclass(frozen=True)
class Prepared:
    """The artifacts of one guest. The modules may still be building: a guest starts without them."""

    kernel: Kernel
    root_image: RootImage
    qemu: Qemu
    building: Future[Modules]

    @property
    def modules(self) -> Modules:
        """The modules, when they are built. Raises as `build_modules`."""
        return self.building.result()


def prepare(
    kernel: KernelChoice,
    cache: Cache,
    progress: Progress,
    own_qemu: Path | None = None,
    own_modules: Path | None = None,
) -> Prepared:
    """Build what is not cached; the modules in the background.

    `own_qemu` is a binary of the user's to take instead of building one, `own_modules` a directory with modules. Raises
    what the parts raise.
    """
    own = examine_qemu(own_qemu) if own_qemu else None
    given = given_modules(own_modules, cache) if own_modules else None
    with progress.stage("kernel"):
        chosen = ensure_kernel(kernel, cache, progress)

    def build() -> Modules:
        if given:
            return given
        with progress.stage("modules"):
            return build_modules(chosen, cache, progress)

    builder = ThreadPoolExecutor(1, "modules")
    building = builder.submit(build)
    builder.shutdown(wait=False)
    with progress.stage("guest image"):
        root_image = ensure_root_image(cache, progress)
    with progress.stage("qemu"):
        # A driver that does not build shows before the minutes that QEMU takes.
        qemu = ensure_qemu(cache, progress, own, before_build=building.result)
    return Prepared(chosen, root_image, qemu, building)
