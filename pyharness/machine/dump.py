# SPDX-License-Identifier: GPL-2.0-only
"""Dumps of a guest's memory, as drgn and crash(8) read them."""

from __future__ import annotations

import struct
import time
from contextlib import suppress
from pathlib import Path

from pyharness.errors import HarnessError
from pyharness.machine.qmp import Qmp

# makedumpfile's format: pages of zeros take no room, so that a dump is a thirtieth of the memory.
_FORMAT = "kdump-raw-zlib"
_POLL_S = 0.05

# struct disk_dump_header of makedumpfile: a signature of 8 bytes, a version, and the guest's struct new_utsname, in
# which QEMU 10.0 fills in no more than the machine, as "Unknown"; libkdumpfile takes the architecture from there.
_UTSNAME_OFFSET = 12
_UTSNAME = struct.Struct("65s65s65s65s65s65s")


def dump_memory(qmp: Qmp, path: Path, release: str) -> None:
    """Write the guest's memory to `path`, which is there only when it is complete; a running guest waits meanwhile.

    `release` is that of the guest's kernel. Raises HarnessError when the dump cannot be written, for example to a
    full disk.
    """
    partial = path.absolute().with_name(f".{path.name}.partial")
    before = len(_ends(qmp))
    try:
        qmp.execute("dump-guest-memory", paging=False, protocol=f"file:{partial}", detach=True, format=_FORMAT)
        while len(_ends(qmp)) == before:
            qmp.execute("query-status")  # raises when QEMU has died
            time.sleep(_POLL_S)
        if reason := _ends(qmp)[-1].get("error"):
            raise HarnessError(f"QEMU cannot dump the memory to {path}: {reason}", mend="free some disk space")
        partial.chmod(0o600)
        with partial.open("r+b") as dump:
            dump.seek(_UTSNAME_OFFSET)
            dump.write(_UTSNAME.pack(b"Linux", b"guest", release.encode(), b"unknown", b"x86_64", b"(none)"))
        partial.rename(path)
    except OSError as error:
        raise HarnessError(f"the memory cannot be dumped to {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _ends(qmp: Qmp) -> list[dict[str, object]]:
    return [event["data"] for event in qmp.events if event["event"] == "DUMP_COMPLETED"]
