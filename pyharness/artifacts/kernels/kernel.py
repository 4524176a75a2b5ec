# SPDX-License-Identifier: GPL-2.0-only
"""A kernel that can be booted and built against, wherever it came from."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

# Of a kernel's source, what the patched hv_vmbus needs.
SOURCE_FILES = ("drivers/hv", "include/asm-generic/mshyperv.h", "include/linux/hyperv.h")

# Hardware that no guest of ours has.
UNUSED_DRIVERS = (
    "drivers/gpu",
    "drivers/hwmon",
    "drivers/iio",
    "drivers/infiniband",
    "drivers/media",
    "drivers/net/ethernet",
    "drivers/net/wireless",
    "drivers/staging",
    "sound",
)

_FACTS = "kernel.json"


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted and built against.

    `root` holds boot/ and lib/modules/RELEASE, `headers` is what `make -C` takes, `source` holds drivers/hv and
    its headers; `gcc` is the compiler that the headers ask for. `vmlinux` has the DWARF, where there is any.
    """

    name: str
    key: str
    release: str
    version: str
    gcc: str
    root: Path
    headers: Path
    source: Path
    vmlinux: Path | None = None

    @property
    def vmlinuz(self) -> Path:
        """The bootable image."""
        return self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def config(self) -> Path:
        """What it was configured with."""
        return self.root / "boot" / f"config-{self.release}"

    @property
    def modules(self) -> Path:
        """The directory of the kernel's own modules."""
        return self.root / "lib" / "modules" / self.release

    @property
    def stock_vmbus(self) -> Path:
        """The kernel's own hv_vmbus module, compressed or not."""
        return next((self.modules / "kernel" / "drivers" / "hv").glob("hv_vmbus.ko*"))

    def has(self, option: str) -> bool:
        """Whether the kernel was configured with CONFIG_`option`, built in or as a module.

        DEBUG_INFO counts only with the vmlinux that holds it: Debian ships it apart.
        """
        return option in self._options and (option != "DEBUG_INFO" or self.vmlinux is not None)

    @property
    def judges(self) -> bool:
        """Whether it is a debug kernel: it has the checkers that find the driver's faults by name."""
        return self.has("KASAN") and self.has("PROVE_LOCKING")

    @cached_property
    def _options(self) -> frozenset[str]:
        return frozenset(re.findall(r"^CONFIG_(\w+)=[ym]$", self.config.read_text(), re.MULTILINE))


def save(directory: Path, *, release: str, version: str, gcc: str, headers: str, vmlinux: str = "") -> None:
    """Note beside an unpacked or built kernel what `load` needs to know; the paths are relative to `directory`."""
    facts = {"release": release, "version": version, "gcc": gcc, "headers": headers, "vmlinux": vmlinux}
    (directory / _FACTS).write_text(json.dumps(facts, indent=1))


def load(name: str, directory: Path) -> Kernel:
    """The kernel in a finished entry of the cache."""
    facts = json.loads((directory / _FACTS).read_text())
    return Kernel(
        name=name,
        key=directory.name,
        release=facts["release"],
        version=facts["version"],
        gcc=facts["gcc"],
        root=directory / "root",
        headers=directory / facts["headers"],
        source=directory / "source",
        vmlinux=directory / facts["vmlinux"] if facts["vmlinux"] else None,
    )
