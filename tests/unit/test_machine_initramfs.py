# SPDX-License-Identifier: GPL-2.0-only
"""Where the initramfs is made, and what is said when it cannot be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyharness.artifacts.kernels import Kernel
from pyharness.artifacts.qemu import Qemu
from pyharness.artifacts.rootimage import RootImage
from pyharness.errors import HarnessError
from pyharness.machine import initramfs, vm
from pyharness.machine.accel import Accelerator
from pyharness.machine.config import MachineConfig
from pyharness.machine.vm import Machine


def test_all_of_its_making_is_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed run leaves is swept with its run directory only if it is in there."""
    places: list[Path] = []

    def unpack(_modules_dir: Path, _names: tuple[str, ...], into: Path) -> list[Path]:
        places.append(into)
        return []

    monkeypatch.setattr(initramfs, "unpack_modules", unpack)
    initramfs.build_initramfs(tmp_path, tmp_path / "initramfs")
    assert [place.parent for place in places] == [tmp_path]
    assert [path.name for path in tmp_path.iterdir()] == ["initramfs"]


@pytest.mark.parametrize(
    ("code", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False), (errno.ENOENT, False)]
)
def test_only_a_full_disk_is_mended_by_freeing_space(
    code: int, full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_modules_dir: Path, _out: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(vm, "build_initramfs", refuse)
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/config-6.0").touch()
    kernel = Kernel("k", "k", "6.0", "6.0", "gcc", tmp_path, tmp_path, tmp_path)
    config = MachineConfig(
        kernel, Qemu(tmp_path, tmp_path, "10", "k"), RootImage(tmp_path, "k"), Accelerator("tcg", "a test"), cold=True
    )
    with pytest.raises(HarnessError, match=os.strerror(code)) as caught, Machine(config):
        pass
    assert ("space" in caught.value.mend) == full
