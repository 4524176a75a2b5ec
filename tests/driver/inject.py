# SPDX-License-Identifier: GPL-2.0-only
"""The guest's half of the fault injection: the n-th allocation or user copy of one system call fails, n = 1, 2, ...

See the kernel's Documentation/fault-injection/fault-injection.rst on fail-nth.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pyharness.client.abi import AZURE_BLOB_IOCTL, AzBlobRequestSync
from pyharness.guest.kernel import SYS_FINIT_MODULE, insmod, rmmod
from tests.driver.pattern import ORDER_SIZE, Order, pattern
from tests.driver.workload import DRIVER, PAGE, VMBUS_DRIVER, Memory, attempt_on, nodes, wait_for_nodes

MOST_ROUNDS = 2000

# Each n so often in a row. Which allocation is the n-th shifts when a cache has to be refilled on the way, because the
# allocator's and kmemleak's own objects count too: about one call in five, and hardly ever two in a row.
_TRIES = 4

# With Python's lock held for as long as a call takes, unlike ctypes.CDLL.
libc = ctypes.PyDLL(None, use_errno=True)

_DEBUGFS = Path("/sys/kernel/debug")
_DEVICES = Path("/sys/bus/vmbus/devices")
_RESPONSE_LEN = 64
# The last of some 340 allocations of a loading: those of the driver's registration and the few that follow it.
_LAST_OF_LOAD = 60

# What the kernel leaves out unless told otherwise, and its report of each failure, which nobody reads.
_KNOBS = {
    "failslab": {"verbose": "0", "ignore-gfp-wait": "N"},
    "fail_page_alloc": {"verbose": "0", "ignore-gfp-wait": "N", "ignore-gfp-highmem": "N"},
    "fail_usercopy": {"verbose": "0"},
}


# The smallest order of a page allocation that counts.
_MIN_ORDER = _DEBUGFS / "fail_page_alloc" / "min-order"
_ALL_PAGES, _NO_PAGES = "0", "32"


def prepare() -> None:
    """Let every allocation be one that may fail."""
    for attribute, knobs in _KNOBS.items():
        for knob, value in knobs.items():
            (_DEBUGFS / attribute / knob).write_text(value)


class _Nth:
    """Arms the calling thread. Between `arm` and `left` nothing is done that Python might need the kernel for.

    Its lock is not even let go of: to wait for it is a system call, in which a failure would end the process.
    """

    def __init__(self) -> None:
        sys.setswitchinterval(3600)
        self._file = os.open("/proc/thread-self/fail-nth", os.O_RDWR)
        self._text = ctypes.create_string_buffer(16)

    def arm(self, n: int) -> None:
        text = b"%d" % n
        assert libc.pwrite(self._file, text, len(text), 0) == len(text)

    def left(self) -> int:
        """How many more it would have taken until the failure, 0 after it; none is injected any more after this."""
        count = libc.pread(self._file, self._text, 15, 0)
        # Reading copies to user space: that may be the n-th itself, and then it was not one before.
        left = int(self._text.raw[:count].rstrip(b"\0\n")) if count > 0 else 1
        while libc.pwrite(self._file, b"0", 1, 0) != 1:
            pass
        return left


def _fail_each(call: Callable[[], int], settle: Callable[[int], None]) -> list[int]:
    """The errno of `call` for each n for which something failed; `settle` follows, with that errno.

    Objects and user copies first, of which `call` makes the same ones each time. Pages count in a second pass: which of
    the objects needs a new page differs, and so does what is the n-th.

    Raises AssertionError when `call` fails with nothing injected: a failure before has broken something.
    """
    errnos: list[int] = []
    for order in (_NO_PAGES, _ALL_PAGES):
        _MIN_ORDER.write_text(order)
        errnos += _fail_each_counted(call, settle)
    return errnos


def _fail_each_counted(
    call: Callable[[], int], settle: Callable[[int], None], first: int = 1, tries: int = _TRIES
) -> list[int]:
    nth = _Nth()
    errnos: list[int] = []
    for n in range(first, MOST_ROUNDS):
        failed = False
        for _ in range(tries):
            nth.arm(n)
            error = call()
            left = nth.left()
            settle(error)
            if left:
                assert error == 0, f"with nothing injected: {os.strerror(error)}"
            else:
                failed = True
                errnos.append(error)
        if not failed:
            return errnos
    raise AssertionError(f"something fails still in round {MOST_ROUNDS}")


def _error(result: int) -> int:
    return ctypes.get_errno() if result < 0 else 0


def fail_open(node: str) -> list[int]:
    path = node.encode()
    files: list[int] = []

    def call() -> int:
        files[:] = [libc.open(path, os.O_RDWR)]
        return _error(files[0])

    def settle(error: int) -> None:
        if error == 0:
            os.close(files[0])
        assert attempt_on(node) == 0

    return _fail_each(call, settle)


def fail_ioctl(node: str, data_pages: int, out_pages: int, in_pages: int, *, touched: bool) -> list[int]:
    """One request; `touched` data pages are there already, others are allocated when they are pinned and hold zeros."""
    file = os.open(node, os.O_RDWR)
    data_len, out_len, in_len = data_pages * PAGE, out_pages * PAGE, in_pages * PAGE
    data, request, response = Memory(data_len, guard=False), Memory(ORDER_SIZE), Memory(_RESPONSE_LEN)
    request.set(Order(1, out_len, 3, in_len, 4, _RESPONSE_LEN).pack())
    sync = AzBlobRequestSync(
        request_len=ORDER_SIZE,
        response_len=_RESPONSE_LEN,
        data_len=data_len,
        data_valid=out_len,
        request_buffer=request.address,
        response_buffer=response.address,
        data_buffer=data.address,
    )
    pointer = ctypes.byref(sync)

    def arrange() -> None:
        response.set(bytes(_RESPONSE_LEN))
        if touched:
            data.set(bytes(in_len))
            data.set(pattern(1, out_len))
        else:
            data.map.madvise(mmap.MADV_DONTNEED, data.start, data.length)

    def call() -> int:
        return _error(libc.ioctl(file, AZURE_BLOB_IOCTL, pointer))

    def check() -> None:
        assert sync.response.status == 0, hex(sync.response.status)
        assert response.get(_RESPONSE_LEN) == pattern(4, _RESPONSE_LEN)
        assert data.get(in_len) == pattern(3, in_len)

    def settle(error: int) -> None:
        if error == 0:
            check()
        arrange()
        assert call() == 0, "the next call works"
        check()
        arrange()

    if touched:
        data.set(bytes(data_len))
    arrange()
    errnos = _fail_each(call, settle)
    os.close(file)
    return errnos


def _bound(device: str) -> bool:
    return (VMBUS_DRIVER / device).exists()


def _write_to(file: Path, text: str) -> Callable[[], int]:
    descriptor = os.open(file, os.O_WRONLY)
    data = text.encode()
    return lambda: _error(libc.pwrite(descriptor, data, len(data), 0))


def fail_bind(device: str) -> list[int]:
    """.probe, between two working lives of the device."""
    unbind, bind = (_write_to(VMBUS_DRIVER / name, device) for name in ("unbind", "bind"))
    assert unbind() == 0

    def settle(error: int) -> None:
        assert _bound(device) == (error == 0)
        if error == 0:
            assert unbind() == 0

    errnos = _fail_each(bind, settle)
    assert bind() == 0
    assert attempt_on(nodes()[device]) == 0
    return errnos


def fail_unbind(device: str) -> list[int]:
    """.remove, which cannot fail: an errno says that it was not called."""
    unbind, bind = (_write_to(VMBUS_DRIVER / name, device) for name in ("unbind", "bind"))

    def settle(error: int) -> None:
        assert _bound(device) == (error != 0)
        if error == 0:
            assert bind() == 0
        assert attempt_on(nodes()[device]) == 0

    return _fail_each(unbind, settle)


def fail_load(module: str, devices: int) -> list[int]:
    """The driver's registration, at the end of the module's loading; the devices are kept away until the end.

    What is allocated before that is the kernel's module loader's.
    """
    rmmod(DRIVER)
    overrides = [path / "driver_override" for path in _DEVICES.iterdir()]
    for override in overrides:
        override.write_text("none")

    file = os.open(module, os.O_RDONLY)

    def call() -> int:
        return _error(libc.syscall(SYS_FINIT_MODULE, file, b"", 0))

    def settle(error: int) -> None:
        assert Path(f"/sys/module/{DRIVER}").exists() == (error == 0)
        # A driver works without its debugfs directory, but leaves none behind.
        assert error == 0 or not (_DEBUGFS / DRIVER).exists()
        if error == 0:
            rmmod(DRIVER)

    _MIN_ORDER.write_text(_NO_PAGES)
    nth = _Nth()
    nth.arm(MOST_ROUNDS)
    assert call() == 0
    count = MOST_ROUNDS - nth.left()
    settle(0)
    # Each step of the registration makes several allocations, so one that is left out does not matter.
    errnos = _fail_each_counted(call, settle, first=max(1, count - _LAST_OF_LOAD), tries=1)
    os.close(file)
    for override in overrides:
        override.write_text("\n")
    insmod(module)
    wait_for_nodes(devices)
    return errnos
