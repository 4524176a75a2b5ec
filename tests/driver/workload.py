# SPDX-License-Identifier: GPL-2.0-only
"""The guest's half of the driver tests: runs in the guest, needs the standard library and the client there.

Arguments and results are plain values, because objects cross to the host as slow proxies.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyharness.client.abi import AZURE_BLOB_IOCTL, MAX_PAGES, AzBlobRequestSync
from pyharness.client.blob import BlobClient, BlobServiceError
from pyharness.client.device import BlobDevice
from pyharness.client.errors import HostError
from pyharness.client.isolated import IsolatedDevice
from tests.driver.pattern import ORDER_SIZE, Order, pattern

PAGE = mmap.PAGESIZE
GUARD = 0xA5
NOBODY = 65534
DRIVER = "hv_azure_blob"
VMBUS_DRIVER = Path("/sys/bus/vmbus/drivers") / DRIVER
DEBUGFS = Path("/sys/kernel/debug") / DRIVER

MAP_32BIT = 0x40  # asm/mman.h; Python has it from 3.13 on

# int ioctl(fd, command, argument), in the calling convention of 64-bit code, through the gate of 32-bit programs:
# push rbx; mov ebx, edi; mov ecx, esi; mov eax, 54 (ioctl; the argument is in edx already); int 0x80; pop rbx; ret
_INT80_IOCTL = bytes.fromhex("53 89fb 89f1 b836000000 cd80 5b c3")

libc = ctypes.CDLL(None, use_errno=True)


# -- the ioctl and memory for it


def ioctl(fd: int, command: int, argument: Any) -> int:
    """The bare system call with any pointer; returns an errno, 0 for success."""
    if libc.ioctl(ctypes.c_int(fd), ctypes.c_ulong(command), argument) == 0:
        return 0
    return ctypes.get_errno()


class Memory:
    """A mapping in which a buffer starts at a chosen offset; a page before it and a page after it are watched."""

    def __init__(self, length: int, offset: int = 0, *, guard: bool = True, flags: int = 0) -> None:
        self._guard = guard
        self.map = mmap.mmap(-1, offset + length + 3 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.move(length, offset)

    def move(self, length: int, offset: int) -> None:
        """Let another buffer take its place, in the same mapping."""
        self.start = PAGE + offset
        self.length = length
        self.address = self._base + self.start
        end = self.start + length
        self._around = (slice(self.start - PAGE, self.start), slice(end, end + PAGE)) if self._guard else ()
        for part in self._around:
            self.map[part] = bytes([GUARD]) * PAGE

    def set(self, data: bytes) -> None:
        self.map[self.start : self.start + len(data)] = data

    def get(self, length: int, at: int = 0) -> bytes:
        return self.map[self.start + at : self.start + at + length]

    def check_guards(self) -> None:
        for part in self._around:
            if self.map[part] != bytes([GUARD]) * PAGE:
                raise AssertionError(f"bytes beside a buffer of {self.length} at {self.start % PAGE} changed")


def ioctl_of_32_bit(fd: int, command: int, argument: Any) -> int:
    """As `ioctl`, but as a 32-bit program calls, with the struct in memory that such a program can address.

    A process of either kind may take this gate; the kernel then looks the call up among those of 32-bit programs.
    """
    code = mmap.mmap(
        -1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_32BIT, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    )
    code.write(_INT80_IOCTL)
    entry = ctypes.addressof(ctypes.c_char.from_buffer(code))
    call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_uint, ctypes.c_uint)(entry)
    place = Memory(ctypes.sizeof(AzBlobRequestSync), flags=MAP_32BIT)
    ctypes.memmove(place.address, argument, place.length)
    result = int(call(fd, command, place.address))
    ctypes.memmove(argument, place.address, place.length)
    place.check_guards()
    return -result


def exchange(
    fd: int,
    seed: int,
    out_len: int,
    in_len: int,
    *,
    data_len: int | None = None,
    request_len: int = ORDER_SIZE,
    response_len: int = 64,
    offsets: tuple[int, int, int] = (0, 0, 0),
    places: tuple[Memory, Memory, Memory] | None = None,
    call: Callable[[int, int, Any], int] = ioctl,
) -> None:
    """One request with data in both directions; every byte is checked, and that no byte beside was touched.

    `places` are mappings to use for data, request and response; new ones are made otherwise.
    """
    order = Order(seed, out_len, seed + 2, in_len, seed + 3, response_len)
    data_len = max(out_len, in_len) if data_len is None else data_len
    lengths = (data_len, request_len, response_len)
    data, request, response = places or [Memory(length, PAGE) for length in lengths]
    for memory, length, offset in zip((data, request, response), lengths, offsets, strict=True):
        memory.move(length, offset)
    before = pattern(seed, data_len)
    data.set(before)
    request.set(order.pack(request_len))
    sync = AzBlobRequestSync(
        request_len=request_len,
        response_len=response_len,
        data_len=data_len,
        data_valid=out_len,
        request_buffer=request.address,
        response_buffer=response.address,
        data_buffer=data.address,
    )
    ctypes.memmove(sync.guid, struct.pack("<QQ", seed, threading.get_ident()), 16)
    error = call(fd, AZURE_BLOB_IOCTL, ctypes.byref(sync))
    what = f"seed {seed}, out {out_len}, in {in_len}, offsets {offsets}"
    assert error == 0, f"{what}: {os.strerror(error)}"
    assert sync.response.status == 0, f"{what}: host status {sync.response.status:#x}"
    assert sync.response.response_len == response_len, f"{what}: response of {sync.response.response_len}"
    assert response.get(response_len) == pattern(seed + 3, response_len), f"{what}: response differs"
    assert request.get(request_len) == order.pack(request_len), f"{what}: request was written to"
    assert data.get(in_len) == pattern(seed + 2, in_len), f"{what}: data differs"
    assert data.get(data_len - in_len, in_len) == before[in_len:], f"{what}: data past the answer differs"
    for memory in (data, request, response):
        memory.check_guards()


def exchange_on(node: str, *args: Any, **kwargs: Any) -> None:
    fd = os.open(node, os.O_RDWR)
    try:
        exchange(fd, *args, **kwargs)
    finally:
        os.close(fd)


def exchange_of_32_bit(node: str, seed: int, length: int) -> None:
    """As `exchange_on`, called as a 32-bit program calls and with all memory where such a program has it."""
    data, request, response = (Memory(size, PAGE, flags=MAP_32BIT) for size in (length, ORDER_SIZE, 64))
    exchange_on(node, seed, length, length, places=(data, request, response), call=ioctl_of_32_bit)


def largest_exchange(node: str, extra_pages: int) -> int:
    """Data that fills the page limit up, plus `extra_pages`; returns the errno. One page for request and response."""
    data_len = (MAX_PAGES - 2 + extra_pages) * PAGE
    fd = os.open(node, os.O_RDWR)
    try:
        exchange(fd, 77, data_len, data_len)
    except AssertionError as failure:
        if str(failure).endswith(os.strerror(errno.EINVAL)):
            return errno.EINVAL
        raise
    finally:
        os.close(fd)
    return 0


# -- many clients

SIZES = (0, 1, 7, 511, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 5, 16 * PAGE, 20_011, 65_536, 100_003)


def client(fd: int, seed: int, rounds: int) -> None:
    """Requests of mixed sizes and alignments, each checked byte by byte."""
    rng = random.Random(seed)
    # Made once: under TCG the unmapping of memory that many threads share costs more than the request.
    places = (Memory(max(SIZES), PAGE), Memory(5000, PAGE), Memory(5000, PAGE))
    for turn in range(rounds):
        exchange(
            fd,
            seed * 1000 + turn * 10,
            rng.choice(SIZES),
            rng.choice(SIZES),
            request_len=rng.choice((ORDER_SIZE, 100, PAGE, 5000)),
            response_len=rng.choice((1, 64, PAGE, 4097)),
            offsets=(rng.randrange(PAGE), rng.randrange(PAGE), rng.randrange(PAGE)),
            places=places,
        )


def _in_threads(count: int, run: Callable[[int], None]) -> None:
    failures: list[str] = []
    # Each thread that waits for the interpreter wakes up this often: a hundred of them would do little else under TCG.
    sys.setswitchinterval(0.5)

    def guarded(seed: int) -> None:
        try:
            run(seed)
        except BaseException:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise AssertionError("\n".join(failures))


def clients_in_threads(node: str, count: int, rounds: int) -> None:
    """All share one open file and start at once. Raises AssertionError with what went wrong in each."""
    fd = os.open(node, os.O_RDWR)
    start = threading.Barrier(count)

    def run(seed: int) -> None:
        start.wait()
        client(fd, seed + 1, rounds)

    _in_threads(count, run)
    os.close(fd)


def clients_in_processes(node: str, count: int, rounds: int) -> str:
    """Each client is a process with a file of its own; returns what went wrong."""

    def run(seed: int) -> None:
        fd = os.open(node, os.O_RDWR)
        client(fd, seed, rounds)
        os.close(fd)

    children = [Child(run, seed) for seed in range(1, count + 1)]
    return "\n".join(filter(None, (child.failure() for child in children)))


class Child:
    """A forked process that calls a function; what it returns or raises comes back over a pipe."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._pipe, write_end = os.pipe()
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                outcome: dict[str, Any] = {"value": function(*args)}
            except BaseException:
                outcome = {"failure": traceback.format_exc()}
            os.write(write_end, json.dumps(outcome).encode()[:60_000])
            os._exit(0)
        os.close(write_end)

    def wait(self) -> int:
        """The wait status, once it has ended."""
        if self.status is None:
            _, self.status = os.waitpid(self.pid, 0)
        return self.status

    def alive(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def _outcome(self) -> dict[str, Any]:
        data = b""
        while piece := os.read(self._pipe, 65536):
            data += piece
        os.close(self._pipe)
        status = self.wait()
        if not data:
            return {"failure": f"process {self.pid} ended with wait status {status:#x}"}
        outcome: dict[str, Any] = json.loads(data)
        return outcome

    def failure(self) -> str:
        failure: str = self._outcome().get("failure", "")
        return failure

    def value(self) -> Any:
        outcome = self._outcome()
        if "failure" in outcome:
            raise RuntimeError(outcome["failure"])
        value = outcome["value"]
        return tuple(value) if isinstance(value, list) else value


def start(name: str, *args: Any) -> Child:
    """Run a function of this module in a process of its own."""
    return Child(globals()[name], *args)


# -- one request with chosen faults


def attempt(
    fd: int,
    *,
    command: int = AZURE_BLOB_IOCTL,
    data_pages: int = 1,
    call: Callable[[int, int, Any], int] = ioctl,
    **fields: int,
) -> int:
    """A request that is right but for `fields`; returns the errno."""
    data, request, response = Memory(data_pages * PAGE), Memory(ORDER_SIZE), Memory(64)
    moved = min(data_pages, 1) * 100
    request.set(Order(1, moved, 3, moved, 4, 64).pack())
    data.set(pattern(1, moved))
    sync = AzBlobRequestSync(
        request_len=ORDER_SIZE,
        response_len=64,
        data_len=data_pages * PAGE,
        data_valid=moved,
        request_buffer=request.address,
        response_buffer=response.address,
        data_buffer=data.address,
    )
    sync.response.status = 0x11111111
    sync.response.response_len = 0x22222222
    for name, value in fields.items():
        setattr(sync, name, value)
    error = call(fd, command, ctypes.byref(sync))
    touched = (sync.response.status, sync.response.response_len) != (0x11111111, 0x22222222)
    if error in (errno.ENOTTY, errno.EACCES, errno.EINVAL) and touched:
        raise AssertionError(f"{os.strerror(error)}, and the answer's fields were written to")
    if error == 0 and sync.response.status == 0:
        assert data.get(moved) == pattern(3, moved)
    return error


def attempt_of_32_bit(node: str, command: int) -> int:
    return attempt_on(node, command=command, call=ioctl_of_32_bit)


def attempt_on(node: str, **fields: Any) -> int:
    fd = os.open(node, os.O_RDWR)
    try:
        return attempt(fd, **fields)
    finally:
        os.close(fd)


def answer_of(node: str, response_len: int = 64) -> tuple[int, int, int, bytes]:
    """errno, host status, response_len and the response buffer of one right request."""
    fd = os.open(node, os.O_RDWR)
    request, response = Memory(ORDER_SIZE), Memory(response_len)
    request.set(Order(1, 0, 3, 0, 4, 0).pack())
    response.set(bytes(response_len))
    sync = AzBlobRequestSync(
        request_len=ORDER_SIZE,
        response_len=response_len,
        request_buffer=request.address,
        response_buffer=response.address,
    )
    error = ioctl(fd, AZURE_BLOB_IOCTL, ctypes.byref(sync))
    os.close(fd)
    response.check_guards()
    return error, sync.response.status, sync.response.response_len, response.get(response_len)


def attempt_with_struct_at(node: str, kind: str) -> int:
    """A right request, but the struct itself lies in memory of `kind`."""
    fd = os.open(node, os.O_RDWR)
    request, response = Memory(ORDER_SIZE), Memory(64)
    request.set(Order(1, 0, 3, 0, 4, 64).pack())
    sync = AzBlobRequestSync(
        request_len=ORDER_SIZE, response_len=64, request_buffer=request.address, response_buffer=response.address
    )
    place = Memory(2 * PAGE)
    address = {"null": 0, "kernel": 0xFFFF888000000000, "end": 2**64 - 8}.get(kind, place.address)
    if kind == "across":
        address = place.address + PAGE - 40
    if address >= place.address and kind not in ("kernel", "end"):
        ctypes.memmove(address, ctypes.byref(sync), ctypes.sizeof(sync))
    if kind == "read-only":
        protect(place.address, PAGE, mmap.PROT_READ)
    elif kind == "across":
        protect(place.address + PAGE, PAGE, 0)
    elif kind == "no access":
        protect(place.address, PAGE, 0)
    error = ioctl(fd, AZURE_BLOB_IOCTL, ctypes.c_void_p(address))
    protect(place.address, 2 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(fd)
    return error


def protect(address: int, length: int, protection: int) -> None:
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(length), protection):
        raise OSError(ctypes.get_errno(), "mprotect")


def attempt_with_buffer_at(node: str, which: str, kind: str) -> int:
    """A right request, but one buffer of two pages (`which`: request, response, data) lies in memory of `kind`."""
    fd = os.open(node, os.O_RDWR)
    place = Memory(2 * PAGE, guard=False)
    place.set(Order(1, 0, 3, 0, 4, 0).pack(2 * PAGE))
    address = {
        "null": 0,
        "kernel": 0xFFFF888000000000,
        "end": 2**64 - 2 * PAGE,
        "wraps": 2**64 - PAGE,
        "last user page": 0x7FFFFFFFF000 - PAGE,
    }.get(kind, place.address)
    if kind == "no access":
        protect(place.address, 2 * PAGE, 0)
    elif kind == "read-only":
        protect(place.address, 2 * PAGE, mmap.PROT_READ)
    elif kind == "second page missing":
        libc.munmap(ctypes.c_void_p(place.address + PAGE), ctypes.c_size_t(PAGE))
    elif kind == "second page read-only":
        protect(place.address + PAGE, PAGE, mmap.PROT_READ)
    request, response = Memory(ORDER_SIZE), Memory(64)
    request.set(Order(1, 0, 3, 0, 4, 0).pack())
    sync = AzBlobRequestSync(
        request_len=ORDER_SIZE, response_len=64, request_buffer=request.address, response_buffer=response.address
    )
    setattr(sync, f"{which}_len", 2 * PAGE)
    setattr(sync, f"{which}_buffer", address)
    error = ioctl(fd, AZURE_BLOB_IOCTL, ctypes.byref(sync))
    os.close(fd)
    if kind == "second page missing":
        # The hole is filled again, for the mapping is unmapped as a whole later.
        libc.mmap.restype = ctypes.c_void_p
        fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
        libc.mmap(ctypes.c_void_p(place.address + PAGE), ctypes.c_size_t(PAGE), mmap.PROT_READ, fixed, -1, 0)
    return error


# -- files as buffers


def receive_into_file(node: str, path: str, protection: int, flags: int, open_flags: int) -> tuple[int, bool, bool]:
    """Have the host write into a mapping of two pages of the file.

    Returns the errno, whether the mapping then shows the host's data, and whether the file's content has changed.
    """
    before = Path(path).read_bytes()
    fd = os.open(node, os.O_RDWR)
    file = os.open(path, open_flags)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(2 * PAGE), protection, flags, file, ctypes.c_long(0))
    request, response = Memory(ORDER_SIZE), Memory(64)
    request.set(Order(1, 0, 3, 2 * PAGE, 4, 64).pack())
    sync = AzBlobRequestSync(
        request_len=ORDER_SIZE,
        response_len=64,
        data_len=2 * PAGE,
        request_buffer=request.address,
        response_buffer=response.address,
        data_buffer=address,
    )
    error = ioctl(fd, AZURE_BLOB_IOCTL, ctypes.byref(sync))
    shown = ctypes.string_at(address, 2 * PAGE) == pattern(3, 2 * PAGE)
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(2 * PAGE))
    os.close(file)
    os.close(fd)
    # Around the page cache too: what is dropped is read from the file's own storage again.
    Path("/proc/sys/vm/drop_caches").write_text("1")
    return error, shown, Path(path).read_bytes() != before


