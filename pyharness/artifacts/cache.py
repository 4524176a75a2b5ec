# SPDX-License-Identifier: GPL-2.0-only
"""The cache of everything that is fetched or built: content-addressed, locked, bounded.

Layout below the root (each directory 0700):

    entries/KIND/KEY/   a finished entry; it appears here only by a rename
    locks/KIND.KEY      flock(2)ed: shared by the users of an entry, exclusive for its builder or remover; holds the
                        entry's size in bytes, and its mtime is the time of last use
    tmp/KIND.KEY        an entry being built or removed; without a lock holder it is what a dead process left
    apt/RELEASE/        apt's private configuration and package lists; locks/apt.RELEASE is its lock
    resolved/NAME.json  what a name ("the newest 6.12 kernel") was last resolved to

A lock lives as long as the process that holds it, so `kill -9` frees it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyharness.artifacts.run import held_by_tools
from pyharness.errors import HarnessError, UsageError
from pyharness.progress import Progress

GIB = 1 << 30
DEFAULT_LIMIT = 12 * GIB


def key_of(*parts: str, files: Mapping[str, Path] | None = None) -> str:
    """A short, stable key of strings and of files by name and content; the order of `files` does not matter."""
    digest = hashlib.sha256()

    def feed(data: bytes) -> None:
        digest.update(len(data).to_bytes(8, "little") + data)

    for part in parts:
        feed(part.encode())
    for name, path in sorted((files or {}).items()):
        feed(name.encode())
        feed(path.read_bytes())
    return digest.hexdigest()[:16]


def files_below(*roots: Path, base: Path) -> dict[str, Path]:
    """All files at or below `roots`, named by their path relative to `base`, for `key_of`."""
    found: dict[str, Path] = {}
    for root in roots:
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file():
                found[path.relative_to(base).as_posix()] = path
    return found


@dataclass(frozen=True)
class Entry:
    """A finished entry; `size` in bytes on disk, `last_used` in seconds since the epoch."""

    kind: str
    key: str
    path: Path
    size: int
    last_used: float


class Cache:
    """A cache rooted in one directory. An entry handed out stays in use until `close()` or the process's end."""

    def __init__(self, root: Path, limit: int = DEFAULT_LIMIT) -> None:
        """`limit` in bytes; the oldest unused entries go when it is passed."""
        self.root = root.absolute()
        self.limit = limit
        self._in_use: dict[tuple[str, str], int] = {}
        # The kernel's make splits its own paths at these.
        if any(c.isspace() or c == ":" for c in str(self.root)):
            raise UsageError(
                f"the cache path {str(self.root)!r} holds a space or a colon, which the kernel's make cannot handle",
                mend="set PYHARNESS_CACHE to another directory",
            )
        try:
            # mkdir gives its mode to the last directory alone, not to the parents that it makes.
            for name in (".", "entries", "locks", "tmp", "resolved"):
                (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HarnessError(
                f"the cache {self.root} cannot be made: {error.strerror}",
                mend="set PYHARNESS_CACHE to a directory that you can write to",
            ) from error

    @classmethod
    def open(cls) -> Cache:
        """The cache of this user: PYHARNESS_CACHE, or `pyharness` in the XDG cache directory."""
        if given := os.environ.get("PYHARNESS_CACHE"):
            return cls(Path(given))
        xdg = os.environ.get("XDG_CACHE_HOME")
        return cls((Path(xdg) if xdg else Path.home() / ".cache") / "pyharness")

    def close(self) -> None:
        """Let go of all entries in use."""
        while self._in_use:
            os.close(self._in_use.popitem()[1])

    def path(self, kind: str, key: str) -> Path:
        """Where the entry is or will be."""
        return self.root / "entries" / kind / key

    def get(self, kind: str, key: str) -> Path | None:
        """The finished entry, now in use by this process, or None."""
        path = self.path(kind, key)
        if (kind, key) in self._in_use:
            return path
        if not path.is_dir():
            return None
        fd = self._lock(kind, key, fcntl.LOCK_SH)
        if fd is None or not path.is_dir():
            self._unlock(fd)
            return None
        os.utime(fd)
        self._unlock(self._in_use.pop((kind, key), None))
        self._in_use[kind, key] = fd
        return path

    def build(
        self,
        kind: str,
        key: str,
        builder: Callable[[Path], None],
        *,
        needs: int = 0,
        progress: Progress | None = None,
    ) -> Path:
        """The entry, made by `builder(directory)` when there is none; a second run that wants it waits.

        `needs` is the disk space in bytes that the build takes. Raises HarnessError when there is less, and whatever
        `builder` raises; nothing is left behind then.
        """
        made = told = False
        while (path := self.get(kind, key)) is None:
            fd = self._lock(kind, key, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if fd is None:
                if progress and not told:
                    progress.line(f"waiting for another run that makes {kind} {key}")
                    told = True
                # Wait as a user, not as a builder: the builder goes on to use what it has made.
                self._unlock(self._lock(kind, key, fcntl.LOCK_SH))
                continue
            try:
                if not self.path(kind, key).is_dir():
                    self._make(fd, kind, key, builder, needs)
                    made = True
            finally:
                os.close(fd)
        if made:
            self.trim()
        return path

    @contextmanager
    def workspace(self, kind: str, key: str, *, needs: int = 0, progress: Progress | None = None) -> Iterator[Path]:
        """A directory that persists and changes, such as a tree of object files; one process at a time has it.

        Unlike an entry it is whatever the last holder left, even a killed one.
        """
        path = self.path(kind, key)
        with self._exclusive(kind, key, progress) as fd, self.space(needs):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                yield path
            finally:
                self._record(fd, path)
        self.trim()

    @contextmanager
    def lock(self, name: str, progress: Progress | None = None) -> Iterator[None]:
        """Hold a named lock against other runs."""
        with self._exclusive("lock", name, progress):
            yield

    def hold(self, kind: str, key: str) -> None:
        """Keep what is not an entry in use as if it were one; waits while it is being removed."""
        if (kind, key) not in self._in_use:
            fd = self._lock(kind, key, fcntl.LOCK_SH)
            assert fd is not None
            self._in_use[kind, key] = fd

    def entries(self) -> list[Entry]:
        """All finished entries, least recently used first."""
        found = []
        for path in (self.root / "entries").glob("*/*"):
            kind, key = path.parent.name, path.name
            record = self._lock_path(kind, key)
            try:
                size, used = int(record.read_text() or 0), record.stat().st_mtime
            except (FileNotFoundError, ValueError):
                size, used = disk_usage(path), 0.0
            found.append(Entry(kind, key, path, size, used))
        return sorted(found, key=lambda entry: entry.last_used)

    def remove(self, entry: Entry) -> bool:
        """Remove an entry; False when a live process (this one too) uses it."""
        fd = self._lock(entry.kind, entry.key, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if fd is None:
            return False
        try:
            doomed = self.root / "tmp" / f"{entry.kind}.{entry.key}"
            _remove_tree(doomed)
            with suppress(FileNotFoundError):
                entry.path.rename(doomed)
            _remove_tree(doomed)
            self._lock_path(entry.kind, entry.key).unlink(missing_ok=True)
        finally:
            os.close(fd)
        return True

    def remove_package_lists(self) -> list[str]:
        """Remove apt's package lists; returns the releases whose lists a live process uses, which stay."""
        lists = sorted((self.root / "apt").glob("*"))
        return [path.name for path in lists if not self.remove(Entry("apt", path.name, path, 0, 0.0))]

    def trim(self) -> list[Entry]:
        """Remove the least recently used entries that nobody uses until the limit is kept; returns them."""
        entries = self.entries()
        excess = sum(entry.size for entry in entries) - self.limit
        removed: list[Entry] = []
        for entry in entries:
            if excess <= 0:
                break
            if self.remove(entry):
                excess -= entry.size
                removed.append(entry)
        return removed

    def recall(self, name: str) -> dict[str, Any] | None:
        """What `remember` kept under this name."""
        try:
            value = json.loads((self.root / "resolved" / f"{name}.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return value if isinstance(value, dict) else None

    def remember(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep what a name was resolved to, so that a later run needs no network to know it."""
        path = self.root / "resolved" / f"{name}.json"
        aside = path.with_suffix(f".{os.getpid()}")
        with self.space(0):
            aside.write_text(json.dumps(dict(value), indent=1, sort_keys=True))
            aside.replace(path)

    def forget(self) -> None:
        """Drop all that was remembered: the next run resolves every name afresh, from the network."""
        for path in (self.root / "resolved").glob("*.json"):
            path.unlink(missing_ok=True)

    def _make(self, fd: int, kind: str, key: str, builder: Callable[[Path], None], needs: int) -> None:
        self._sweep()
        aside = self.root / "tmp" / f"{kind}.{key}"
        _remove_tree(aside)
        try:
            with self.space(needs):
                aside.mkdir(mode=0o700)
                with held_by_tools(fd):
                    builder(aside)
                self._record(fd, aside)
                final = self.path(kind, key)
                final.parent.mkdir(mode=0o700, exist_ok=True)
                aside.rename(final)
        except BaseException:
            _remove_tree(aside)
            self._lock_path(kind, key).unlink(missing_ok=True)
            raise

    def _sweep(self) -> None:
        """Remove what killed builders left: a directory in tmp whose lock nobody holds."""
        for left in (self.root / "tmp").iterdir():
            kind, _, key = left.name.partition(".")
            if (fd := self._lock(kind, key, fcntl.LOCK_EX | fcntl.LOCK_NB)) is not None:
                _remove_tree(left)
                os.close(fd)

    @contextmanager
    def space(self, needs: int) -> Iterator[None]:
        """Turn a full disk, foreseen (less than `needs` bytes free) or met, into an error that says what to do."""
        free = shutil.disk_usage(self.root).free
        if free < needs:
            raise self._no_space(f"{needs / GIB:.1f} GiB needed, {free / GIB:.1f} GiB free", needs)
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self._no_space("the disk is full", needs) from error

    def _no_space(self, cause: str, needs: int) -> HarnessError:
        return HarnessError(
            f"no disk space in {self.root}: {cause}",
            mend=f"free at least {max(needs, GIB) / GIB:.1f} GiB there, or set PYHARNESS_CACHE to another disk",
        )

    def _lock_path(self, kind: str, key: str) -> Path:
        return self.root / "locks" / f"{kind}.{key}"

    def _lock(self, kind: str, key: str, how: int) -> int | None:
        path = self._lock_path(kind, key)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, how)
                # A remover may have unlinked the file while this process waited for it.
                if path.stat().st_ino == os.fstat(fd).st_ino:
                    return fd
            except BlockingIOError:
                os.close(fd)
                return None
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    @staticmethod
    def _unlock(fd: int | None) -> None:
        if fd is not None:
            os.close(fd)

    @contextmanager
    def _exclusive(self, kind: str, key: str, progress: Progress | None) -> Iterator[int]:
        fd = self._lock(kind, key, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if fd is None:
            if progress:
                progress.line(f"waiting for another run that works on {kind} {key}")
            fd = self._lock(kind, key, fcntl.LOCK_EX)
        assert fd is not None
        try:
            with held_by_tools(fd):
                yield fd
        finally:
            os.close(fd)

    @staticmethod
    def _record(fd: int, path: Path) -> None:
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(disk_usage(path)).encode(), 0)


def disk_usage(root: Path) -> int:
    """Bytes on disk of a tree, hard links counted once."""
    seen: dict[tuple[int, int], int] = {}
    for directory, _, names in os.walk(root):
        for name in (".", *names):
            with suppress(FileNotFoundError):
                status = os.lstat(os.path.join(directory, name))  # noqa: PTH118 -- a kernel tree has 25,000 files
                seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def _remove_tree(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
