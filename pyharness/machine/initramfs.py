# SPDX-License-Identifier: GPL-2.0-only
"""The small initramfs that mounts the root image, made by virtme-ng.

Only the modules that stand between the kernel and its root image are in it; every other module is pushed into the
running guest by whoever needs it.
"""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from elftools.elf.elffile import ELFFile
from virtme import mkinitramfs

from pyharness.errors import HarnessError

_BOOT_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "erofs")
# libcrc32c asks the crypto API for its algorithm when it loads, which no symbol shows. Newer kernels have neither.
_SOFT_DEPENDS = {"libcrc32c": ("crc32c_generic",)}
_DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {".ko": bytes, ".xz": lzma.decompress, ".gz": gzip.decompress}


def build_initramfs(modules_dir: Path, out: Path) -> None:
    """Write an initramfs to `out` with the boot modules of `modules_dir` (`.../lib/modules/RELEASE`).

    Raises HarnessError when the kernel lacks a driver that the boot needs, or when the host has no static busybox.
    """
    config = mkinitramfs.Config()
    config.busybox = _static_busybox()
    config.root_disk = True
    # Beside the result, so that what a killed run leaves of it goes with the directory.
    with tempfile.TemporaryDirectory(prefix="initramfs-", dir=out.parent) as unpacked:
        config.modfiles = [str(path) for path in unpack_modules(modules_dir, _BOOT_MODULES, Path(unpacked))]
        with out.open("xb") as stream:
            mkinitramfs.mkinitramfs(stream, config)


def _static_busybox() -> str:
    busybox = mkinitramfs.find_busybox("/", True) or shutil.which("busybox")
    # A static program has no interpreter; virtme-ng's own test wants file(1), which is one more package.
    if busybox:
        with Path(busybox).open("rb") as stream:
            if not any(segment["p_type"] == "PT_INTERP" for segment in ELFFile(stream).iter_segments()):
                return busybox
    raise HarnessError("no statically linked busybox on this machine", mend="install the package busybox-static")


def _module_name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


def _listed(index: Path) -> dict[str, str]:
    lines = index.read_text().split() if index.exists() else []
    return {_module_name(line): line for line in lines}


def unpack_modules(modules_dir: Path, names: Iterable[str], into: Path) -> list[Path]:
    """Unpack these modules and all they depend on, in loading order; without what is built in.

    Raises HarnessError when the kernel has one of them in neither form.
    """
    loadable = _listed(modules_dir / "modules.order")
    built_in = _listed(modules_dir / "modules.builtin")
    unpacked: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in built_in or name in unpacked:
            return
        if name not in loadable:
            raise HarnessError(
                f"the kernel of {modules_dir} has no {name}, which the guest needs to boot",
                mend=f"enable {name} in the kernel's configuration, or choose another kernel",
            )
        data = read_module(modules_dir / loadable[name])
        target = into / f"{name}.ko"
        target.write_bytes(data)
        for dependency in (*_depends(target), *(soft for soft in _SOFT_DEPENDS.get(name, ()) if soft in loadable)):
            add(dependency)
        unpacked[name] = target

    for name in names:
        add(name)
    return list(unpacked.values())


def read_module(path: Path) -> bytes:
    """Read a module, decompressed; `path` may lack the suffix that packaging's compression adds.

    Raises HarnessError when there is none.
    """
    for candidate in sorted(path.parent.glob(f"{path.name}*")):
        if candidate.suffix == ".zst":
            return subprocess.run(["zstd", "-dc", candidate], check=True, capture_output=True).stdout
        if candidate.suffix in _DECOMPRESS:
            return _DECOMPRESS[candidate.suffix](candidate.read_bytes())
    raise HarnessError(f"no module file {path}", mend="remove the kernel from the cache and fetch it again")


def _depends(module: Path) -> list[str]:
    with module.open("rb") as stream:
        section = ELFFile(stream).get_section_by_name(".modinfo")
        fields = section.data().split(b"\0") if section else []
    names = next((field[len(b"depends=") :].decode() for field in fields if field.startswith(b"depends=")), "")
    return [name.replace("-", "_") for name in names.split(",") if name]
