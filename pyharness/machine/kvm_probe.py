# SPDX-License-Identifier: GPL-2.0-only
"""Proves that KVM runs a guest, by running the smallest one: three instructions in real mode.

A program of its own (`python -m pyharness.machine.kvm_probe`), because KVM_RUN may never return on a broken host.
It prints why it fails. Numbers are from include/uapi/linux/kvm.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import sys

KVM_CHECK_EXTENSION = 0xAE03
KVM_CAP_HYPERV_SYNIC2 = 148

_KVM_CREATE_VM = 0xAE01
_KVM_GET_VCPU_MMAP_SIZE = 0xAE04
_KVM_CREATE_VCPU = 0xAE41
_KVM_SET_USER_MEMORY_REGION = 0x4020AE46
_KVM_RUN = 0xAE80
_KVM_SET_REGS = 0x4090AE82
_KVM_GET_SREGS = 0x8138AE83
_KVM_SET_SREGS = 0x4138AE84
_KVM_EXIT_IO = 2

_SIZE_OF_REGS, _RIP = 144, 128
_SIZE_OF_SREGS = 312
_CS_BASE, _CS_SELECTOR = 0, 12
_EXIT_REASON, _EXIT_IO = 8, 32

_PORT, _VALUE = 0x10, 0x4B
_PROGRAM = bytes((0xB0, _VALUE, 0xE6, _PORT, 0xF4))  # mov al, VALUE; out PORT, al; hlt


def run_smallest_guest() -> str:
    """Run the guest; why it failed, or nothing. Raises OSError when KVM refuses."""
    vm = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC), _KVM_CREATE_VM, 0)
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory.write(_PROGRAM)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, _KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, mmap.PAGESIZE, address))
    vcpu = fcntl.ioctl(vm, _KVM_CREATE_VCPU, 0)
    size = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC), _KVM_GET_VCPU_MMAP_SIZE, 0)
    state = mmap.mmap(vcpu, size)

    special = bytearray(fcntl.ioctl(vcpu, _KVM_GET_SREGS, bytes(_SIZE_OF_SREGS)))
    struct.pack_into("<Q", special, _CS_BASE, 0)
    struct.pack_into("<H", special, _CS_SELECTOR, 0)
    fcntl.ioctl(vcpu, _KVM_SET_SREGS, bytes(special))
    registers = bytearray(_SIZE_OF_REGS)
    struct.pack_into("<QQ", registers, _RIP, 0, 2)  # rip, and the bit of rflags that is always set
    fcntl.ioctl(vcpu, _KVM_SET_REGS, bytes(registers))

    fcntl.ioctl(vcpu, _KVM_RUN, 0)
    (reason,) = struct.unpack_from("<I", state, _EXIT_REASON)
    if reason != _KVM_EXIT_IO:
        return f"its first instruction ended with exit reason {reason}"
    _direction, _width, port, _count, offset = struct.unpack_from("<BBHIQ", state, _EXIT_IO)
    return "" if (port, state[offset]) == (_PORT, _VALUE) else f"it wrote {state[offset]:#x} to port {port:#x}"


if __name__ == "__main__":
    try:
        sys.exit(run_smallest_guest() or 0)
    except OSError as error:
        sys.exit(f"KVM refused: {error.strerror}")
