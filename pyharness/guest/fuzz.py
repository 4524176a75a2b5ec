# SPDX-License-Identifier: GPL-2.0-only
"""Runs the ioctl fuzzer's programs in the guest, many in one call, and tells which of them reached new code.

A program is a sequence of steps, each the name of a method here without its underscore, and its arguments; the host
makes them (pyharness/fuzz/program.py). The memory that they use lies at fixed addresses, so that the host can name it,
below 4 GiB, so that 32-bit programs could. Whatever a program changes is put back at its end.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pickle
import resource
import signal
import struct
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pyharness.guest.kcov import Kcov
from pyharness.guest.kernel import sections

Step = tuple[Any, ...]
Program = Sequence[Step]

PAGE = mmap.PAGESIZE


class Place(NamedTuple):
    """A piece of the address space; `writable` for what the fuzzer itself may always write to."""

    address: int
    pages: int
    writable: bool = False


PLACES = {
    "rw": Place(0x2000_0000, 16, True),
    "hole": Place(0x2001_0000, 16),
    "ro": Place(0x2002_0000, 4),
    "none": Place(0x2003_0000, 4),
    "var": Place(0x2004_0000, 4),
    "file": Place(0x2005_0000, 4, True),
    "rofile": Place(0x2006_0000, 4),
    "big": Place(0x2200_0000, 8200, True),
    "null": Place(0, 0),
    "last": Place(0x7FFF_FFFF_F000 - PAGE, 0),
    "noncanonical": Place(0x8000_0000_0000, 0),
    "kernel": Place(0xFFFF_8880_0000_0000, 0),
    "top": Place(2**64 - PAGE, 0),
}
"""What an address can be relative to. Those without pages, and the hole, are never mapped."""

FLAGS = {"rw": os.O_RDWR, "r": os.O_RDONLY, "w": os.O_WRONLY, "nonblock": os.O_RDWR | os.O_NONBLOCK, "path": os.O_PATH}
PROTECTIONS = {"none": 0, "r": mmap.PROT_READ, "rw": mmap.PROT_READ | mmap.PROT_WRITE}
STEPS = (
    *("open", "close", "dup", "rebind", "misuse", "ioctl", "alarm", "fill", "protect", "drop"),
    *("credentials", "limit", "fork", "thread"),
)
SLOTS = 4
"""Open files that a program can have; the first ones are open from its start, one for each device."""

_STRUCT_SIZE = 72
_SWITCH_S = 1e-4

VERDICTS = {
    "unknown": frozenset(range(256)),
    "other": frozenset((errno.ENOTTY, errno.EBADF)),
    "invalid": frozenset((errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENODEV, errno.EFAULT)),
    "valid": frozenset((0, errno.EBADF, errno.EACCES, errno.ENODEV, errno.EFAULT, errno.ENOMEM)),
}
"""What an ioctl may return, by what is known of it: another command, a struct that must be refused, or must not be."""

_FILE = Path("/run/pyharness-fuzz")
_DRIVER = "hv_azure_blob"
_BIND = Path("/sys/bus/vmbus/drivers") / _DRIVER
_NOBODY = 65534
_CAP_IPC_LOCK = 14
_CAP_VERSION_3 = 0x20080522
_SYS_SETGROUPS, _SYS_SETRESUID, _SYS_SETRESGID, _SYS_SETFSUID, _SYS_CAPGET, _SYS_CAPSET = 116, 117, 119, 122, 125, 126
_KEEP = 0xFFFFFFFF
_MADV_DONTNEED, _MADV_DONTFORK = 4, 10
_MAP_FIXED = 0x10
_EDGE_BITS = 20

# int ioctl(fd, command, argument), in the calling convention of 64-bit code, through the gate of 32-bit programs:
# push rbx; mov ebx, edi; mov ecx, esi; mov eax, 54 (ioctl; the argument is in edx already); int 0x80; pop rbx; ret
_INT80_IOCTL = bytes.fromhex("53 89fb 89f1 b836000000 cd80 5b c3")

_SCRATCH = PLACES["rw"]

_ID_CHANGES: dict[str, tuple[Any, ...]] = {
    "user": (_SYS_SETRESUID, _KEEP, _NOBODY, _KEEP),
    "saved user": (_SYS_SETRESUID, _KEEP, _KEEP, _NOBODY),
    "fs user": (_SYS_SETFSUID, _NOBODY),
    "group": (_SYS_SETRESGID, _KEEP, _NOBODY, _KEEP),
    "groups": (_SYS_SETGROUPS, 1, struct.pack("<I", _NOBODY)),
}
CREDENTIALS = ("capability", "inheritable", *_ID_CHANGES)
"""What can be changed of a thread's credentials. The system calls are bare: the C library would change all threads'."""

_MISUSES: dict[str, Callable[[int], object]] = {
    "read": lambda file: os.read(file, PAGE),
    "write": lambda file: os.write(file, b"x" * 100),
    "pread": lambda file: os.pread(file, 100, 1 << 40),
    "lseek": lambda file: os.lseek(file, 100, os.SEEK_SET),
    "fsync": os.fsync,
    "mmap": lambda file: mmap.mmap(file, PAGE).close(),
    "truncate": lambda file: os.ftruncate(file, 0),
    "nonblock": lambda file: os.set_blocking(file, False),
}
MISUSES = tuple(_MISUSES)

_libc = ctypes.PyDLL(None, use_errno=True)
"""Keeps Python's lock during a call, which saves the time to take it again."""
_unlocked = ctypes.CDLL(None, use_errno=True)
for _library in (_libc, _unlocked):
    _library.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
    _library.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    _library.mmap.restype = ctypes.c_void_p
    _library.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_memmove = ctypes.memmove