def request_from_read_only_file(node: str, path: str) -> int:
    """The request buffer is a read-only shared mapping of a file; returns the errno."""
    Path(path).write_bytes(Order(1, 0, 3, 0, 4, 64).pack(PAGE))
    fd = os.open(node, os.O_RDWR)
    file = os.open(path, os.O_RDONLY)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(PAGE), mmap.PROT_READ, mmap.MAP_SHARED, file, ctypes.c_long(0))
    response = Memory(64)
    sync = AzBlobRequestSync(
        request_len=PAGE, response_len=64, request_buffer=address, response_buffer=response.address
    )
    error = ioctl(fd, AZURE_BLOB_IOCTL, ctypes.byref(sync))
    assert error or response.get(64) == pattern(4, 64)
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(PAGE))
    os.close(file)
    os.close(fd)
    return error


# -- credentials, limits


def after_change(node: str, change: str) -> tuple[int, int]:
    """In a child that has changed its credentials: the errno on the inherited file, and on one opened afterwards."""
    fd = os.open(node, os.O_RDWR)

    def run() -> tuple[int, int]:
        {
            "nothing": lambda: None,
            "user": lambda: os.setresuid(NOBODY, NOBODY, NOBODY),
            "saved user": lambda: os.setresuid(0, 0, NOBODY),
            "group": lambda: os.setresgid(NOBODY, NOBODY, NOBODY),
            "groups": lambda: os.setgroups([1, 2, 3]),
            "capability": lambda: prctl(24, 21),  # PR_CAPBSET_DROP, CAP_SYS_ADMIN
            "user namespace": lambda: unshare(0x10000000),  # CLONE_NEWUSER
        }[change]()
        return attempt(fd), attempt_on(node)

    inherited, own = _open_to_all(node, lambda: Child(run).value())
    os.close(fd)
    return inherited, own


