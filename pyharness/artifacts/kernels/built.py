# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that are built here: from Debian's source packages, or from a developer's tree.

A build is lean: tinyconfig and the fragments of kernel/configs, so that it takes minutes and boots in seconds. The
source is never written to; what later steps need of source and objects is merged into an entry of the cache, laid out
as a tree in which a kernel was configured and built.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyharness import repository
from pyharness.artifacts.apt import Apt, Package
from pyharness.artifacts.cache import GIB, Cache, key_of
from pyharness.artifacts.kernels.kernel import SOURCE_FILES, UNUSED_DRIVERS, Kernel, load, save
from pyharness.artifacts.kernels.unpack import unpack_source
from pyharness.artifacts.patches import apply_patches
from pyharness.artifacts.run import CommandFailed, gcc_version, run
from pyharness.errors import CheckFailed, HarnessError, UsageError
from pyharness.progress import Progress

CONFIGS = repository.ROOT / "kernel" / "configs"

_RECIPE = "2"  # raise it when the way of building changes
_GCC = "gcc-12"
_DISK_NEEDED = 6 * GIB

# One input must give one kernel: the image is part of the key of all that is made with it.
_STAMP = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
    "KBUILD_BUILD_USER": "pyharness",
    "KBUILD_BUILD_HOST": "pyharness",
}

# What `make -C headers M=...` reads, of the source and of the objects.
_HEADERS_OF_SOURCE = ("Makefile", "arch/x86/Makefile", "arch/x86/include", "include", "scripts")
_HEADERS_OF_OBJECTS = (".config", "Module.symvers", "arch/x86/include", "include", "scripts", "tools/objtool/objtool")
_NOT_HEADERS = shutil.ignore_patterns("*.o", "*.a", "*.cmd")

# The fragment for a tree, by the option of its hv_vmbus.
_PLATFORM = {"HYPERV": "linux-6", "HYPERV_VMBUS": "linux-7"}

_OTHER_ARCHITECTURES = "alpha arc arm arm64 csky hexagon loongarch m68k microblaze mips nios2 openrisc parisc powerpc"
_OTHER_ARCHITECTURES += " riscv s390 sh sparc um xtensa"


@dataclass(frozen=True)
class SourceKernel:
    """A kernel of one of Debian's source packages; `source` matches its name.

    `configs` and `patches` are files of kernel/configs; a patch says why it is there.
    """

    summary: str
    release: str
    source: str
    configs: tuple[str, ...]
    patches: tuple[str, ...] = ()

    @property
    def patch_files(self) -> list[Path]:
        """What is changed in the source, in its order."""
        return [CONFIGS / f"{patch}.patch" for patch in self.patches]

    @property
    def config_files(self) -> list[Path]:
        """The fragments, in the order in which they are merged."""
        return [CONFIGS / f"{config}.config" for config in self.configs]


@dataclass(frozen=True)
class KernelTree:
    """A developer's tree, built lean; `configs` are files of the developer's with more options, the last one wins."""

    directory: Path
    configs: tuple[Path, ...] = ()


def ensure_source_kernel(name: str, spec: SourceKernel, cache: Cache, progress: Progress) -> Kernel:
    """The kernel that a row of the table describes, built unless it is cached.

    Raises HarnessError when its source cannot be fetched or does not build.
    """
    before = cache.recall(f"kernel-{name}")
    known = Package(**before) if before else None
    apt = Apt(cache, spec.release, progress)

    def build(package: Package) -> Path:
        make = partial(_build_package, name, package, spec, apt, progress)
        return cache.build("kernel", _package_key(spec, package), make, needs=_DISK_NEEDED, progress=progress)

    package, path = apt.fetch_newest(known, lambda: newest_source(name, spec, apt), build)
    if package != known:
        cache.remember(f"kernel-{name}", {"name": package.name, "version": package.version})
    return load(name, path)


def cached_source_kernel(name: str, spec: SourceKernel, cache: Cache) -> Kernel | None:
    """The kernel as `ensure_source_kernel` would take it from the cache, or None."""
    before = cache.recall(f"kernel-{name}")
    path = cache.get("kernel", _package_key(spec, Package(**before))) if before else None
    return load(name, path) if path else None


def _package_key(spec: SourceKernel, package: Package) -> str:
    files = {path.name: path for path in (*spec.config_files, *spec.patch_files)}
    return key_of(_RECIPE, package.name, package.version, gcc_version(_GCC), files=files)


