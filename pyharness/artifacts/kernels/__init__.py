# SPDX-License-Identifier: GPL-2.0-only
"""Kernels to boot: a table of those that have a name, and any tree of a developer's."""

from __future__ import annotations

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels.built import (
    KernelTree,
    SourceKernel,
    cached_source_kernel,
    ensure_source_kernel,
    ensure_tree_kernel,
)
from pyharness.artifacts.kernels.kernel import Kernel
from pyharness.artifacts.kernels.packaged import DebianKernel, cached_debian_kernel, ensure_debian_kernel
from pyharness.errors import UsageError
from pyharness.progress import Progress

__all__ = [
    "DEBUG_KERNEL",
    "DEFAULT_KERNEL",
    "KERNELS",
    "Kernel",
    "KernelChoice",
    "KernelTree",
    "cached_kernel",
    "ensure_kernel",
    "spec_of",
]

DEFAULT_KERNEL = "debian-6.12"
DEBUG_KERNEL = "debug-6.12"

KERNELS: dict[str, DebianKernel | SourceKernel] = {
    "debian-6.12": DebianKernel(
        summary="Debian 12's backport, as Debian built it",
        release="bookworm",
        source="linux-source-6.12",
        image=r"linux-image-(6\.12\.\d+\+deb12)-amd64-unsigned",
        kbuild="linux-kbuild-{abi}",
    ),
    "debian-6.1": DebianKernel(
        summary="Debian 12's own, as Debian built it",
        release="bookworm",
        source="linux-source-6.1",
        image=r"linux-image-(6\.1\.0-\d+)-amd64-unsigned",
        kbuild="linux-kbuild-6.1",
    ),
    "debug-6.12": SourceKernel(
        summary="the judge: KASAN, lockdep, kmemleak, UBSAN, fault injection, coverage",
        release="bookworm",
        source=r"linux-source-6\.12",
        configs=("guest", "linux-6", "debug"),
        patches=("debug-shadow",),
    ),
    "lean-7": SourceKernel(
        summary="the newest 7.x that Debian has, configured for the guest alone",
        release="trixie-backports",
        source=r"linux-source-7\.\d+",
        configs=("guest", "linux-7"),
    ),
}

KernelChoice = str | KernelTree
"""A name in KERNELS, or a developer's own tree."""


def spec_of(name: str) -> DebianKernel | SourceKernel:
    """The row of KERNELS. Raises UsageError for a name that there is not."""
    if name not in KERNELS:
        raise UsageError(f"there is no kernel {name!r}", mend="choose one of " + ", ".join(KERNELS))
    return KERNELS[name]


def ensure_kernel(choice: KernelChoice, cache: Cache, progress: Progress) -> Kernel:
    """The chosen kernel, fetched or built unless it is cached.

    A name stays with the version that it was first resolved to until `Cache.forget`; a tree is built anew, as far as
    its files have changed. Raises UsageError for an unknown name or what is no kernel tree, HarnessError when it
    cannot be fetched, CheckFailed when a tree does not build.
    """
    if isinstance(choice, KernelTree):
        return ensure_tree_kernel(choice, cache, progress)
    spec = spec_of(choice)
    if isinstance(spec, DebianKernel):
        return ensure_debian_kernel(choice, spec, cache, progress)
    return ensure_source_kernel(choice, spec, cache, progress)


def cached_kernel(name: str, cache: Cache) -> Kernel | None:
    """The kernel of KERNELS if it is in the cache; nothing is fetched or built."""
    spec = KERNELS[name]
    if isinstance(spec, DebianKernel):
        return cached_debian_kernel(name, cache)
    return cached_source_kernel(name, spec, cache)