def prctl(option: int, value: int) -> None:
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def unshare(flags: int) -> None:
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")


def locked_memory(node: str, limit_pages: int, data_pages: int, repeat: int) -> list[int]:
    """As a user without CAP_IPC_LOCK: the errnos of `repeat` requests of `data_pages` + 2 pages."""

    def run() -> list[int]:
        fd = _open_with_limit(node, limit_pages)
        return [attempt(fd, data_pages=data_pages) for _ in range(repeat)]

    return list(_open_to_all(node, lambda: Child(run).value()))


def _open_with_limit(node: str, limit_pages: int) -> int:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit_pages * PAGE, limit_pages * PAGE))
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return os.open(node, os.O_RDWR)


def _open_to_all(node: str, call: Callable[[], Any]) -> Any:
    mode = Path(node).stat().st_mode & 0o777
    Path(node).chmod(0o666)
    try:
        return call()
    finally:
        Path(node).chmod(mode)


def limited_waiter(node: str, limit_pages: int) -> Child:
    """As `locked_memory`, but a child that waits for the host is returned."""
    read_end, write_end = os.pipe()

    def run() -> None:
        fd = _open_with_limit(node, limit_pages)
        os.write(write_end, b"x")
        attempt(fd)

    def start_and_wait_for_open() -> Child:
        child = Child(run)
        os.read(read_end, 1)
        return child

    child: Child = _open_to_all(node, start_and_wait_for_open)
    os.close(read_end)
    os.close(write_end)
    return child


