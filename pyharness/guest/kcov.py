# SPDX-License-Identifier: GPL-2.0-only
"""Which code of the kernel a system call runs through (Documentation/dev-tools/kcov.rst)."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PATH = "/sys/kernel/debug/kcov"
# linux/kcov.h, as _IOR('c', 1, unsigned long), _IO('c', 100) and _IO('c', 101)
_INIT_TRACE = 0x80086301
_ENABLE = 0x6364
_DISABLE = 0x6365
_TRACE_PC = 0
_WORD = ctypes.sizeof(ctypes.c_ulong)
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Kcov:
    """Records, as a context manager, where the present thread is in the instrumented code of the kernel.

    `pages` is the size of the buffer, each with room for 512 places; the kernel drops what follows.
    """

    def __init__(self, pages: int = 128) -> None:
        """Raises FileNotFoundError when the kernel has no KCOV."""
        self._file = os.open(_PATH, os.O_RDWR | os.O_CLOEXEC)
        self._size = pages * mmap.PAGESIZE
        try:
            fcntl.ioctl(self._file, _INIT_TRACE, self._size // _WORD)
            # Python's own mmap takes the file's size, which is zero, for the truth.
            self._address = _libc.mmap(
                None, self._size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, self._file, 0
            )
            if self._address == _MAP_FAILED:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), _PATH)
        except BaseException:
            os.close(self._file)
            raise
        self._words = (ctypes.c_ulong * (self._size // _WORD)).from_address(self._address)
        self._view = memoryview(self._words).cast("B").cast("Q")

    def __enter__(self) -> Self:
        fcntl.ioctl(self._file, _ENABLE, _TRACE_PC)
        self._words[0] = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fcntl.ioctl(self._file, _DISABLE, 0)

    @property
    def places(self) -> list[int]:
        """Addresses in the kernel, in the order in which they were passed."""
        return list(self._words[1 : 1 + self._words[0]])

    def take(self) -> bytes:
        """The addresses that were passed since the last call, as native 64-bit words: one copy, however many."""
        trace = self._view[1 : 1 + self._view[0]].tobytes()
        self._view[0] = 0
        return trace

    def close(self) -> None:
        """Give the buffer back."""
        self._view.release()
        _libc.munmap(self._address, self._size)
        os.close(self._file)


class Symbols:
    """The functions of a loaded module."""

    def __init__(self, module: str) -> None:
        found = []
        for line in Path("/proc/kallsyms").read_text().splitlines():
            address, kind, name, *where = line.split()
            if where == [f"[{module}]"] and kind in "tT":
                found.append((int(address, 16), name))
        if not found:
            raise LookupError(f"{module} has no functions in /proc/kallsyms")
        self._functions = sorted(found)

    def at(self, address: int) -> str:
        """The function that holds `address`, if any comes before it."""
        index = bisect_right(self._functions, address, key=lambda function: function[0])
        return self._functions[index - 1][1] if index else ""


def passed_through(module: str, function: Callable[..., Any], *args: Any, **options: Any) -> tuple[str, ...]:
    """The module's function at each place that the present thread passes while it runs `function`."""
    with Kcov() as recording:
        function(*args, **options)
    places = recording.places
    recording.close()
    symbols = Symbols(module)
    return tuple(map(symbols.at, places))
