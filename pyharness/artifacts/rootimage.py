# SPDX-License-Identifier: GPL-2.0-only
"""The guest's root: a read-only erofs image of a few Debian packages and the Python that the host talks to.

It is made without root and without running any package's scripts: the packages are unpacked over merged /usr
links, and the image's own Python compiles its library through the image's own dynamic loader.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyharness import repository
from pyharness.artifacts.apt import Apt, Package
from pyharness.artifacts.cache import GIB, Cache, key_of
from pyharness.artifacts.run import run
from pyharness.errors import HarnessError
from pyharness.progress import Progress

_RECIPE = "1"  # raise it when the way of making the image changes
_RELEASE = "bookworm"
_DISK_NEEDED = GIB
_NAME = "root.erofs"
_UUID = "00000000-0000-0000-0000-000000000000"  # fixed, for one input must give one image

_PACKAGES = (
    "bash",
    "busybox",
    "coreutils",
    "dash",
    "iproute2",
    "kmod",
    "mount",
    "procps",
    "python3",
    "util-linux",
)

# Dependencies of the packages' installation scripts, none of which runs here.
_LEFT_OUT = (
    "debconf",
    "dpkg",
    "init-system-helpers",
    "lib*-perl",
    "libgdbm*",
    "libperl*",
    "perl*",
    "tar",
    "usrmerge",
    "util-linux-extra",
)

# Pure Python packages that host and guest must have in one version.
_SHARED_PYTHON = ("pyroute2", "rpyc")

_SITE = "usr/lib/pyharness/site"
_OWN_FILES = {
    "usr/lib/pyharness/init": (repository.ROOT / "pyharness/guest/boot/init", 0o755),
    "usr/lib/pyharness/bootstrap.py": (repository.ROOT / "pyharness/guest/boot/bootstrap.py", 0o644),
}

_TEXT_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hostname": "guest\n",
    "etc/hosts": "127.0.0.1 localhost guest\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}

_MERGED_DIRECTORIES = ("bin", "lib", "lib64", "sbin")
_MOUNT_POINTS = ("dev", "mnt", "proc", "root", "run", "sys", "tmp", "var/tmp")

_NOT_NEEDED = (
    "usr/lib/python3*/ensurepip",
    "usr/lib/python3*/idlelib",
    "usr/lib/python3*/lib2to3",
    "usr/lib/python3*/pydoc_data",
    "usr/lib/python3*/test",
    "usr/lib/python3*/tkinter",
    "usr/lib/*-linux-gnu/gconv",
    "usr/lib/*-linux-gnu/perl*",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/i18n",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/perl*",
    "usr/share/zoneinfo",
    "var/cache/apt",
    "var/lib/apt",
    "var/lib/dpkg",
)


@dataclass(frozen=True)
class RootImage:
    """A read-only erofs image; `key` names what it was made from."""

    path: Path
    key: str


def ensure_root_image(cache: Cache, progress: Progress) -> RootImage:
    """The guest's root image, made unless it is cached. Raises HarnessError when its packages cannot be fetched."""
    tree = ensure_root_tree(cache, progress)
    key = key_of(_RECIPE, tree.name, files={name: path for name, (path, _) in _OWN_FILES.items()})
    image = cache.build(
        "root-image", key, partial(_make_image, tree / "root", progress), needs=_DISK_NEEDED, progress=progress
    )
    return RootImage(image / _NAME, key)


def ensure_root_tree(cache: Cache, progress: Progress) -> Path:
    """What the image is made of, as the directory `root` in the one returned. Raises as `ensure_root_image`."""
    apt = Apt(cache, _RELEASE, progress)

    def build_tree(packages: list[Package]) -> Path:
        make = partial(_make_tree, packages, apt, progress)
        return cache.build("root-tree", _tree_key(packages), make, needs=_DISK_NEEDED, progress=progress)

    return apt.fetch_remembered("root-image", lambda: choose(apt, _PACKAGES), build_tree)


def choose(apt: Apt, names: Sequence[str]) -> list[Package]:
    """The packages `names` with all that they need to run. Raises HarnessError."""
    needed = apt.closure(names)
    return [p for p in needed if not any(fnmatch.fnmatch(p.name, pattern) for pattern in _LEFT_OUT)]


