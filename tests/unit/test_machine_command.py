# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyharness.artifacts.kernels import Kernel
from pyharness.artifacts.qemu import Qemu
from pyharness.artifacts.rootimage import RootImage
from pyharness.machine.accel import Accelerator
from pyharness.machine.command import kernel_command_line, qemu_command
from pyharness.machine.config import BlobDevice, MachineConfig
from pyharness.machine.rundir import RunDir

INSTANCE = uuid.UUID("7e1a0c52-91b4-4d07-8f1e-b10b00000001")


@pytest.fixture
def run_dir() -> Iterator[RunDir]:
    run_dir = RunDir()
    yield run_dir
    run_dir.remove()


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / "config-6.12.1").write_text("CONFIG_SMP=y\n")
    return MachineConfig(
        kernel=Kernel("6.12", "k", "6.12.1", "6.12.1-1", "gcc", tmp_path, tmp_path, tmp_path),
        qemu=Qemu(Path("/bin/qemu"), Path("/firmware"), "10.0", "q"),
        root_image=RootImage(Path("/images/a,b"), "r"),
        accelerator=Accelerator("tcg", "told so"),
    )


def options(config: MachineConfig, run_dir: RunDir) -> list[tuple[str, str]]:
    argv = qemu_command(config, run_dir)
    return [(name, value) for name, value in zip(argv, [*argv[1:], ""], strict=True) if name.startswith("-")]


def test_the_guests_memory_is_a_shared_memfd(config: MachineConfig, run_dir: RunDir) -> None:
    found = options(replace(config, memory_mib=512), run_dir)
    assert ("-object", "memory-backend-memfd,id=ram,size=512M,share=on") in found
    assert ("-m", "512") in found and ("-M", "q35,memory-backend=ram") in found


def test_a_device_without_backend_has_no_socket(config: MachineConfig, run_dir: RunDir) -> None:
    devices = (BlobDevice(INSTANCE, backend=False), BlobDevice(INSTANCE))
    found = options(replace(config, blob_devices=devices), run_dir)
    assert ("-device", f"hv-azure-blob,id=blob0,instanceid={INSTANCE}") in found
    assert ("-device", f"hv-azure-blob,id=blob1,instanceid={INSTANCE},chardev=vsp1") in found
    assert ("-chardev", f"socket,id=vsp1,path={run_dir.vsp_socket(1)},server=on,wait=off") in found
    assert not any("id=vsp0" in value for _, value in found)


@pytest.mark.parametrize(("accelerator", "accel", "cpu"), [("tcg", "tcg,thread=multi", "max"), ("kvm", "kvm", "host")])
def test_the_enlightenments_go_with_either_accelerator(
    config: MachineConfig, run_dir: RunDir, accelerator: str, accel: str, cpu: str
) -> None:
    found = options(replace(config, accelerator=Accelerator(accelerator, "")), run_dir)
    assert ("-accel", accel) in found
    assert ("-cpu", f"{cpu},hv-relaxed,hv-vpindex,hv-synic,hv-time") in found


def test_a_comma_in_a_path_is_no_option(config: MachineConfig, run_dir: RunDir) -> None:
    drive = next(value for name, value in options(config, run_dir) if name == "-drive")
    assert drive.endswith("file=/images/a,,b") and "readonly=on" in drive


def test_a_crash_ends_the_guest_and_own_kernel_arguments_win(config: MachineConfig) -> None:
    line = kernel_command_line(replace(config, kernel_args=("panic=5",))).split()
    assert "oops=panic" in line
    assert line.index("panic=5") > line.index("panic=-1")


def test_own_qemu_arguments_come_last(config: MachineConfig, run_dir: RunDir) -> None:
    argv: list[Any] = qemu_command(replace(config, qemu_args=("-S",)), run_dir)
    assert argv[-1] == "-S"