class WrongResult(Exception):
    """An ioctl returned what its contract rules out."""


def _map(place: Place, protection: int, flags: int = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, file: int = -1) -> None:
    address = _libc.mmap(place.address, place.pages * PAGE, protection, flags | _MAP_FIXED, file, 0)
    if address != place.address:
        raise OSError(ctypes.get_errno(), f"mmap at {place.address:#x}")


def _node(device: str) -> str:
    """The node of the VMBus device of that name; it must be bound."""
    (entry,) = (
        entry for entry in Path("/sys/class/misc").glob("azure_blob*") if (entry / "device").resolve().name == device
    )
    return f"/dev/{entry.name}"


def _capget() -> tuple[int, int, int]:
    """Effective, permitted and inheritable capabilities of the present thread."""
    header, sets = struct.pack("<Ii", _CAP_VERSION_3, 0), ctypes.create_string_buffer(24)
    _libc.syscall(_SYS_CAPGET, header, sets)
    low, high = struct.unpack("<3I", sets.raw[:12]), struct.unpack("<3I", sets.raw[12:])
    effective, permitted, inheritable = (a | b << 32 for a, b in zip(low, high, strict=True))
    return effective, permitted, inheritable


def _capset(*sets: int) -> None:
    low, high = (each & 0xFFFFFFFF for each in sets), (each >> 32 for each in sets)
    _libc.syscall(_SYS_CAPSET, struct.pack("<Ii", _CAP_VERSION_3, 0), struct.pack("<6I", *low, *high))


