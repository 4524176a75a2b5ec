# SPDX-License-Identifier: GPL-2.0-only
"""QEMU with our Hyper-V enlightenments and devices: Debian's source, our files laid over it, our hooks patched in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pyharness import repository
from pyharness.artifacts.apt import Apt, Package
from pyharness.artifacts.cache import GIB, Cache, files_below, key_of
from pyharness.artifacts.patches import lay_over
from pyharness.artifacts.run import CommandFailed, run
from pyharness.errors import HarnessError, UsageError
from pyharness.progress import Progress

_RECIPE = "1"  # raise it when the way of building changes
_RELEASE = "trixie"
_SOURCE_VERSION = re.compile(r"1:10\.0\.\d")
_BINARY = "qemu-system-x86_64"
PLUGIN_HEADER = "qemu-plugin.h"
"""What a plugin is compiled with; it lies beside the binary."""
_DISK_NEEDED = 2 * GIB

_OWN = repository.ROOT / "qemu"

# The build tool in the version that QEMU 10.0 asks for; its wheel has no dependencies.
_MESON = "meson==1.5.0 --hash=sha256:52b34f4903b882df52ad0d533146d4b992c018ea77399f825579737672ae7b20\n"

# Debian's QEMU source has no binary blobs: they come from these packages.
_FIRMWARE = {
    "ipxe-qemu": ("usr/share/qemu/efi-virtio.rom",),
    "qemu-system-data": ("usr/share/qemu/kvmvapic.bin", "usr/share/qemu/linuxboot_dma.bin", "usr/share/qemu/pvh.bin"),
    "seabios": ("usr/share/seabios/bios-256k.bin", "usr/share/seabios/vgabios-stdvga.bin"),
}


@dataclass(frozen=True)
class Qemu:
    """A built QEMU; `firmware` is the directory for -L, `version` that of Debian's source package."""

    binary: Path
    firmware: Path
    version: str
    key: str


@dataclass(frozen=True)
class OwnQemu:
    """A binary of the user's that has been examined."""

    binary: Path
    version: str
    key: str


@dataclass(frozen=True)
class _Inputs:
    """What is fetched: a source version, and versions of the firmware packages in the order of their names."""

    source: str
    firmware: tuple[str, ...]

    @property
    def key(self) -> str:
        """The key of the binary."""
        own = files_below(
            _OWN / "src", _OWN / "patches", _OWN / "devices.mak", _OWN / "configure-args", base=repository.ROOT
        )
        return key_of(_RECIPE, *_distribution(), self.source, files=own)

    @property
    def workspace_key(self) -> str:
        """The key of the tree of sources and objects, which our files do not change."""
        # The configured tree holds the path of the Python that runs meson.
        return key_of(_RECIPE, *_distribution(), sys.base_prefix, sys.version, self.source)

    @property
    def firmware_key(self) -> str:
        """The key of the firmware."""
        return key_of(_RECIPE, *self.firmware)

    @property
    def firmware_packages(self) -> list[Package]:
        """The packages that the firmware comes from."""
        return [Package(name, version) for name, version in zip(sorted(_FIRMWARE), self.firmware, strict=True)]


def ensure_qemu(
    cache: Cache, progress: Progress, own: OwnQemu | None = None, before_build: Callable[[], object] = lambda: None
) -> Qemu:
    """QEMU, built unless it is cached (after a call of `before_build`), or the user's `own` with our firmware.

    The tree of sources and objects stays in the cache as an entry of its own, so that after an edit below qemu/ only
    what depends on it is compiled. Raises HarnessError when it cannot be fetched or built.
    """
    known = _known(cache)
    apt = Apt(cache, _RELEASE, progress)

    def build(inputs: _Inputs) -> Path:
        take = partial(_take_firmware, inputs, apt)
        cache.build("firmware", inputs.firmware_key, take, progress=progress)
        if own:
            return own.binary

        def make(directory: Path) -> None:
            before_build()
            _make(inputs, apt, cache, progress, directory)

        return cache.build("qemu", inputs.key, make, needs=_DISK_NEEDED, progress=progress) / _BINARY

    inputs, binary = apt.fetch_newest(known, lambda: _choose(apt), build)
    if inputs != known:
        cache.remember("qemu", asdict(inputs))
    firmware = cache.path("firmware", inputs.firmware_key)
    version, key = (own.version, own.key) if own else (inputs.source, inputs.key)
    return Qemu(binary, firmware, version, key)


def ensure_qemu_checkpatch(cache: Cache, progress: Progress) -> Path:
    """The checkpatch.pl of QEMU's source, from the tree that QEMU was built in or fetched; nothing is built.

    Raises HarnessError when it cannot be fetched.
    """
    known = _known(cache)
    apt = Apt(cache, _RELEASE, progress)
    name = "scripts/checkpatch.pl"

    def build(inputs: _Inputs) -> Path:
        def take(directory: Path) -> None:
            built = cache.get("qemu-build", inputs.workspace_key)
            if built and (built / "prepared").exists():
                shutil.copyfile(built / "src" / name, directory / "checkpatch.pl")
                return
            debs = directory / "debs"
            debs.mkdir()
            apt.download_source(Package("qemu", inputs.source), debs)
            (archive,) = debs.glob("*.orig.tar.xz")
            run(["tar", "-xf", archive, "-C", directory, "--wildcards", "--strip-components=2", f"*/{name}"])
            shutil.rmtree(debs)

        return cache.build("qemu-checkpatch", key_of(_RECIPE, inputs.source), take, progress=progress)

    inputs, path = apt.fetch_newest(known, lambda: _choose(apt), build)
    if inputs != known:
        cache.remember("qemu", asdict(inputs))
    return path / "checkpatch.pl"