def newest_source(name: str, spec: SourceKernel, apt: Apt) -> Package:
    """The newest source package that the row matches. Raises HarnessError when there is none."""
    prefix = re.match(r"[\w-]+", spec.source)
    assert prefix is not None
    names = [package for package in apt.names(prefix[0]) if re.fullmatch(spec.source, package)]
    # The index lists each name's versions newest first; the name with the highest number is the newest kernel.
    for source in sorted(names, key=lambda found: [int(number) for number in re.findall(r"\d+", found)], reverse=True):
        for package in apt.versions(source):
            if apt.serves(package):
                return package
    raise HarnessError(
        f"the mirror has no source package for {name}",
        mend=f"see that the machine's mirror carries {spec.release}",
    )


def _build_package(
    name: str, package: Package, spec: SourceKernel, apt: Apt, progress: Progress, directory: Path
) -> None:
    tree = directory / "tree"
    tree.mkdir()
    # Their Kconfig files and Makefiles are read for every kernel.
    unused = (*(f"arch/{name}" for name in _OTHER_ARCHITECTURES.split()), *UNUSED_DRIVERS, "tools/testing")
    excluded = [f"--exclude=*/{path}/*.{suffix}" for path in unused for suffix in ("[chS]", "dts", "dtsi")]
    unpack_source(package, apt, progress, tree, *excluded)
    apply_patches(spec.patch_files, tree, name, HarnessError)
    # Below the source its paths are relative, so the objects do not depend on where they were made.
    objects = tree / "build"
    try:
        refused = [option for options in _configure(tree, objects, spec.config_files).values() for option in options]
        if refused:
            raise HarnessError(f"{name} does not take {', '.join(refused)}", mend="correct kernel/configs")
        _compile(name, tree, objects, progress)
    except CommandFailed as error:
        raise HarnessError(f"{name} does not build", mend="see the compiler's lines", detail=_errors(error)) from error
    _take(tree, objects, package.version, directory)
    shutil.rmtree(tree)


def ensure_tree_kernel(tree: KernelTree, cache: Cache, progress: Progress) -> Kernel:
    """A developer's tree, compiled as far as its files have changed. The tree itself is not written to.

    Raises UsageError for what is no clean kernel tree, CheckFailed with the compiler's lines when it does not build.
    """
    source = tree.directory.resolve()
    _examine(source)
    name = source.name
    numbers = re.findall(r"^(?:VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)$", (source / "Makefile").read_text(), re.M)
    platform = _PLATFORM[vmbus_option((source / "drivers/hv/Kconfig").read_text())]
    configs = [CONFIGS / "guest.config", CONFIGS / f"{platform}.config", *tree.configs]
    for config in configs:
        if not config.is_file():
            raise UsageError(f"there is no configuration file {config}", mend="name a file with CONFIG_ lines")
    workspace = key_of(_RECIPE, str(source), *map(str, tree.configs))
    with cache.workspace("kernel-build", workspace, needs=_DISK_NEEDED, progress=progress) as work:
        objects = work / "objects"
        try:
            for file, options in _configure(source, objects, configs).items():
                if options and file in {path.name for path in tree.configs}:
                    raise UsageError(
                        f"the kernel in {source} does not take {', '.join(options)} of {file}",
                        mend="give it what these options depend on, or leave them out",
                    )
                if options:
                    # Options come and go; whether the guest needs them shows when it boots.
                    progress.line(f"the kernel in {source} does not take {', '.join(options)} of {file}")
            _compile(name, source, objects, progress)
        except CommandFailed as error:
            raise CheckFailed(f"the kernel in {source} does not build", detail=_errors(error)) from error
        files = {"image": objects / "arch/x86/boot/bzImage", "symbols": objects / "Module.symvers"}
        files |= {"config": objects / ".config", "header": source / "include/linux/hyperv.h"}
        files |= {f"hv/{path.name}": path for path in (source / "drivers/hv").glob("*.[ch]")}
        take = partial(_take, source, objects, ".".join(numbers))
        path = cache.build("kernel", key_of(_RECIPE, files=files), take, needs=GIB, progress=progress)
    return load(name, path)


def require_tree(directory: Path) -> None:
    """Raise UsageError for what is no kernel tree."""
    if not (directory / "Kconfig").is_file() or not (directory / "drivers/hv/Kconfig").is_file():
        raise UsageError(f"{directory} is no Linux source tree", mend="name the top directory of one")


