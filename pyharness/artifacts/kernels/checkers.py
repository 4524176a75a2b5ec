# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel's source has for judging code: its scripts, its licences, and its headers for user space."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pyharness.artifacts.apt import Apt, Package
from pyharness.artifacts.cache import GIB, Cache, key_of
from pyharness.artifacts.kernels.kernel import Kernel
from pyharness.artifacts.kernels.packaged import DebianKernel
from pyharness.artifacts.kernels.unpack import unpack_source
from pyharness.artifacts.run import run
from pyharness.errors import HarnessError
from pyharness.progress import Progress

_RECIPE = "1"  # raise it when what is taken changes
_DISK_NEEDED = GIB

_KEPT = ("LICENSES", "scripts")
# What `make headers` reads.
_TAKEN = (
    *_KEPT,
    "Kbuild",
    "Makefile",
    "arch/Kconfig",
    "arch/x86/Makefile",
    "arch/x86/entry/syscalls",
    "arch/x86/include/asm/Kbuild",
    "arch/x86/include/uapi",
    "arch/x86/tools",
    "include/asm-generic",
    "include/uapi",
    "tools/include",
    "usr/include",
)


@dataclass(frozen=True)
class Checkers:
    """`tree` holds scripts/ (unifdef is built), LICENSES/ and usr/include/, where the headers are installed."""

    tree: Path
    version: str
    key: str


def ensure_checkers(kernel: Kernel, spec: DebianKernel, cache: Cache, progress: Progress) -> Checkers:
    """Those of the source that `kernel` was built from, or of the newest one when the mirror no longer has that.

    Raises HarnessError when the source cannot be fetched.
    """
    known = cache.recall(f"checkers-{kernel.version}")
    apt = Apt(cache, spec.release, progress)

    def build(package: Package) -> Path:
        make = partial(_make, package, apt, progress)
        return cache.build("checkers", _key(package), make, needs=_DISK_NEEDED, progress=progress)

    first = Package(**known) if known else Package(spec.source, kernel.version)
    package, path = apt.fetch_newest(first, lambda: _newest(spec.source, apt), build)
    if not known:
        cache.remember(f"checkers-{kernel.version}", asdict(package))
    return Checkers(path, package.version, path.name)


def _newest(source: str, apt: Apt) -> Package:
    if not (versions := apt.versions(source)):
        raise HarnessError(
            f"the mirror has no {source}", mend=f"see that the machine's mirror carries {apt.release}-security"
        )
    return versions[0]


def _key(package: Package) -> str:
    return key_of(_RECIPE, package.name, package.version)


def _make(package: Package, apt: Apt, progress: Progress, directory: Path) -> None:
    tree = directory / "tree"
    tree.mkdir()
    unpack_source(package, apt, progress, tree, members=_TAKEN)
    progress.step("installing the kernel's headers for user space")
    run(["make", "-s", "-C", tree, "ARCH=x86", "headers"])
    for name in (*_KEPT, "usr/include"):
        (directory / name).parent.mkdir(exist_ok=True)
        (tree / name).rename(directory / name)
    shutil.rmtree(tree)
