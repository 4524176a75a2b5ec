# SPDX-License-Identifier: GPL-2.0-only
"""The driver, and the kernel's own hv_vmbus with our patches, built against a kernel's headers."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pyharness import repository
from pyharness.artifacts.cache import Cache, files_below, key_of
from pyharness.artifacts.kernels import Kernel
from pyharness.artifacts.patches import apply_patches
from pyharness.artifacts.run import CommandFailed, missing_tool, run
from pyharness.errors import CheckFailed
from pyharness.progress import Progress

VMBUS = "hv_vmbus"
DRIVER = "hv_azure_blob"

_RECIPE = "1"  # raise it when the way of building changes
_DISK_NEEDED = 256 << 20


@dataclass(frozen=True)
class Modules:
    """The two modules of one kernel. `vmbus` and `driver` are stripped for loading; *_debug have their DWARF.

    The hashes name what they were built from.
    """

    vmbus: Path
    driver: Path
    vmbus_debug: Path
    driver_debug: Path
    vmbus_hash: str
    driver_hash: str


def build_modules(kernel: Kernel, cache: Cache, progress: Progress) -> Modules:
    """Both modules, each its own cache entry, so that an edit rebuilds only what it touches.

    Raises CheckFailed with the compiler's lines when one does not build, or a patch does not apply.
    """
    vmbus_hash, vmbus = build_vmbus(kernel, cache, progress)
    driver_hash, driver = build_driver(kernel, cache, progress)
    return Modules(
        vmbus=vmbus / f"{VMBUS}.ko",
        driver=driver / f"{DRIVER}.ko",
        vmbus_debug=vmbus / "debug" / f"{VMBUS}.ko",
        driver_debug=driver / "debug" / f"{DRIVER}.ko",
        vmbus_hash=vmbus_hash,
        driver_hash=driver_hash,
    )


def build_driver(kernel: Kernel, cache: Cache, progress: Progress) -> tuple[str, Path]:
    """hv_azure_blob from kernel/ and uapi/; returns the key and the directory of the entry."""
    sources = files_below(*_sources(repository.ROOT / "kernel"), repository.ROOT / "uapi", base=repository.ROOT)
    key = key_of(_RECIPE, kernel.key, _compiler_version(kernel), files=sources)

    def build(directory: Path) -> None:
        progress.step(f"{kernel.name}: building {DRIVER}")
        stage = directory / "build"
        for name, path in sources.items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, stage / name)
        _make(kernel, stage, "kernel", DRIVER, directory, progress)

    return key, cache.build("driver", key, build, needs=_DISK_NEEDED, progress=progress)


def build_vmbus(kernel: Kernel, cache: Cache, progress: Progress) -> tuple[str, Path]:
    """hv_vmbus from the kernel's source with kernel/patches and kernel/vmbus/Kbuild; returns as build_driver does."""
    patches = sorted((repository.ROOT / "kernel" / "patches").glob("*.patch"))
    kbuild = repository.ROOT / "kernel" / "vmbus" / "Kbuild"
    named = {path.name: path for path in (*patches, kbuild)}
    key = key_of(_RECIPE, kernel.key, _compiler_version(kernel), files=named)

    def build(directory: Path) -> None:
        progress.step(f"{kernel.name}: building {VMBUS}")
        stage = directory / "build"
        shutil.copytree(kernel.source, stage, symlinks=True)
        apply_patches(patches, stage, kernel.name)
        shutil.copyfile(kbuild, stage / "drivers" / "hv" / "Kbuild")
        _make(kernel, stage, "drivers/hv", VMBUS, directory, progress)

    return key, cache.build("vmbus", key, build, needs=_DISK_NEEDED, progress=progress)


def _sources(kernel_dir: Path) -> list[Path]:
    return [path for path in kernel_dir.iterdir() if path.suffix in (".c", ".h") or path.name in ("Kbuild", "Makefile")]


def _compiler_version(kernel: Kernel) -> str:
    if shutil.which(kernel.gcc) is None:
        raise missing_tool(kernel.gcc)
    return run([kernel.gcc, "-dumpfullversion"])[-1]


def _make(kernel: Kernel, stage: Path, source: str, name: str, entry: Path, progress: Progress) -> None:
    """Build one module in `stage`/`source`, leave it stripped in `entry` and whole in `entry`/debug."""

    def tell(line: str) -> None:
        if re.search(r":\d+: warning: |^WARNING: modpost", line):
            progress.line(line.replace(f"{stage}/", ""))

    # Without the mapping, traces and DWARF would name a directory that is gone.
    flags = f"KCFLAGS=-ffile-prefix-map={stage}/="
    try:
        run(["make", "-s", "-j2", "-C", kernel.headers, f"M={stage / source}", flags, "modules"], on_line=tell)
    except CommandFailed as error:
        lines = [line.replace(f"{stage}/", "") for line in error.output]
        raise CheckFailed(
            f"{name} does not build for {kernel.name} ({kernel.release})",
            detail="\n".join(line for line in lines if not line.startswith("make")),
        ) from error
    (entry / "debug").mkdir()
    built = (stage / source / f"{name}.ko").rename(entry / "debug" / f"{name}.ko")
    run(["strip", "--strip-debug", "-o", entry / f"{name}.ko", built])
    shutil.rmtree(stage)