def _tree_key(packages: Sequence[Package]) -> str:
    return key_of(
        _RECIPE,
        *map(str, packages),
        *(f"{name}=={importlib.metadata.version(name)}" for name in _SHARED_PYTHON),
    )


def _make_tree(packages: Sequence[Package], apt: Apt, progress: Progress, directory: Path) -> None:
    """All that is fetched, as a directory: an edit of our own files must not need the network."""
    root = directory / "root"
    unpack(packages, apt, root, progress)
    _arrange(root)
    progress.step("compiling the guest's Python")
    compile_python(root, python_library(root), root / _SITE)


def unpack(packages: Sequence[Package], apt: Apt, root: Path, progress: Progress) -> None:
    """Fetch packages and lay them out as an installation would, without what no guest needs."""
    debs = root.with_name("debs")
    debs.mkdir()
    for name in _MERGED_DIRECTORIES:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for number, deb in enumerate(apt.download(packages, debs), 1):
        progress.step(f"unpacking {number}/{len(packages)} {deb.name}")
        data = deb.with_suffix(".tar")
        run(["sh", "-c", 'dpkg-deb --fsys-tarfile "$1" >"$2"', "sh", deb, data])
        run(["tar", "-xf", data, "-C", root, "--keep-directory-symlink", "--no-same-permissions"])
        deb.unlink()
        data.unlink()
    shutil.rmtree(debs)
    for pattern in _NOT_NEEDED:
        for path in root.glob(pattern):
            shutil.rmtree(path)


def _make_image(tree: Path, progress: Progress, directory: Path) -> None:
    progress.step("writing the guest's image")
    root = directory / "root"
    # Links instead of copies: the image is written from them and they go.
    shutil.copytree(tree, root, symlinks=True, copy_function=os.link)
    for name, (path, mode) in _OWN_FILES.items():
        shutil.copyfile(path, root / name)
        (root / name).chmod(mode)
    compile_python(root, *(root / name for name in _OWN_FILES if name.endswith(".py")))
    # Not compressed: under TCG the guest would spend longer unpacking than the host spends reading.
    run(["mkfs.erofs", "-T0", "-U", _UUID, "-x-1", "--all-root", directory / _NAME, root])
    shutil.rmtree(root)


def _arrange(root: Path) -> None:
    for name in _MOUNT_POINTS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, text in _TEXT_FILES.items():
        (root / name).write_text(text)
    (root / "etc" / "resolv.conf").symlink_to("/run/resolv.conf")
    (root / "etc" / "mtab").unlink(missing_ok=True)
    (root / "etc" / "mtab").symlink_to("/proc/self/mounts")
    if not (root / "usr" / "bin" / "sh").is_symlink():
        (root / "usr" / "bin" / "sh").symlink_to("dash")
    site = root / _SITE
    site.mkdir(parents=True)
    for name in _SHARED_PYTHON:
        shutil.copytree(_package_directory(name), site / name, ignore=shutil.ignore_patterns("__pycache__"))


def _package_directory(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise HarnessError(f"the Python package {name} is not installed", mend="run scripts/setup")
    return Path(spec.origin).parent


def python_library(root: Path) -> Path:
    """Python's standard library in a tree; its name is the interpreter's."""
    (library,) = (root / "usr" / "lib").glob("python3.*")
    return library


def pack(root: Path, tar: Path) -> None:
    """Turn a directory into a tar that depends on its content alone."""
    run(["tar", "--sort=name", "--owner=0", "--group=0", "--mtime=@0", "-cf", tar, "-C", root, "."])
    shutil.rmtree(root)


def compile_python(root: Path, *paths: Path, strip: Path | None = None, prepend: str = "/") -> None:
    """Compile with the image's Python, so that the bytecode fits it; hashes unchecked, so that no time stamp counts.

    In tracebacks the files are at `prepend` instead of `strip`, which is `root` unless given.
    """
    libraries = root / "usr" / "lib" / "x86_64-linux-gnu"
    # Not by its name in lib64: that link is absolute and leads to the host's loader.
    loader = [f"{libraries}/ld-linux-x86-64.so.2", "--library-path", str(libraries)]
    python = [*loader, f"{root}/usr/bin/{python_library(root).name}", "-S"]
    compileall = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    compileall += ["-s", str(strip or root), "-p", prepend]
    run([*python, *compileall, *paths], env={"PYTHONHOME": f"{root}/usr", "PYTHONPATH": ""})