class Executor:
    """Holds the memory, the devices' open files and what has been covered. Used by one thread."""

    def __init__(self, devices: Sequence[str]) -> None:
        """`devices` are their names on VMBus."""
        self._devices = tuple(devices)
        self._own: list[int] = []
        self._opened: list[int] = []
        self._files = [-1] * SLOTS
        self._dirty: set[Callable[[], None]] = set()
        self._threads: list[threading.Thread] = []
        self._ioctls = self._answered = 0
        self._kcov, self._elsewhere = Kcov(), Kcov()
        text = dict(sections(_DRIVER))[".text"]
        self._text = range(text, text + (1 << _EDGE_BITS))
        self._seen: set[int] = set()
        self._known: set[int] = set()
        self._var_writable = True
        self._wrong: list[str] = []
        self._map_places()
        self._gate32 = self._make_gate()
        self._capabilities = _capget()
        self._limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        signal.signal(signal.SIGALRM, lambda number, frame: None)
        self._steps = {name: getattr(self, f"_{name}") for name in STEPS}
        # A thread that waits for Python's lock asks for it after this long.
        sys.setswitchinterval(_SWITCH_S)
        self._reopen()
        self._kcov.__enter__()

    def close(self) -> None:
        """Close the devices' files."""
        self._kcov.__exit__(None, None, None)
        self._restore_files()
        for file in self._own:
            os.close(file)

    # -- from the host

    def run(self, batch: bytes) -> bytes:
        """Run a pickled list of programs.

        Returns, pickled: how many ioctls were made, how many of them were answered by the host, and for each program
        that reached new edges, twice in a row, its index and these edges. Raises WrongResult.
        """
        before, answered = self._ioctls, self._answered
        found = []
        for index, program in enumerate(pickle.loads(batch)):
            fresh = [trace for trace in self._execute(program) if hash(trace) not in self._seen]
            if not fresh:
                continue
            self._seen.update(map(hash, fresh))
            if self._edges(fresh) - self._known and (new := self._edges(self._execute(program)) - self._known):
                self._known |= new
                found.append((index, tuple(new)))
        return pickle.dumps((self._ioctls - before, self._answered - answered, found))

    def coverage(self, batch: bytes) -> bytes:
        """Run a pickled list of programs; returns, pickled, the edges of each."""
        return pickle.dumps([tuple(self._edges(self._execute(program))) for program in pickle.loads(batch)])

    # -- coverage

    def _edges(self, traces: Iterable[bytes]) -> set[int]:
        """Pairs of places that follow each other within a step, as offsets in the driver's text."""
        found: set[int] = set()
        text, start = self._text, self._text.start
        for trace in traces:
            offsets = [0, *(place - start for place in array("Q", trace) if place in text)]
            found.update(a << _EDGE_BITS | b for a, b in pairwise(offsets))
        return found

    # -- programs

    def _execute(self, program: Program) -> list[bytes]:
        """Run one program; returns a trace for each of its steps."""
        take = self._kcov.take
        ctypes.memset(_SCRATCH.address, 0, PAGE)
        take()
        traces = []
        rest = iter(program)
        try:
            for name, *arguments in rest:
                if name in ("fork", "thread"):
                    arguments[-1] = list(islice(rest, arguments[-1]))
                self._steps[name](*arguments)
                traces.append(take())
        finally:
            if self._dirty:
                self._put_back()
                traces.append(take())
        if elsewhere := self._elsewhere.take():
            traces.append(elsewhere)
        if self._wrong:
            wrong, self._wrong = self._wrong, []
            raise WrongResult(wrong[0])
        return traces

    def _put_back(self) -> None:
        self._put_back_threads()
        dirty, self._dirty = self._dirty, set()
        # Credentials first: the rest needs root.
        for undo in sorted(dirty, key=lambda undo: undo != self._restore_credentials):
            undo()

    def _restore_files(self) -> None:
        for file in [*self._opened]:
            self._close_file(file)
        self._files = [*self._own, *[-1] * (SLOTS - len(self._own))]

    def _close_file(self, file: int) -> None:
        """Close what a program opened, once, although threads may want to as well."""
        with suppress(ValueError):
            self._opened.remove(file)
            os.close(file)

    def _reopen(self) -> None:
        self._restore_files()
        for file in self._own:
            os.close(file)
        for device in self._devices:
            with suppress(OSError):  # unless a child was killed in the middle, it is bound
                (_BIND / "bind").write_text(device)
        self._nodes = [_node(device) for device in self._devices]
        self._own = [os.open(node, os.O_RDWR) for node in self._nodes]
        self._restore_files()

    # -- steps: files

    def _open(self, slot: int, device: int, flags: str) -> None:
        self._close(slot)
        with suppress(OSError):
            self._opened.append(os.open(self._nodes[device], FLAGS[flags]))
            self._files[slot] = self._opened[-1]

    def _close(self, slot: int) -> None:
        """Those that every program starts with stay open for the next one."""
        self._dirty.add(self._restore_files)
        file, self._files[slot] = self._files[slot], -1
        self._close_file(file)

    def _dup(self, slot: int, other: int) -> None:
        if slot != other:
            self._close(other)
            with suppress(OSError):
                self._opened.append(os.dup(self._files[slot]))
                self._files[other] = self._opened[-1]

    def _rebind(self, device: int) -> None:
        """The device goes and comes back; files that were open are of the one that is gone."""
        self._restore_credentials()
        self._dirty.add(self._reopen)
        for what in ("unbind", "bind"):
            with suppress(OSError):  # a thread does the same at once
                (_BIND / what).write_text(self._devices[device])

    def _misuse(self, slot: int, how: str) -> None:
        """Another system call than ioctl."""
        with suppress(OSError, ValueError):
            _MISUSES[how](self._files[slot])

    # -- steps: ioctls

    def _ioctl(self, slot: int, gate: int, command: int, at: int, fields: bytes, verdict: str) -> None:
        """`fields` is as much of the struct as can be written; it is written first."""
        if fields and (self._var_writable or not self._in_var(at)):
            _memmove(at, fields, len(fields))
        self._ioctls += 1
        if gate == 32:
            error = -self._gate32(self._files[slot], command & 0xFFFFFFFF, at & 0xFFFFFFFF)
        elif _libc.ioctl(self._files[slot], command, at):
            error = ctypes.get_errno()
        else:
            error = 0
        self._answered += not error
        if error not in VERDICTS[verdict]:
            self._wrong.append(f"errno {error} for command {command:#x} of {verdict} fields {fields.hex()}")

    def _in_var(self, at: int) -> bool:
        var = PLACES["var"]
        return var.address - _STRUCT_SIZE < at < var.address + var.pages * PAGE

    def _alarm(self, microseconds: int) -> None:
        """A signal that does not kill, at about that time from now."""
        self._dirty.add(self._disarm)
        signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)

    def _disarm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    # -- steps: memory

    def _fill(self, at: int, data: bytes) -> None:
        _memmove(at, data, len(data))

    def _protect(self, protection: str) -> None:
        var = PLACES["var"]
        self._dirty.add(self._restore_var)
        self._var_writable = protection == "rw"
        _libc.mprotect(var.address, var.pages * PAGE, PROTECTIONS[protection])

    def _drop(self, place: str) -> None:
        """Give the pages back: the next access finds fresh ones."""
        where = PLACES[place]
        _libc.madvise(where.address, where.pages * PAGE, _MADV_DONTNEED)

    def _restore_var(self) -> None:
        self._protect("rw")
        self._dirty.discard(self._restore_var)

    # -- steps: who calls

    def _credentials(self, change: str) -> None:
        self._dirty.add(self._restore_credentials)
        if change in _ID_CHANGES:
            _libc.syscall(*_ID_CHANGES[change])
            return
        effective, permitted, inheritable = self._capabilities
        if change == "capability":
            effective &= ~(1 << _CAP_IPC_LOCK)
        else:
            inheritable |= 1
        _capset(effective, permitted, inheritable)

    def _restore_credentials(self) -> None:
        _libc.syscall(_SYS_SETRESUID, 0, 0, 0)
        _libc.syscall(_SYS_SETRESGID, 0, 0, 0)
        _libc.syscall(_SYS_SETGROUPS, 0, None)
        _capset(*self._capabilities)

    def _limit(self, pages: int) -> None:
        self._dirty.add(self._restore_limit)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (pages * PAGE, self._limits[1]))

    def _restore_limit(self) -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, self._limits)

    def _fork(self, kill_after: int, steps: Program) -> None:
        """The steps happen in a child, which is killed after so many microseconds, unless that is negative."""
        self._put_back_threads()
        begun, tell = os.pipe()
        self._ioctls += sum(step[0] == "ioctl" for step in steps)
        if any(step[0] == "rebind" for step in steps):
            self._dirty.add(self._reopen)
        child = os.fork()
        if child == 0:
            try:
                self._elsewhere.__enter__()
                os.write(tell, b"x")
                self._run_simple(steps)
            finally:
                os._exit(0)
        os.read(begun, 1)
        if kill_after >= 0:
            time.sleep(kill_after / 1e6)
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(begun)
        os.close(tell)

    def _thread(self, steps: Program) -> None:
        """The steps happen on a thread, while the program goes on."""
        self._put_back_threads()

        def run() -> None:
            with self._elsewhere:
                self._run_simple(steps)

        thread = threading.Thread(target=run)
        self._dirty.add(self._put_back_threads)
        self._threads.append(thread)
        thread.start()

    def _put_back_threads(self) -> None:
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _run_simple(self, steps: Program) -> None:
        """Without Python's lock during a call, and without a word of what it returns."""
        for name, *arguments in steps:
            if name == "ioctl":
                slot, _, command, at, fields, _ = arguments
                if fields and (self._var_writable or not self._in_var(at)):
                    _memmove(at, fields, len(fields))
                _unlocked.ioctl(self._files[slot], command, at)
            elif name not in ("fork", "thread"):
                with suppress(OSError):
                    self._steps[name](*arguments)

    # -- memory

    def _map_places(self) -> None:
        readable, writable = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
        # A struct where the fuzzer cannot write: a request and a response in the first pages.
        request = struct.pack("<16s6I3Q8s", b"", 0, 40, 64, 0, 0, 0, _SCRATCH.address, _SCRATCH.address + PAGE, 0, b"")
        _FILE.write_bytes(request.ljust(PAGE, b"\0") * 4)
        for name in ("rw", "ro", "none", "var", "big"):
            _map(PLACES[name], writable)
        _memmove(PLACES["ro"].address, request, len(request))
        for name, protection in (("ro", readable), ("none", 0)):
            _libc.mprotect(PLACES[name].address, PLACES[name].pages * PAGE, protection)
        for name, protection, flags in (("file", writable, os.O_RDWR), ("rofile", readable, os.O_RDONLY)):
            file = os.open(_FILE, flags)
            _map(PLACES[name], protection, mmap.MAP_SHARED, file)
            os.close(file)
        big = PLACES["big"]
        ctypes.memset(big.address, 1, big.pages * PAGE)
        # A fork would copy its page tables.
        _libc.madvise(big.address, big.pages * PAGE, _MADV_DONTFORK)

    def _make_gate(self) -> Callable[[int, int, int], int]:
        executable = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        self._code = mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, executable)
        self._code.write(_INT80_IOCTL)
        entry = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        gate: Callable[[int, int, int], int] = ctypes.PYFUNCTYPE(
            ctypes.c_int, ctypes.c_int, ctypes.c_uint, ctypes.c_uint
        )(entry)
        return gate