def examine_qemu(binary: Path) -> OwnQemu:
    """Take the user's QEMU. Raises UsageError when it is not one that can run our guests."""
    mend = "build it from Debian's source with what is in qemu/, or leave --qemu out"
    answers = []
    for question in (["--version"], ["-device", "help"]):
        try:
            done = subprocess.run([binary, *question], capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it does not answer as QEMU does"
            raise UsageError(f"cannot use {binary} as QEMU: {reason}", mend=mend) from error
        answers.append(done.stdout)
    version, devices = answers
    for device in ("hv-azure-blob", "hv-vpci-companion"):
        if f'"{device}"' not in devices:
            raise UsageError(f"cannot use {binary} as QEMU: it has no device {device}", mend=mend)
    return OwnQemu(binary.resolve(), version.partition("\n")[0], key_of(files={"binary": binary}))


def _known(cache: Cache) -> _Inputs | None:
    found = cache.recall("qemu")
    return _Inputs(found["source"], tuple(found["firmware"])) if found else None


def _choose(apt: Apt) -> _Inputs:
    sources = [version for version in apt.source_versions("qemu") if _SOURCE_VERSION.match(version)]
    firmware = [apt.versions(name) for name in sorted(_FIRMWARE)]
    if not sources or not all(firmware):
        raise HarnessError(
            f"the mirror has no QEMU 10.0 source, or lacks one of {', '.join(_FIRMWARE)}",
            mend=f"see that the machine's mirror carries {_RELEASE} with its sources",
        )
    return _Inputs(sources[0], tuple(versions[0].version for versions in firmware))


def _distribution() -> list[str]:
    """What the binary's libraries come from."""
    release = Path("/etc/os-release").read_text()
    return sorted(re.findall(r"^(?:ID|VERSION_ID)=.*$", release, re.MULTILINE))


def _make(inputs: _Inputs, apt: Apt, cache: Cache, progress: Progress, directory: Path) -> None:
    with cache.workspace("qemu-build", inputs.workspace_key, needs=_DISK_NEEDED, progress=progress) as work:
        log = work / "build.log"
        log.unlink(missing_ok=True)
        try:
            _prepare(Package("qemu", inputs.source), apt, work, log, progress)
            lay_over(work / "src", work, _own_files(), sorted((_OWN / "patches").glob("*.patch")))
            _configure(work, log, progress)
            _compile(work, log, progress)
        except CommandFailed as error:
            lines = [line for line in error.output if not re.match(r"\[\d+/\d+\]|ninja: ", line)]
            raise HarnessError(
                "QEMU does not build",
                mend=f"the whole log is {log}",
                detail="\n".join(lines[-30:]).replace(f"{work}/src/", "").replace("../src/", ""),
            ) from error
        run(["strip", "-o", directory / _BINARY, work / "build" / _BINARY])
        shutil.copyfile(work / "src" / "include" / "qemu" / PLUGIN_HEADER, directory / PLUGIN_HEADER)
        shutil.copyfile(log, directory / "build.log")


def _own_files() -> dict[str, Path]:
    return {
        **files_below(_OWN / "src", base=_OWN / "src"),
        "configs/devices/x86_64-softmmu/pyharness.mak": _OWN / "devices.mak",
    }


def _take_firmware(inputs: _Inputs, apt: Apt, directory: Path) -> None:
    debs, tree = directory / "debs", directory / "tree"
    debs.mkdir()
    tree.mkdir()
    for deb in apt.download(inputs.firmware_packages, debs):
        run(["dpkg-deb", "-x", deb, tree])
    for names in _FIRMWARE.values():
        for name in names:
            shutil.copyfile(tree / name, directory / Path(name).name)
    shutil.rmtree(debs)
    shutil.rmtree(tree)


def _prepare(source: Package, apt: Apt, work: Path, log: Path, progress: Progress) -> None:
    """The pristine source and the Python environment with meson, once per workspace."""
    done = work / "prepared"
    if done.exists():
        return
    for left in work.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
    debs = work / "debs"
    debs.mkdir()
    dsc = apt.download_source(source, debs)
    progress.step("unpacking QEMU's source")
    # apt has checked the signature of the index and the hash of each file.
    run(["dpkg-source", "--no-check", "-x", dsc, work / "src"], log=log)
    shutil.rmtree(debs)
    progress.step("fetching meson")
    run([sys.executable, "-m", "venv", work / "venv"], log=log)
    requirements = work / "requirements.txt"
    requirements.write_text(_MESON)
    run([work / "venv/bin/pip", "install", "--quiet", "--require-hashes", "-r", requirements], log=log)
    done.touch()


def _configure(work: Path, log: Path, progress: Progress) -> None:
    lines = (_OWN / "configure-args").read_text().splitlines()
    arguments = [line for line in lines if line and not line.startswith("#")]
    build, done = work / "build", work / "configured"
    if done.exists() and done.read_text() == "\n".join(arguments):
        return
    done.unlink(missing_ok=True)
    if build.exists():
        shutil.rmtree(build)
    build.mkdir()
    progress.step("configuring QEMU")
    run([work / "src/configure", *arguments, f"--python={work}/venv/bin/python3"], cwd=build, log=log)
    done.write_text("\n".join(arguments))


def _compile(work: Path, log: Path, progress: Progress) -> None:
    def show(line: str) -> None:
        if match := re.match(r"\[(\d+)/(\d+)\]", line):
            progress.step(f"compiling QEMU {match[1]}/{match[2]}")

    jobs = len(os.sched_getaffinity(0))
    run(["ninja", "-C", work / "build", f"-j{jobs}", _BINARY], log=log, on_line=show)
