# SPDX-License-Identifier: GPL-2.0-only
"""Run the host's tools: output to a log, lines to a listener, and no process left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pyharness.errors import HarnessError

_TAIL_LINES = 60
_TERM_GRACE_S = 2.0
_POLL_S = 0.01
_NO_SPACE = ("No space left on device", "Disk quota exceeded", "enough free space in")

# What git and make tell their children of themselves is not meant for the repositories and builds of our tools.
_NOT_INHERITED = ("GIT_", "MAKE", "MFLAGS")

# Debian package of each tool that is not in a minimal installation.
PACKAGE_OF = {
    "apt-get": "apt",
    "depmod": "kmod",
    "dpkg-source": "dpkg-dev",
    "gcc-12": "gcc-12",
    "gcov-12": "gcc-12",
    "gcov-tool-12": "gcc-12",
    "make": "make",
    "mkfs.erofs": "erofs-utils",
    "ninja": "ninja-build",
    "node": "nodejs",
    "npm": "npm",
    "patch": "patch",
    "pkg-config": "pkgconf",
    "strip": "binutils",
    "xz": "xz-utils",
}


class _Locks(threading.local):
    """Descriptors of the locks under which this thread runs tools."""

    def __init__(self) -> None:
        self.held: list[int] = []


_locks = _Locks()


@contextmanager
def held_by_tools(lock: int) -> Iterator[None]:
    """Have each tool that this thread runs meanwhile hold the flock of this descriptor too.

    When this process is killed, the next one that wants the lock waits for what they still do.
    """
    _locks.held.append(lock)
    try:
        yield
    finally:
        _locks.held.remove(lock)


class CommandFailed(HarnessError):
    """A tool exited with a status other than 0; `output` holds its last lines."""

    def __init__(self, argv: Sequence[str], status: int, output: list[str]) -> None:
        super().__init__(f"{Path(argv[0]).name} failed with status {status}", detail="\n".join(output))
        self.status = status
        self.output = output


def missing_tool(tool: str) -> HarnessError:
    """The error that says which Debian package provides `tool`."""
    package = PACKAGE_OF.get(Path(tool).name, Path(tool).name)
    return HarnessError(f"{tool} is not installed", mend=f"install the Debian package {package}: scripts/setup does")


def environment() -> dict[str, str]:
    """The environment of tools: ours, in plain English, without what a git or a make around us has set."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    return ours | {"LC_ALL": "C.UTF-8"}


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> list[str]:
    """Run `argv` and return the last lines of its output (stdout and stderr together, as they came).

    `env` is added to `environment()`, `log` is appended to, `on_line` hears each line. However this function is left,
    the tool and its children are gone: its process group is killed on any exception. When this process is killed
    itself, the kernel sends the tool a SIGTERM, at which make and ninja end those that they have started; a compiler
    that is left ends with its file.

    Raises CommandFailed, HarnessError when the tool is missing, and OSError(ENOSPC) when it ran out of disk.
    """
    command = [str(arg) for arg in argv]
    variables = environment() | dict(env or {})
    # depmod lives in sbin, which an unprivileged user's PATH lacks.
    variables["PATH"] = variables.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    sink = log.open("a", encoding="utf-8") if log else None
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", "--", *command],
        cwd=cwd,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=_locks.held,
    )
    try:
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.rstrip("\n")
            tail.append(line)
            if sink:
                sink.write(raw)
            if on_line:
                on_line(line)
        status = process.wait()
    except BaseException:
        _kill_group(process)
        raise
    finally:
        if sink:
            sink.close()
    output = list(tail)
    if status == 0:
        return output
    if any(mark in line for line in output for mark in _NO_SPACE):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if status == 127 and output and output[-1].startswith("setpriv: failed to execute"):
        raise missing_tool(command[0])
    raise CommandFailed(command, status, output)


def gcc_version(gcc: str) -> str:
    """Which version of gcc that is, to be part of the key of what it makes. Raises HarnessError when it is missing."""
    return run([gcc, "-dumpfullversion"])[-1]


def _kill_group(process: subprocess.Popen[str]) -> None:
    """End the tool and all that it has started, so that nothing is written any more to what is going to be removed."""
    with suppress(subprocess.TimeoutExpired, ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(_TERM_GRACE_S)
    deadline = time.monotonic() + _TERM_GRACE_S
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:  # it may be that nobody reaps them
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(_POLL_S)
    process.wait()
