# SPDX-License-Identifier: GPL-2.0-only
"""Memory that comes late (userfaultfd(2)) or goes early: runs in the guest.

A call that sleeps in a page fault is at a known place in the driver for as long as a test wants.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import struct
import threading

from pyharness.client.abi import AZURE_BLOB_IOCTL, AzBlobRequestSync
from tests.driver.pattern import ORDER_SIZE, Order
from tests.driver.workload import PAGE, Child, Memory, attempt_on, ioctl, libc, protect

_SYS_USERFAULTFD = 323
# linux/userfaultfd.h
_API = 0xC018AA3F
_REGISTER = 0xC020AA00
_ZEROPAGE = 0xC020AA04
_VERSION = 0xAA
_MISSING = 1
_EVENT_SIZE = 32


class LateMemory:
    """Pages without content: whoever touches them sleeps until they are served."""

    def __init__(self, pages: int = 2) -> None:
        self.length = pages * PAGE
        self._map = mmap.mmap(-1, self.length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._fd = libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        fcntl.ioctl(self._fd, _API, struct.pack("<QQQ", _VERSION, 0, 0))
        fcntl.ioctl(self._fd, _REGISTER, struct.pack("<QQQQ", self.address, self.length, _MISSING, 0))

    def wait_for_toucher(self, timeout_s: float = 60.0) -> None:
        """Wait until somebody sleeps here."""
        if not select.select([self._fd], [], [], timeout_s)[0]:
            raise TimeoutError("nobody touched the memory")
        os.read(self._fd, _EVENT_SIZE)

    def serve(self) -> None:
        """Fill the pages with zeroes and wake up whoever sleeps."""
        fcntl.ioctl(self._fd, _ZEROPAGE, struct.pack("<QQQq", self.address, self.length, 0, 0))

    def close(self) -> None:
        """Let go whoever sleeps."""
        os.close(self._fd)


def request_with(node: str, which: str, memory: LateMemory) -> int:
    """A request with one of its buffers (`which`: request, response, data) in late memory; returns the errno."""
    fields = {f"{which}_buffer": memory.address, f"{which}_len": memory.length}
    return attempt_on(node, data_pages=0, **fields)


class Sleeper:
    """A process whose request sleeps in the driver, because it has touched late memory."""

    def __init__(self, node: str, which: str) -> None:
        ready, tell = os.pipe()
        self._child = Child(_sleep_in_request, node, which, tell)
        os.close(tell)
        asleep = os.read(ready, 1)
        os.close(ready)
        if not asleep:
            raise RuntimeError(self._child.failure() or "its request came back")

    def kill(self) -> int:
        """Kill it; returns its wait status once it has ended."""
        self._child.kill()
        return self._child.wait()


def _sleep_in_request(node: str, which: str, tell: int) -> int:
    memory = LateMemory()

    def watch() -> None:
        memory.wait_for_toucher()
        os.write(tell, b"!")

    threading.Thread(target=watch, daemon=True).start()
    return request_with(node, which, memory)


class EarlyGone:
    """A request whose struct can be taken away while the host holds it."""

    def __init__(self) -> None:
        self._place = Memory(PAGE, guard=False)
        self._request, self._response = Memory(ORDER_SIZE), Memory(64)
        self._request.set(Order(1, 0, 3, 0, 4, 64).pack())
        sync = AzBlobRequestSync(
            request_len=ORDER_SIZE,
            response_len=64,
            request_buffer=self._request.address,
            response_buffer=self._response.address,
        )
        ctypes.memmove(self._place.address, ctypes.byref(sync), ctypes.sizeof(sync))

    def send(self, node: str) -> int:
        """Send it; returns the errno."""
        fd = os.open(node, os.O_RDWR)
        try:
            return ioctl(fd, AZURE_BLOB_IOCTL, ctypes.c_void_p(self._place.address))
        finally:
            os.close(fd)

    def go(self) -> None:
        protect(self._place.address, PAGE, 0)

    def come_back(self) -> None:
        protect(self._place.address, PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