# -- processes that wait for the host


def waiter(node: str, seed: int, data_len: int = 100_000) -> None:
    """One exchange in a process of its own: run with `start`."""
    exchange_on(node, seed, data_len, data_len)


def waiter_with_signals(node: str) -> int:
    """As `waiter`; returns how many signals its handler saw."""
    seen = []
    signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    waiter(node, 5)
    return len(seen)


def waiter_errno(node: str) -> int:
    return attempt_on(node)


def shared_file(node: str, rounds: int) -> str:
    """A child inherits an open file over fork; both use it at once."""
    fd = os.open(node, os.O_RDWR)
    child = Child(client, fd, 501, rounds)
    client(fd, 502, rounds)
    failure = child.failure()
    os.close(fd)
    return failure


# -- the kernel's view


def nodes() -> dict[str, str]:
    """Node by the device's instance GUID."""
    found = {}
    for entry in Path("/sys/class/misc").glob("azure_blob*"):
        found[(entry / "device").resolve().name] = f"/dev/{entry.name}"
    return found


def modalias(device: str) -> str:
    """What the device's uevent says, by which a driver for it is sought."""
    return Path(f"/sys/bus/vmbus/devices/{device}/modalias").read_text().strip()


def pending(device: str) -> tuple[tuple[str, ...], ...]:
    """The rows of pending_requests, without its first line, which names the columns."""
    lines = (DEBUGFS / device / "pending_requests").read_text().splitlines()
    assert lines[0].startswith("#")
    return tuple(tuple(line.split()) for line in lines[1:])


