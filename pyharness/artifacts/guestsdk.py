# SPDX-License-Identifier: GPL-2.0-only
"""Azure's SDK for the guest's Python, as a tar to unpack there: it is of no use to most guests.

Of this machine's own packages come those that are pure Python, in the versions that the tests on the host use; what is
compiled must fit the guest's Python, so it is Debian's.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pyharness.artifacts.apt import Apt, Package
from pyharness.artifacts.cache import Cache, key_of
from pyharness.artifacts.rootimage import compile_python, ensure_root_tree, pack
from pyharness.artifacts.run import run
from pyharness.errors import HarnessError
from pyharness.progress import Progress

GUEST_DIRECTORY = "/run/azure-sdk"
"""Where it is to be unpacked."""

_RECIPE = "1"  # raise it when the way of making it changes
_RELEASE = "bookworm"
_PURE = (
    "azure-core",
    "azure-storage-blob",
    "certifi",
    "charset-normalizer",
    "idna",
    "isodate",
    "requests",
    "typing-extensions",
    "urllib3",
)
_COMPILED = ("python3-cffi-backend", "python3-cryptography")
_DIST_PACKAGES = "usr/lib/python3/dist-packages"
_NAME = "azure-sdk.tar"


def ensure_guest_sdk(cache: Cache, progress: Progress) -> Path:
    """The tar, made unless it is cached. Raises HarnessError."""
    tree = ensure_root_tree(cache, progress)
    apt = Apt(cache, _RELEASE, progress)

    def build(packages: list[Package]) -> Path:
        versions = [f"{name}=={_distribution(name).version}" for name in _PURE]
        make = partial(_make, tree / "root", packages, apt)
        return cache.build(
            "guest-sdk", key_of(_RECIPE, tree.name, *versions, *map(str, packages)), make, progress=progress
        )

    return apt.fetch_remembered("guest-sdk", lambda: _newest(apt), build) / _NAME


def _newest(apt: Apt) -> list[Package]:
    found = {package.name: package for package in reversed(apt.versions(*_COMPILED))}
    if missing := set(_COMPILED) - set(found):
        raise HarnessError(f"{_RELEASE} has no {' '.join(missing)}", mend="see that the machine's mirror is complete")
    return [found[name] for name in _COMPILED]


def _distribution(name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise HarnessError(f"the Python package {name} is not installed", mend="run scripts/setup") from error


def _make(root: Path, packages: Sequence[Package], apt: Apt, directory: Path) -> None:
    site = directory / "site"
    for name in _PURE:
        distribution = _distribution(name)
        for file in distribution.files or ():
            # The SDK's asynchronous half needs a transport that is not here.
            if file.suffix == ".py" and "aio" not in file.parts:
                target = site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(distribution.locate_file(file)), target)
    unpacked = directory / "debs"
    unpacked.mkdir()
    for deb in apt.download(packages, unpacked):
        run(["dpkg-deb", "-x", deb, unpacked])
    for path in (unpacked / _DIST_PACKAGES).iterdir():
        if not path.name.endswith(".egg-info"):
            path.rename(site / path.name)
    shutil.rmtree(unpacked)
    compile_python(root, site, strip=site, prepend=GUEST_DIRECTORY)
    pack(site, directory / _NAME)
