# SPDX-License-Identifier: GPL-2.0-only
"""The driver, and the kernel's own hv_vmbus with our patches, built against a kernel's headers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyharness import repository
from pyharness.artifacts.cache import Cache, files_below, key_of
from pyharness.artifacts.kernels import Kernel
from pyharness.artifacts.patches import apply_patches, is_applied, touched_by
from pyharness.artifacts.run import CommandFailed, gcc_version, run
from pyharness.errors import CheckFailed, UsageError
from pyharness.progress import Progress

VMBUS = "hv_vmbus"
DRIVER = "hv_azure_blob"

_RECIPE = "6"  # raise it when the way of building changes
_DISK_NEEDED = 256 << 20
_VMBUS_KBUILD = "kernel/vmbus/Kbuild"

# Compiled into what is under test alone, and only where the kernel can collect it.
_COVERAGE = {"GCOV_KERNEL": "GCOV_PROFILE", "KCOV": "KCOV_INSTRUMENT"}


@dataclass(frozen=True)
class Module:
    """One module of one kernel.

    `path` is stripped for loading, `debug` has its DWARF, `sources` is the tree that it was compiled in (as the names
    in its DWARF are relative to it) with the compiler's .gcno files if the kernel collects coverage. `hash` names what
    it was built from.
    """

    name: str
    hash: str
    path: Path
    debug: Path
    sources: Path


@dataclass(frozen=True)
class Modules:
    """The two modules of one kernel."""

    vmbus: Module
    driver: Module


def build_modules(kernel: Kernel, cache: Cache, progress: Progress) -> Modules:
    """Both modules, each its own cache entry, so that an edit rebuilds only what it touches.

    Raises CheckFailed with the compiler's lines when one does not build, or a patch does not apply.
    """
    return Modules(build_vmbus(kernel, cache, progress), build_driver(kernel, cache, progress))


def build_driver(kernel: Kernel, cache: Cache, progress: Progress, root: Path | None = None) -> Module:
    """hv_azure_blob from kernel/ and uapi/ of the repository, or of a changed copy of it below `root`."""
    root = root or repository.ROOT
    sources = files_below(*_sources(root / "kernel"), *_sources(root / "uapi"), base=root)
    return build_module(kernel, DRIVER, sources, "kernel", cache, progress)


def build_module(
    kernel: Kernel, name: str, sources: Mapping[str, Path], where: str, cache: Cache, progress: Progress
) -> Module:
    """A module of our own from `sources` (files by the path that they take), whose Kbuild is in `where` of them."""

    def lay_out(stage: Path) -> None:
        for relative, path in sources.items():
            (stage / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, stage / relative)

    return _build(kernel, name, _key(kernel, sources), lay_out, where, [""], cache, progress)


def build_vmbus(kernel: Kernel, cache: Cache, progress: Progress, root: Path | None = None) -> Module:
    """hv_vmbus from the kernel's source with kernel/patches and kernel/vmbus/Kbuild, or those of a copy below `root`.

    A patch that the kernel's source already has is left out.
    """
    root = root or repository.ROOT
    patches = _vmbus_patches(root)
    lay_out = partial(lay_out_vmbus, kernel, root)
    key = _key(kernel, {path.name: path for path in (*patches, root / _VMBUS_KBUILD)})
    covered = [f"_{Path(name).stem}.o" for name in touched_by(patches) if name.endswith(".c")]
    return _build(kernel, VMBUS, key, lay_out, "drivers/hv", covered, cache, progress)


def lay_out_vmbus(kernel: Kernel, root: Path, stage: Path) -> None:
    """Make `stage` the source that hv_vmbus is built from, in drivers/hv; patches and Kbuild are those below `root`.

    Raises CheckFailed when a patch does not apply.
    """
    shutil.copytree(kernel.source, stage, symlinks=True)
    patches = [patch for patch in _vmbus_patches(root) if not is_applied(patch, stage)]
    apply_patches(patches, stage, kernel.name)
    shutil.copyfile(root / _VMBUS_KBUILD, stage / "drivers" / "hv" / "Kbuild")


def _vmbus_patches(root: Path) -> list[Path]:
    return sorted((root / "kernel" / "patches").glob("*.patch"))


def given_modules(directory: Path, cache: Cache) -> Modules:
    """Modules that were made elsewhere: NAME.ko of each, with its DWARF or with NAME.debug.ko beside it.

    `sources`, if it is there too, is the tree that the names in the DWARF are relative to. Raises UsageError when there
    are no modules.
    """
    found = {}
    for name in (VMBUS, DRIVER):
        files = [path for path in (directory / f"{name}.debug.ko", directory / f"{name}.ko") if path.is_file()]
        if not files:
            raise UsageError(f"{directory} has no {name}.ko", mend="name the directory in which the modules were built")
        found[name] = _given(name, files[0], directory / "sources", cache)
    return Modules(found[VMBUS], found[DRIVER])


def _given(name: str, file: Path, sources: Path, cache: Cache) -> Module:
    def take(directory: Path) -> None:
        if sources.is_dir():
            shutil.copytree(sources, directory / "sources")
        shutil.copyfile(file, directory / f"{name}.debug.ko")

    return _entry(name, key_of(_RECIPE, name, files=files_below(file, sources, base=file.parent)), take, cache)


def _sources(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.suffix in (".c", ".h") or path.name in ("Kbuild", "Makefile")]


def _key(kernel: Kernel, files: Mapping[str, Path]) -> str:
    return key_of(_RECIPE, kernel.key, gcc_version(kernel.gcc), files=files)


def _build(
    kernel: Kernel,
    name: str,
    key: str,
    lay_out: Callable[[Path], None],
    where: str,
    covered: Sequence[str],
    cache: Cache,
    progress: Progress,
) -> Module:
    """The entry `key`: sources laid out in `sources`, compiled in `where` of it.

    `covered` are endings of the variables that ask for coverage, which tell the object; an empty one stands for all.
    """

    def build(directory: Path) -> None:
        progress.step(f"{kernel.name}: building {name}")
        stage = directory / "sources"
        lay_out(stage)
        asked = [f"{ask}{which}=y" for option, ask in _COVERAGE.items() if kernel.has(option) for which in covered]
        _make(kernel, stage, where, name, asked, progress)
        (stage / where / f"{name}.ko").rename(directory / f"{name}.debug.ko")
        for path in files_below(stage, base=stage).values():
            if path.suffix not in (".c", ".h", ".gcno"):
                path.unlink()

    return _entry(name, key, build, cache, progress)


def _entry(name: str, key: str, make: Callable[[Path], None], cache: Cache, progress: Progress | None = None) -> Module:
    """The entry `key`, in which `make` leaves the module with its DWARF, and its sources."""

    def build(directory: Path) -> None:
        make(directory)
        run(["strip", "--strip-debug", "-o", directory / f"{name}.ko", directory / f"{name}.debug.ko"])

    entry = cache.build("module", key, build, needs=_DISK_NEEDED, progress=progress)
    return Module(name, key, entry / f"{name}.ko", entry / f"{name}.debug.ko", entry / "sources")


def path_mapping(stage: Path) -> str:
    """gcc's option by which traces and DWARF do not name the directory `stage`, which will be gone."""
    return f"-ffile-prefix-map={stage}/="


def _make(kernel: Kernel, stage: Path, where: str, name: str, asked: Sequence[str], progress: Progress) -> None:
    def tell(line: str) -> None:
        if re.search(r":\d+: warning: |^WARNING: modpost", line):
            progress.line(line.replace(f"{stage}/", ""))

    # gcov deduces most counts from a few that are taken, and gets nonsense from one that a race has spoilt.
    flags = f"KCFLAGS={path_mapping(stage)} -fprofile-update=atomic"
    try:
        run(
            [
                "make",
                "-s",
                "-j2",
                "-C",
                kernel.headers,
                f"M={stage / where}",
                f"CC={kernel.gcc}",
                flags,
                *asked,
                "modules",
            ],
            on_line=tell,
        )
    except CommandFailed as error:
        lines = [line.replace(f"{stage}/", "") for line in error.output]
        own = [line for line in lines if not line.startswith("make")]
        raise CheckFailed(
            f"{name} does not build for {kernel.name} ({kernel.release})",
            detail="\n".join(own or lines),
        ) from error
