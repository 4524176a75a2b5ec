# SPDX-License-Identifier: GPL-2.0-only
"""Kernels of Debian's own packages, unpacked into the cache and never installed."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pyharness.artifacts.apt import Apt, Package
from pyharness.artifacts.cache import GIB, Cache, key_of
from pyharness.artifacts.kernels.kernel import SOURCE_FILES, UNUSED_DRIVERS, Kernel, load, save
from pyharness.artifacts.kernels.unpack import unpack_source
from pyharness.artifacts.run import run
from pyharness.errors import HarnessError
from pyharness.progress import Progress

_RECIPE = "2"  # raise it when the layout of an entry changes
_DISK_NEEDED = 2 * GIB


@dataclass(frozen=True)
class DebianKernel:
    """Where a kernel's packages are: image, headers, kbuild and source of one version.

    `image` matches the image package's name; its group 1, the ABI, names the other packages.
    """

    summary: str
    release: str
    source: str
    image: str
    kbuild: str


@dataclass(frozen=True)
class PackageSet:
    """The packages of one version that make a kernel."""

    version: str
    image: str
    headers: str
    common: str
    kbuild: str
    source: str

    @property
    def packages(self) -> list[Package]:
        """The five packages, the small ones first: a version that has gone shows before the long downloads."""
        names = (self.kbuild, self.headers, self.common, self.image, self.source)
        return [Package(name, self.version) for name in names]

    @property
    def key(self) -> str:
        """The cache key of the unpacked set."""
        return key_of(_RECIPE, *asdict(self).values())


def ensure_debian_kernel(name: str, spec: DebianKernel, cache: Cache, progress: Progress) -> Kernel:
    """The kernel that a row of the table describes. Raises HarnessError when it cannot be fetched."""
    before = cache.recall(f"kernel-{name}")
    known = PackageSet(**before) if before else None
    apt = Apt(cache, spec.release, progress)

    def build(packages: PackageSet) -> Path:
        unpack = partial(_unpack, packages, apt, progress)
        return cache.build("kernel", packages.key, unpack, needs=_DISK_NEEDED, progress=progress)

    packages, path = apt.fetch_newest(known, lambda: newest_package_set(name, spec, apt), build)
    if packages != known:
        cache.remember(f"kernel-{name}", asdict(packages))
    return load(name, path)


def cached_debian_kernel(name: str, cache: Cache) -> Kernel | None:
    """The kernel as `ensure_debian_kernel` would take it from the cache, or None."""
    before = cache.recall(f"kernel-{name}")
    path = cache.get("kernel", PackageSet(**before).key) if before else None
    return load(name, path) if path else None


def newest_package_set(name: str, spec: DebianKernel, apt: Apt) -> PackageSet:
    """The newest version of which the mirror has every package. Raises HarnessError when there is none."""
    prefix = re.match(r"[\w-]+", spec.image)
    assert prefix is not None
    abis = {image: match[1] for image in apt.names(prefix[0]) if (match := re.fullmatch(spec.image, image))}
    images = {package.version: package.name for package in apt.versions(*abis)} if abis else {}
    for source in apt.versions(spec.source):
        if image := images.get(source.version):
            abi = abis[image]
            found = PackageSet(
                version=source.version,
                image=image,
                headers=f"linux-headers-{abi}-amd64",
                common=f"linux-headers-{abi}-common",
                kbuild=spec.kbuild.format(abi=abi),
                source=spec.source,
            )
            if all(apt.serves(package) for package in found.packages):
                return found
    raise HarnessError(
        f"the mirror has no complete set of packages for {name}",
        mend=f"see that the machine's mirror carries {spec.source} of {spec.release}-security",
    )


def _unpack(packages: PackageSet, apt: Apt, progress: Progress, directory: Path) -> None:
    debs, root, source = (directory / name for name in ("debs", "root", "source"))
    for made in (debs, root, source):
        made.mkdir()
    *others, whole_source = packages.packages
    for package in others:
        (deb,) = apt.download([package], debs)
        progress.step(f"unpacking {deb.name}")
        run(["dpkg-deb", "-x", deb, root])
        deb.unlink()
    unpack_source(whole_source, apt, progress, source, members=SOURCE_FILES)
    _make_relocatable(root)
    (boot_image,) = (root / "boot").glob("vmlinuz-*")
    release = boot_image.name.removeprefix("vmlinuz-")
    for unused in UNUSED_DRIVERS:
        shutil.rmtree(root / "lib" / "modules" / release / "kernel" / unused, ignore_errors=True)
    progress.step("indexing the modules")
    run(["depmod", "-b", root, release])
    (headers,) = (root / "usr" / "src").glob("linux-headers-*-amd64")
    compiler = re.search(r"\bgcc-\d+", (headers / ".kernelvariables").read_text())
    if compiler is None:
        raise HarnessError(f"{headers.name} names no compiler", mend="report it: the package's layout has changed")
    shutil.rmtree(debs)
    shutil.rmtree(root / "usr" / "share")
    save(
        directory,
        release=release,
        version=packages.version,
        gcc=compiler[0],
        headers=headers.relative_to(directory).as_posix(),
    )


def _make_relocatable(root: Path) -> None:
    """Make the headers work where they are instead of in /usr/src."""
    for makefile in (root / "usr" / "src").glob("linux-headers-*/Makefile"):
        text = makefile.read_text()
        here = "$(dir $(lastword $(MAKEFILE_LIST)))../"
        makefile.write_text(text.replace("include /usr/src/", f"include {here}"))
    for link in (root / "lib" / "modules").glob("*/*"):
        if link.is_symlink() and link.readlink().is_absolute():
            target = link.readlink().relative_to("/")
            link.unlink()
            link.symlink_to(Path("../../..") / target)
    # With the kernel's BTF at hand the build would run pahole, which no test needs.
    for headers in (root / "usr" / "src").glob("linux-headers-*/vmlinux"):
        headers.unlink()
