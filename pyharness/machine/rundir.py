# SPDX-License-Identifier: GPL-2.0-only
"""The private directory of one running machine: its sockets and initramfs. It is short-lived and has a short name."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from pyharness.errors import HarnessError

_PREFIX = "pyharness-"
# sun_path is 108 bytes with its NUL; the longest name below is far shorter than this.
_MAX_BASE_LENGTH = 70
_KEPT_LOGS = 32


class RunDir:
    """A directory of mode 0700 that is locked while its owner lives, so that what a killed run left can be told."""

    def __init__(self) -> None:
        base = _base()
        _sweep(base)
        try:
            self.path, self._lock = _make(base)
        except OSError as error:
            raise HarnessError(
                f"no run directory can be made in {base}: {error.strerror}",
                mend="free some space, or set XDG_RUNTIME_DIR to a directory that you can write to",
            ) from error

    def remove(self) -> None:
        """Remove the directory and all in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)

    @property
    def qmp_socket(self) -> Path:
        """QEMU's machine protocol."""
        return self.path / "qmp"

    @property
    def agent_socket(self) -> Path:
        """The guest agent's virtio-serial port."""
        return self.path / "agent"

    @property
    def shell_socket(self) -> Path:
        """The guest's second console, for a person."""
        return self.path / "shell"

    @property
    def debug_socket(self) -> Path:
        """A second QMP socket, for a debugger that reads the guest's memory."""
        return self.path / "debug"

    @property
    def gdb_socket(self) -> Path:
        """QEMU's gdbstub, once it is asked for."""
        return self.path / "gdb"

    @property
    def gdb_commands(self) -> Path:
        """What gdb must be told to attach there."""
        return self.path / "gdb-commands"

    @property
    def initramfs(self) -> Path:
        """The initramfs that this machine boots."""
        return self.path / "initramfs"

    def vsp_socket(self, index: int) -> Path:
        """Where the device `index` waits for its VSP backend."""
        return self.path / f"vsp{index}"


def _base() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    candidates = [Path(runtime)] if runtime else []
    for candidate in (*candidates, Path(tempfile.gettempdir()), Path("/tmp")):
        if len(os.fsencode(candidate)) <= _MAX_BASE_LENGTH and os.access(candidate, os.W_OK | os.X_OK):
            return candidate
    raise HarnessError("no directory for the machine's sockets", mend="set XDG_RUNTIME_DIR to a short, writable path")


def _make(base: Path) -> tuple[Path, int]:
    """A fresh directory and its lock, held."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Before it was locked, another start may have swept it: then this lock guards nothing.
        with suppress(FileNotFoundError):
            if (path / "lock").stat().st_ino == os.fstat(lock).st_ino:
                return path, lock
        os.close(lock)


def _sweep(base: Path) -> None:
    """Remove the directories of this user whose owner is dead: nobody holds their lock."""
    for path in base.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if path.lstat().st_uid != os.getuid():
                continue
            _remove_unless_locked(path, path / "lock")


class LogDir:
    """A fresh directory for one machine's logs. Of those that no machine writes to any more only the newest stay."""

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=root))
            self._lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        except OSError as error:
            raise HarnessError(f"no log directory can be made in {root}: {error.strerror}") from error
        others = sorted(path for path in root.iterdir() if path.is_dir() and path != self.path)
        for old in others[: 1 - _KEPT_LOGS]:
            with suppress(OSError):
                _remove_unless_locked(old, old)

    def release(self) -> None:
        """Say that nobody writes there any more. May be called more than once."""
        with suppress(OSError):
            os.close(self._lock)
        self._lock = -1


def _remove_unless_locked(directory: Path, locked: Path) -> None:
    """Remove `directory` unless somebody holds a lock on `locked`. Raises OSError."""
    lock = os.open(locked, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(lock)
