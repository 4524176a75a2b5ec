# SPDX-License-Identifier: GPL-2.0-only
"""The source that a named kernel is made from: as much of it as drivers/hv is built, patched and checked with.

Beside it, for the checks of headers: what the source installs for user space.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pyharness.artifacts.apt import Apt, Package
from pyharness.artifacts.cache import GIB, Cache, key_of
from pyharness.artifacts.kernels.built import SourceKernel, newest_source
from pyharness.artifacts.kernels.packaged import DebianKernel, PackageSet, newest_package_set
from pyharness.artifacts.kernels.unpack import unpack_source
from pyharness.artifacts.run import run
from pyharness.progress import Progress

_RECIPE = "1"  # raise it when the parts change
_HEADERS_RECIPE = "1"  # raise it when the way of installing them changes
_DISK_NEEDED = GIB

# What the objects of drivers/hv, the tools that a build makes first, and the checkers read: an eighth of the whole.
_PARTS = (
    *("COPYING", "CREDITS", "Kbuild", "Kconfig", "LICENSES", "MAINTAINERS", "Makefile", "README"),
    *("Documentation/Kconfig", "Documentation/userspace-api/ioctl", "arch/Kconfig", "arch/x86", "drivers/hv"),
    *("include", "kernel", "scripts", "security/selinux/include", "tools", "usr/include"),
)
_WITHOUT = ("tools/perf", "tools/power", "tools/testing")
# These are read for every configuration, from everywhere.
_EVERYWHERE = ("Kconfig*", "Makefile*", "Kbuild*")


@dataclass(frozen=True)
class Source:
    """The source of one version; `directory` is not to be written to. `key` names its content."""

    package: Package
    key: str
    directory: Path

    def __str__(self) -> str:
        return f"{self.package.name} {self.package.version}"


def ensure_source(name: str, spec: DebianKernel | SourceKernel, cache: Cache, progress: Progress) -> Source:
    """The source of a row of the kernels' table, in the version that the kernel was last resolved to.

    Raises HarnessError when it cannot be fetched.
    """
    apt = Apt(cache, spec.release, progress)

    def choose() -> Package:
        if isinstance(spec, SourceKernel):
            package = newest_source(name, spec, apt)
            cache.remember(f"kernel-{name}", asdict(package))
            return package
        packages = newest_package_set(name, spec, apt)
        cache.remember(f"kernel-{name}", asdict(packages))
        return Package(packages.source, packages.version)

    def build(package: Package) -> Path:
        return cache.build("source", _key(package), partial(_unpack, package, apt, progress), needs=_DISK_NEEDED)

    package, path = apt.fetch_newest(_known(name, spec, cache), choose, build)
    return Source(package, _key(package), path)


def ensure_headers(source: Source, cache: Cache, progress: Progress) -> Path:
    """A directory with usr/include, where the source's headers for user space are installed.

    headers_install.sh can be run in it for further ones. Raises CommandFailed.
    """
    key = key_of(_HEADERS_RECIPE, source.key)
    return cache.build("headers", key, partial(_install_headers, source, progress), progress=progress)


def _known(name: str, spec: DebianKernel | SourceKernel, cache: Cache) -> Package | None:
    before = cache.recall(f"kernel-{name}")
    if before is None:
        return None
    if isinstance(spec, SourceKernel):
        return Package(**before)
    packages = PackageSet(**before)
    return Package(packages.source, packages.version)


def _key(package: Package) -> str:
    return key_of(_RECIPE, package.name, package.version)


def _unpack(package: Package, apt: Apt, progress: Progress, directory: Path) -> None:
    without = [f"--exclude=*/{part}" for part in _WITHOUT]
    members = (*_PARTS, *(f"*/{pattern}" for pattern in _EVERYWHERE))
    unpack_source(package, apt, progress, directory, *without, "--wildcards", members=members)


def _install_headers(source: Source, progress: Progress, directory: Path) -> None:
    progress.step("installing the kernel's headers for user space")
    objects = directory / "objects"
    objects.mkdir()
    run(["make", "-s", "-C", source.directory, f"O={objects}", "ARCH=x86", "headers"])
    # The script of the source runs scripts/unifdef.
    for name in ("usr/include", "scripts/unifdef"):
        (directory / name).parent.mkdir()
        (objects / name).rename(directory / name)
    shutil.rmtree(objects)