def wait_for_pending(device: str, count: int, timeout_s: float = 100.0) -> None:
    """Wait until so many requests are queued or sent."""
    deadline = time.monotonic() + timeout_s
    while len(pending(device)) != count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(pending(device))} requests instead of {count}")
        time.sleep(0.05)


def pinned_pages() -> int:
    """Pages that are pinned now, by anyone."""
    # The counters are kept per CPU, and what is shown lags behind until this.
    Path("/proc/sys/vm/stat_refresh").write_text("1")
    counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counters["nr_foll_pin_acquired"]) - int(counters["nr_foll_pin_released"])


def unbind(device: str) -> None:
    (VMBUS_DRIVER / "unbind").write_text(device)


def unbind_if_there(device: str) -> None:
    """As `unbind`, of a device that may go, or lose its driver, at the same moment."""
    try:
        unbind(device)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def bind(device: str) -> None:
    (VMBUS_DRIVER / "bind").write_text(device)


def hibernate() -> None:
    """Hibernate up to the point where the image would be made, and come back: every device and VMBus are stopped.

    To be called while nothing else is said to the guest, because a port loses what arrives while it is stopped.
    """
    power = Path("/sys/power")
    (power / "pm_test").write_text("core")
    try:
        (power / "state").write_text("disk")
    finally:
        (power / "pm_test").write_text("none")


def hold_open(node: str) -> int:
    return os.open(node, os.O_RDWR)


def wait_for_nodes(count: int, timeout_s: float = 30.0) -> None:
    """Wait until `count` nodes exist: probing is asynchronous to insmod."""
    deadline = time.monotonic() + timeout_s
    while len(nodes()) != count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(nodes())} nodes instead of {count}")
        time.sleep(0.01)


# -- tracing


class IoctlTrace:
    """Records what the ioctls of one process return, as the kernel's own trace point says it."""

    ROOT = Path("/sys/kernel/tracing")

    def __init__(self) -> None:
        if not (self.ROOT / "events").exists() and libc.mount(b"t", str(self.ROOT).encode(), b"tracefs", 0, None):
            raise OSError(ctypes.get_errno(), "mount tracefs")
        self._event = self.ROOT / "events" / "raw_syscalls" / "sys_exit"
        (self._event / "filter").write_text("id == 16")
        (self.ROOT / "trace").write_text("")
        (self._event / "enable").write_text("1")

    def results(self, pid: int) -> list[int]:
        """Return values of the process's ioctls so far."""
        lines = [
            line for line in (self.ROOT / "trace").read_text().splitlines() if f"-{pid} " in line.split("[")[0] + " "
        ]
        return [int(line.rsplit("=", 1)[1]) for line in lines if "sys_exit: NR 16" in line]

    def stop(self) -> None:
        (self._event / "enable").write_text("0")
        (self._event / "filter").write_text("0")