def vmbus_option(kconfig: str) -> str:
    """The option without which there is no hv_vmbus, by a tree's drivers/hv/Kconfig."""
    return "HYPERV_VMBUS" if re.search(r"^config HYPERV_VMBUS$", kconfig, re.MULTILINE) else "HYPERV"


def _examine(source: Path) -> None:
    require_tree(source)
    # What kbuild itself refuses to build outside of.
    if (source / ".config").exists() or (source / "include/config").exists():
        raise UsageError(
            f"{source} has been configured or built in place, which keeps it from being built elsewhere",
            mend=f"give a clean work tree of it (git -C {source} worktree add ../clean), or run make mrproper in it",
        )


def _make(source: Path, objects: Path, *arguments: str, on_line: Callable[[str], None] | None = None) -> list[str]:
    command: list[str | Path] = ["make", "-C", source, f"O={objects}", f"CC={_GCC}", *arguments]
    return run(command, env=_STAMP, on_line=on_line)


def _configure(source: Path, objects: Path, configs: Sequence[Path]) -> dict[str, list[str]]:
    """tinyconfig and the fragments; returns what the kernel did not take of each file, by the file's name."""
    wanted = "".join(path.read_text() for path in configs)
    merged = objects / "configured"
    if not merged.exists() or merged.read_text() != wanted:
        objects.mkdir(parents=True, exist_ok=True)
        merged.unlink(missing_ok=True)
        _make(source, objects, "-s", "tinyconfig")
        with (objects / ".config").open("a") as config:
            config.write(wanted)
        merged.write_text(wanted)
    _make(source, objects, "-s", "olddefconfig")
    refused = _refused(wanted, (objects / ".config").read_text())
    return {path.name: [line for line in refused if line in path.read_text().splitlines()] for path in configs}


def _refused(wanted: str, config: str) -> list[str]:
    """Options that are asked for and did not become so; of two lines about one option the last counts."""
    lines = re.findall(r"^(?:# )?CONFIG_(\w+)(?:=(.+)| is not set)$", wanted, re.MULTILINE)
    got = dict(re.findall(r"^CONFIG_(\w+)=(.+)$", config, re.MULTILINE))
    return [f"CONFIG_{option}={value}" for option, value in dict(lines).items() if value and got.get(option) != value]


def _compile(name: str, source: Path, objects: Path, progress: Progress) -> None:
    done = 0

    def show(line: str) -> None:
        nonlocal done
        if re.match(r"\s+(CC|AS|LD|AR)\s", line):
            done += 1
            progress.step(f"compiling {name}: {done} objects")

    jobs = len(os.sched_getaffinity(0))
    flags = f"KCFLAGS=-ffile-prefix-map={source}/="
    _make(source, objects, f"-j{jobs}", flags, "bzImage", "modules", on_line=show)


def _errors(error: CommandFailed) -> str:
    """The compiler's lines, or all when there is none."""
    own = [line for line in error.output if not re.match(r"make(\[\d+\])?: |\s+[A-Z]+ ", line)]
    return "\n".join(own or error.output)


def _take(source: Path, objects: Path, version: str, directory: Path) -> None:
    """Merge what is needed of source and objects into the entry."""
    root, headers, taken = (directory / name for name in ("root", "headers", "source"))
    release = (objects / "include/config/kernel.release").read_text().strip()
    (root / "boot").mkdir(parents=True)
    shutil.copyfile(objects / "arch/x86/boot/bzImage", root / "boot" / f"vmlinuz-{release}")
    shutil.copyfile(objects / ".config", root / "boot" / f"config-{release}")
    shutil.copyfile(objects / "vmlinux", directory / "vmlinux")
    _make(source, objects, "-s", f"INSTALL_MOD_PATH={root}", "modules_install")
    for link in ("build", "source"):
        (root / "lib/modules" / release / link).unlink(missing_ok=True)
    for tree, names in ((source, _HEADERS_OF_SOURCE), (objects, _HEADERS_OF_OBJECTS)):
        for name in names:
            _copy(tree / name, headers / name)
    for name in SOURCE_FILES:
        if (source / name).is_dir():
            shutil.copytree(source / name, taken / name)
        else:
            _copy(source / name, taken / name)
    save(directory, release=release, version=version, gcc=_GCC, headers="headers", vmlinux="vmlinux")


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or a directory into one that may be there; nothing where there is nothing."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=_NOT_HEADERS, dirs_exist_ok=True)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
