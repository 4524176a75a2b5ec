# SPDX-License-Identifier: GPL-2.0-only
"""Kernel modules and the kernel's log, in the guest."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_SYS_DELETE_MODULE = 176
SYS_FINIT_MODULE = 313
_RECORD_SIZE = 8192
_LEVEL_MASK = 7

LOST = "pyharness: messages were overwritten before they were read"
"""Stands in the log for what is not there any more; of level error."""

_libc = ctypes.CDLL(None, use_errno=True)


def insmod(path: str) -> None:
    """Load the module file `path` (finit_module(2)). Raises OSError with the kernel's errno."""
    module = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syscall(SYS_FINIT_MODULE, module, b"", 0):
            raise _os_error(path)
    finally:
        os.close(module)


def rmmod(name: str) -> None:
    """Unload a module (delete_module(2)) without waiting for its users. Raises OSError, EBUSY or EAGAIN among them."""
    if _libc.syscall(_SYS_DELETE_MODULE, name.encode(), os.O_NONBLOCK):
        raise _os_error(name)


def sections(name: str) -> tuple[tuple[str, int], ...]:
    """The sections of a loaded module and their addresses."""
    return tuple((path.name, int(path.read_text(), 16)) for path in Path(f"/sys/module/{name}/sections").iterdir())


def _os_error(subject: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), subject)


class LogReader:
    """Reads /dev/kmsg from its start; each record once."""

    def __init__(self) -> None:
        self._kmsg = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def news(self) -> tuple[tuple[int, int, str], ...]:
        """The records since the last call: level (0 emergency .. 7 debug), microseconds since boot, text."""
        return tuple(map(_parse, self._records()))

    def _records(self) -> Iterator[str]:
        while True:
            try:
                yield os.read(self._kmsg, _RECORD_SIZE).decode(errors="replace")
            except BlockingIOError:
                return
            except BrokenPipeError:
                yield f"3,0,0,-;{LOST}"  # the next read goes on with the oldest one that is there


def _parse(record: str) -> tuple[int, int, str]:
    """A record is "PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,...];TEXT" and then lines with key=value pairs."""
    header, _, text = record.partition(";")
    priority, _, microseconds, *_ = header.split(",")
    return int(priority) & _LEVEL_MASK, int(microseconds), text.partition("\n")[0]