# -- more of what the tests ask for


def null_exchange(node: str) -> str:
    """Both buffers of a request to the device without a backend stay as they were."""
    fd = os.open(node, os.O_RDWR)
    data, request, response = Memory(10_000, 5), Memory(100, 6), Memory(200, 7)
    data.set(pattern(1, 10_000))
    response.set(pattern(2, 200))
    sync = AzBlobRequestSync(
        request_len=100,
        response_len=200,
        data_len=10_000,
        data_valid=5000,
        request_buffer=request.address,
        response_buffer=response.address,
        data_buffer=data.address,
    )
    error = ioctl(fd, AZURE_BLOB_IOCTL, ctypes.byref(sync))
    os.close(fd)
    if error or sync.response.status or sync.response.response_len:
        return f"errno {error}, status {sync.response.status:#x}, response of {sync.response.response_len}"
    unchanged = data.get(10_000) == pattern(1, 10_000) and response.get(200) == pattern(2, 200)
    return "" if unchanged else "a buffer was written to"


def waiter_status(node: str) -> tuple[int, int, int]:
    return answer_of(node)[:3]


DISCONNECTED = 0xC000020C


def tolerant_clients(node: str, count: int, rounds: int) -> tuple[int, int]:
    """How many requests were served, and how many answered because no backend was there."""
    results: list[int] = []

    def run(seed: int) -> None:
        for _ in range(rounds):
            error, status, _, _ = answer_of(node)
            assert error == 0, os.strerror(error)
            assert status in (0, DISCONNECTED), hex(status)
            results.append(status)

    _in_threads(count, run)
    return results.count(0), results.count(DISCONNECTED)


def attempt_on_device(device: str) -> int:
    """A request to a device that may be gone, whether its node, its opening or the request tells: 0 or ENODEV."""
    try:
        error = attempt_on(nodes()[device])
    except (KeyError, FileNotFoundError):
        return errno.ENODEV
    except OSError as found:
        assert found.errno in (errno.ENODEV, errno.ENXIO), found
        return errno.ENODEV
    assert error in (0, errno.ENODEV), os.strerror(error)
    return error


def tolerant_openers(device: str, count: int, rounds: int) -> tuple[int, int]:
    """Each request opens the device's node anew: how many were served, and how many found it gone."""
    results: list[int] = []

    def run(seed: int) -> None:
        for _ in range(rounds):
            results.append(attempt_on_device(device))

    _in_threads(count, run)
    return results.count(0), results.count(errno.ENODEV)


OPENERS_END = Path("/run/openers-end")


def openers_until_told(device: str, count: int) -> tuple[int, int]:
    """As `tolerant_openers`, until `tell_openers`; the device is looked for again when it is gone."""
    served, gone = [0] * count, [0] * count

    def run(seed: int) -> None:
        while not OPENERS_END.exists():
            error = attempt_on_device(device)
            served[seed] += error == 0
            gone[seed] += error != 0

    _in_threads(count, run)
    OPENERS_END.unlink()
    return sum(served), sum(gone)


def tell_openers() -> None:
    OPENERS_END.touch()


def outcome_of(fd: int, seed: int, length: int) -> str:
    """One request with data in both directions: "served" when all of it is right, else what came instead."""
    data, request, response = Memory(length), Memory(ORDER_SIZE), Memory(64)
    data.set(pattern(seed, length))
    request.set(Order(seed, length, seed + 2, length, seed + 3, 64).pack())
    sync = AzBlobRequestSync(
        request_len=ORDER_SIZE,
        response_len=64,
        data_len=length,
        data_valid=length,
        request_buffer=request.address,
        response_buffer=response.address,
        data_buffer=data.address,
    )
    error = ioctl(fd, AZURE_BLOB_IOCTL, ctypes.byref(sync))
    for memory in (data, request, response):
        memory.check_guards()
    if error:
        return errno.errorcode[error]
    if sync.response.status:
        return hex(sync.response.status)
    answer = (sync.response.response_len, data.get(length), response.get(64))
    return "served" if answer == (64, pattern(seed + 2, length), pattern(seed + 3, 64)) else "not what was asked for"


def tally(node: str, count: int, rounds: int, length: int = 5000) -> dict[str, int]:
    """How often each outcome was that of a request of `count` threads that share a file."""
    results: list[str] = []
    fd = os.open(node, os.O_RDWR)

    def run(seed: int) -> None:
        for turn in range(rounds):
            results.append(outcome_of(fd, seed * 1000 + turn * 10, length))

    _in_threads(count, run)
    os.close(fd)
    return dict(Counter(results))


