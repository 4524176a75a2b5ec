# SPDX-License-Identifier: GPL-2.0-only
"""The QEMU command line and the kernel command line of a machine."""

from __future__ import annotations

from pathlib import Path

from pyharness.machine.config import MachineConfig
from pyharness.machine.rundir import RunDir
from pyharness.machine.vmbus import BLOB_DRIVER

AGENT_PORT = "pyharness.agent"
_GUEST_INIT = "/usr/lib/pyharness/init"
_ENLIGHTENMENTS = ("hv-relaxed", "hv-vpindex", "hv-synic", "hv-time")

_KERNEL_ARGS = (
    "console=ttyS0",
    "root=/dev/vda",
    f"init={_GUEST_INIT}",
    # A crash ends the guest at once: QEMU runs with -no-reboot.
    "panic=-1",
    "oops=panic",
    # A loaded host under TCG stops vCPUs for seconds; the detectors must only see hangs of the guest's own making.
    "watchdog_thresh=60",
    "rcupdate.rcu_cpu_stall_timeout=120",
    "sysctl.kernel.hung_task_timeout_secs=240",
)

# Reports that do not stop a kernel of themselves.
_CHECKER_ARGS = {"KASAN": "kasan.fault=panic"}


def kernel_command_line(config: MachineConfig) -> str:
    """The kernel's command line; `config.kernel_args` come last and win."""
    checkers = (argument for option, argument in _CHECKER_ARGS.items() if config.kernel.has(option))
    return " ".join((*_KERNEL_ARGS, *checkers, *config.kernel_args))


def boot_arguments(run_dir: RunDir) -> list[str]:
    """What is added to QEMU's arguments to boot: the initramfs that mounts the root image."""
    return ["-initrd", str(run_dir.initramfs)]


def restore_arguments() -> list[str]:
    """What is added to wait for a snapshot, which QMP then names."""
    return ["-incoming", "defer"]


def qemu_command(config: MachineConfig, run_dir: RunDir) -> list[str]:
    """QEMU's argument vector, the same for a boot and a restore but for what the functions above add."""
    cpu = {"tcg": "max", "kvm": "host"}[config.accelerator.name]
    accel = {"tcg": "tcg,thread=multi", "kvm": "kvm"}[config.accelerator.name]
    argv = [
        *(str(config.qemu.binary), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-L", str(config.qemu.firmware)),
        *("-accel", accel),
        *("-cpu", ",".join((cpu, *(_ENLIGHTENMENTS if config.hyperv else ())))),
        *("-smp", str(config.cpus)),
        # The VSP maps the guest's memory, so it is a shared file.
        *("-object", f"memory-backend-memfd,id=ram,size={config.ram_mib}M,share=on"),
        *("-m", str(config.ram_mib), "-M", "q35,memory-backend=ram"),
        *("-kernel", str(config.kernel.vmlinuz)),
        *("-append", kernel_command_line(config)),
        *("-drive", f"if=none,id=root,format=raw,readonly=on,file={quote(config.root_image.path)}"),
        *("-device", "virtio-blk-pci,drive=root"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-qmp", f"unix:{quote(run_dir.qmp_socket)},server=on,wait=off"),
        *("-qmp", f"unix:{quote(run_dir.debug_socket)},server=on,wait=off"),
        # The kernel leaves its VMCOREINFO here, without which nobody can make sense of its memory.
        *("-device", "vmcoreinfo"),
        # Each port costs QEMU's main loop two descriptors to poll, whatever it wakes for.
        *("-device", "virtio-serial-pci,max_ports=2"),
        *("-chardev", f"socket,id=agent,path={quote(run_dir.agent_socket)},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"),
        *("-chardev", f"socket,id=shell,path={quote(run_dir.shell_socket)},server=on,wait=off"),
        *("-device", "virtconsole,chardev=shell"),
    ]
    if config.hyperv:
        argv += ["-device", "vmbus-bridge,id=vmbus"]
    if config.vpci_companion:
        argv += ["-device", "hv-vpci-companion,id=vpci"]
    for index, device in enumerate(config.blob_devices):
        if device.backend:
            argv += ["-chardev", f"socket,id=vsp{index},path={quote(run_dir.vsp_socket(index))},server=on,wait=off"]
        properties = (f"{name}={value}" for name, value in blob_properties(config, index).items())
        argv += ["-device", ",".join((BLOB_DRIVER, f"id={blob_name(index)}", *properties))]
    return [*argv, *config.qemu_args]


def blob_name(index: int) -> str:
    """QEMU's id of the device `index` of `config.blob_devices`."""
    return f"blob{index}"


def blob_properties(config: MachineConfig, index: int) -> dict[str, str]:
    """What that device is made with, at the start and whenever it is plugged again."""
    device = config.blob_devices[index]
    return {"instanceid": str(device.instance), **({"chardev": f"vsp{index}"} if device.backend else {})}


def quote(path: Path) -> str:
    """A path as a value in QEMU's option syntax, where a comma ends a value unless it is doubled."""
    return str(path).replace(",", ",,")