class KeptRequest:
    """A request that is over and whose buffers are still there. Its data is checked when it returns."""

    def __init__(self, node: str, seed: int, length: int) -> None:
        self._places = (Memory(length), Memory(ORDER_SIZE), Memory(64))
        exchange_on(node, seed, length, length, places=self._places)
        self._request = self._places[1].get(ORDER_SIZE)

    def filled_with(self, byte: int) -> bool:
        """Whether data and response consist of this byte; nothing beside them may have changed."""
        data, request, response = self._places
        for place in self._places:
            place.check_guards()
        assert request.get(request.length) == self._request, "the request was written to"
        return all(place.get(place.length) == bytes((byte,)) * place.length for place in (data, response))


class Witness:
    """A process that has filled memory of its own, which nobody else is to write to."""

    def __init__(self, size: int) -> None:
        ready, tell = os.pipe()
        asked, self._ask = os.pipe()

        def watch() -> bool:
            content = pattern(size, size)
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.write(content)
            os.write(tell, b"!")
            os.read(asked, 1)
            return memory[:] == content

        self._child = Child(watch)
        os.read(ready, 1)
        for fd in (ready, tell, asked):
            os.close(fd)

    def content_is_right(self) -> bool:
        """Ends the process."""
        os.write(self._ask, b"!")
        os.close(self._ask)
        return bool(self._child.value())


def crowd(node: str, count: int) -> list[int]:
    """One request each from `count` threads on one open file; the errnos."""
    threading.stack_size(128 << 10)
    results: list[int] = []
    fd = os.open(node, os.O_RDWR)
    _in_threads(count, lambda seed: results.append(attempt(fd, data_pages=0)))
    os.close(fd)
    return results


def crowd_with_files(node: str, count: int) -> list[int]:
    """As `crowd`, each thread with an open file of its own."""
    threading.stack_size(128 << 10)
    results: list[int] = []
    _in_threads(count, lambda seed: results.append(attempt_on(node, data_pages=0)))
    return results


def long_packets(node: str, count: int, rounds: int) -> None:
    """Threads that send page lists of 64 KiB, of which the ring holds one: they have to wait for room."""
    fd = os.open(node, os.O_RDWR)
    pages = Memory((MAX_PAGES - 100) * PAGE, guard=False)

    def run(seed: int) -> None:
        request, response = Memory(ORDER_SIZE), Memory(64)
        request.set(Order(seed, 0, 3, 0, seed, 64).pack())
        for _ in range(rounds):
            response.set(bytes(64))
            sync = AzBlobRequestSync(
                request_len=ORDER_SIZE,
                response_len=64,
                data_len=pages.length,
                request_buffer=request.address,
                response_buffer=response.address,
                data_buffer=pages.address,
            )
            error = ioctl(fd, AZURE_BLOB_IOCTL, ctypes.byref(sync))
            assert error == 0, os.strerror(error)
            assert sync.response.status == 0, hex(sync.response.status)
            assert response.get(64) == pattern(seed, 64)

    _in_threads(count, run)
    os.close(fd)


def scattered_requests(node: str, count: int) -> None:
    """Threads that each send a page list in which no page follows the one before: not even QEMU can make it shorter."""
    pages = MAX_PAGES - 100
    file = os.memfd_create("one page")
    os.truncate(file, PAGE)
    libc.mmap.restype = ctypes.c_void_p
    protection, shared = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED
    place = libc.mmap(None, ctypes.c_size_t(pages * PAGE), protection, shared, file, ctypes.c_long(0))
    for index in range(pages):
        where = ctypes.c_void_p(place + index * PAGE)
        libc.mmap(where, ctypes.c_size_t(PAGE), protection, shared | 0x10, file, ctypes.c_long(0))  # MAP_FIXED
    fd = os.open(node, os.O_RDWR)

    def run(seed: int) -> None:
        error = attempt(fd, data_pages=0, data_len=pages * PAGE, data_buffer=place)
        assert error == 0, os.strerror(error)

    _in_threads(count, run)
    libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(pages * PAGE))
    os.close(fd)
    os.close(file)


def use_memory(size: int) -> None:
    """Have the kernel hand out and take back pages, each written to."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for at in range(0, size, PAGE):
            memory[at : at + 8] = b"\x55" * 8


def wait_until_unpinned(device: str, timeout_s: float = 30.0) -> None:
    """Wait until pending_requests is empty and the pages of orphans are let go, which a work item does."""
    deadline = time.monotonic() + timeout_s
    while pending(device) or pinned_pages():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{pinned_pages()} pages are still pinned")
        time.sleep(0.01)


# -- the client


def blob_put(node: str, path: str, seed: int, size: int, chunk: int) -> tuple[int, str, list[int]]:
    """Upload a pattern from a stream; returns what the client says of it, and the progress that it told."""
    told: list[int] = []
    with BlobDevice(node) as device:
        client = BlobClient(device, chunk_bytes=chunk)
        done = client.put(path, io.BytesIO(pattern(seed, size)), progress=lambda at, total: told.append(at))
    return done.size, done.sha256, told


def blob_get(node: str, path: str, chunk: int, sink: str) -> tuple[int, str, str]:
    """Download into a file; returns what the client says of it, and the hash of the file."""
    with BlobDevice(node) as device:
        done = BlobClient(device, chunk_bytes=chunk).get(path, Path(sink))
    found = hashlib.sha256(Path(sink).read_bytes()).hexdigest()
    Path(sink).unlink()
    return done.size, done.sha256, found


def blob_file_round_trip(node: str, path: str, size: int, chunk: int) -> str:
    """Upload a file by its path, look at it, download, delete it; returns what went wrong."""
    source, sink = Path("/tmp/source"), Path("/tmp/sink")
    source.write_bytes(pattern(size, size))
    with BlobDevice(node) as device:
        client = BlobClient(device, chunk_bytes=chunk)
        put = client.put(path, source)
        head = client.head(path)
        got = client.get(path, sink)
        client.delete(path)
        try:
            client.get(path, None)
            return "a deleted blob can be read"
        except BlobServiceError as error:
            if (error.status, error.code) != (404, "BlobNotFound"):
                return str(error)
    if source.read_bytes() != sink.read_bytes():
        return "the files differ"
    source.unlink()
    sink.unlink()
    if not put.size == got.size == head.length == size or put.sha256 != got.sha256 or put.etag != head.headers["etag"]:
        return f"{put} {got} {head}"
    return ""


def blob_get_failure(node: str, path: str, chunk: int, sink: str) -> tuple[int, str, bool]:
    """The service's status, its code, and whether anything is left in the sink's directory."""
    directory = Path(sink).parent
    directory.mkdir(exist_ok=True)
    try:
        blob_get(node, path, chunk, sink)
    except BlobServiceError as error:
        return error.status, error.code, any(directory.iterdir())
    return 0, "", any(directory.iterdir())


def blob_clients(node: str, count: int, size: int) -> None:
    """Threads that share one BlobDevice and its pool, each with a blob of its own."""
    with BlobDevice(node) as device:
        client = BlobClient(device, chunk_bytes=100_000)

        def run(seed: int) -> None:
            content = pattern(seed, size + seed)
            for turn in range(3):
                path = f"/many/{seed}-{turn}"
                put = client.put(path, content)
                sink = io.BytesIO()
                got = client.get(path, sink)
                assert sink.getvalue() == content
                assert put.sha256 == got.sha256
                client.delete(path)

        _in_threads(count, run)


def client_failure(node: str, kind: str) -> str:
    """The exception's name that the client raises for an errno that the driver gives."""
    with BlobDevice(node) as device:
        try:
            if kind == "too many pages":
                device.request(b"head", data_in=bytearray(33 << 20))
            elif kind == "no response buffer":
                device.request(b"head", response_size=0)
            else:
                device.request(b"head").check()
        except (OSError, HostError) as error:
            return type(error).__name__
    return ""


class IsolatedCaller:
    """Requests that can be given up."""

    def __init__(self, node: str) -> None:
        self.device = IsolatedDevice(node)

    def ask(self, wait_s: float | None = None) -> str:
        """The name of the exception, or whether the answer is right."""
        order = Order(1, 70_000, 3, 50_000, 4, 10)
        room = bytearray(70_000)
        try:
            answer = self.device.request(
                order.pack(), data_out=pattern(1, 70_000), data_in=room, response_size=10, wait_s=wait_s
            )
        except OSError as error:
            return type(error).__name__
        return "right" if room[:50_000] == pattern(3, 50_000) and answer.head == pattern(4, 10) else "wrong"


def run_example(code: str) -> None:
    """An example of the documentation, as a program of its own."""
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})


def client_in_place(node: str) -> tuple[bool, bool]:
    """Whether a request works in the caller's own bytearray, and leaves bytes (which cannot change) alone."""
    order = Order(1, 5000, 3, 5000, 4, 10)
    with BlobDevice(node) as device:
        own = bytearray(pattern(1, 5000))
        device.request(order.pack(), data_out=own, response_size=10).check()
        constant = pattern(1, 5000)
        device.request(order.pack(), data_out=constant, response_size=10).check()
        answer = device.request(order.pack(), data_out=constant, data_in=own, response_size=10).check()
        return own == pattern(3, 5000) and answer.head == pattern(4, 10), constant == pattern(1, 5000)


def client_prepared(node: str) -> bool:
    """Whether a prepared request does each time what it does once, with what its buffer holds then."""
    order, own = Order(1, 5000, 3, 5000, 4, 10), bytearray(5000)
    with BlobDevice(node) as device:
        prepared = device.prepare(order.pack(), own, valid=5000, response_size=10)
        for _ in range(3):
            own[:] = pattern(1, 5000)
            if prepared.send().check().head != pattern(4, 10) or own != pattern(3, 5000):
                return False
            device.request(order.pack(), data_out=pattern(1, 5000), response_size=10).check()
    return True
