# SPDX-License-Identifier: GPL-2.0-only
"""What the guest's kernel tells about the driver's doings, as plain values that cross to the host in one call."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

MODULES = ("hv_azure_blob", "hv_vmbus")
"""Those under test."""

_PROC = Path("/proc")
_SYS = Path("/sys")
_DEBUGFS = _SYS / "kernel" / "debug"
_BOUND = _SYS / "bus" / "vmbus" / "drivers" / MODULES[0]
_KMEMLEAK = _DEBUGFS / "kmemleak"
_JIFFIES = re.compile(r"^jiffies: (\d+)$", re.MULTILINE)
_TAGS = tuple(f" [{name}] " for name in MODULES)


def state() -> tuple[tuple[str, tuple[tuple[str, int], ...]], ...]:
    """What is held now, as (kind, ((what, how many), ...)); the kinds are named in pyharness/judge.py."""
    return (
        ("pins", (("", pinned_pages()),)),
        ("requests", tuple((row, 1) for row in _pending())),
        ("users", tuple((name, users) for name in MODULES if (users := _users(name)) is not None)),
        ("devices", tuple((path.name, 1) for path in _devices())),
        ("memory", _held()),
    )


def hurry() -> None:
    """Have the kernel free what it has been told to, which it may put off for 5 s (kfree_rcu() collects batches)."""
    for order in ("4", "2"):  # keep it out of the log; call all shrinkers, that of kfree_rcu() too
        (_PROC / "sys/vm/drop_caches").write_text(order)


def pinned_pages() -> int:
    """Pages that are pinned now, by anyone."""
    # The counters are kept per CPU, and what is shown lags behind until this.
    (_PROC / "sys/vm/stat_refresh").write_text("1")
    counters = dict(line.split() for line in (_PROC / "vmstat").read_text().splitlines())
    return int(counters["nr_foll_pin_acquired"]) - int(counters["nr_foll_pin_released"])


def _pending() -> list[str]:
    rows = []
    for path in (_DEBUGFS / MODULES[0]).glob("*/pending_requests"):
        rows += [line for line in path.read_text().splitlines() if not line.startswith("#")]
    # GUID and state: the rest of a row changes while one looks.
    return [" ".join(row.split()[:2]) for row in rows]


def _users(module: str) -> int | None:
    try:
        return int((_SYS / "module" / module / "refcnt").read_text())
    except FileNotFoundError:
        return None


def _devices() -> list[Path]:
    return sorted(path for path in _BOUND.glob("*-*") if path.is_symlink())


def _held() -> tuple[tuple[str, int], ...]:
    """Bytes by the line that allocated them (CONFIG_MEM_ALLOC_PROFILING): "FILE:LINE FUNCTION"."""
    try:
        lines = (_PROC / "allocinfo").read_text().splitlines()
    except FileNotFoundError:
        return ()
    held = []
    for line in lines:
        if any(tag in line for tag in _TAGS):
            size, _, where, _, function = line.split()[:5]
            if int(size):
                held.append((f"{where} {function.removeprefix('func:')}", int(size)))
    return tuple(held)


def off(options: tuple[str, ...]) -> tuple[str, ...]:
    """Those of these DETECTORS that do not work."""
    return tuple(option for option in options if not DETECTORS[option]())


def _opens(path: Path) -> bool:
    try:
        path.open("r+").close()
    except OSError:
        return False
    return True


def _tells(path: Path, pattern: str) -> bool:
    try:
        return bool(re.search(pattern, path.read_text(), re.MULTILINE))
    except FileNotFoundError:
        return False


DETECTORS: dict[str, Callable[[], bool]] = {
    "DEBUG_KMEMLEAK": lambda: _opens(_KMEMLEAK),
    "MEM_ALLOC_PROFILING": lambda: _tells(_PROC / "allocinfo", "func:"),
    "PROVE_LOCKING": lambda: _tells(_PROC / "lockdep_stats", r"debug_locks: +1$"),
}
"""What can be off in a kernel that was configured with it, by its own decision too: whether it works."""


# -- kmemleak


def clock() -> tuple[int, float]:
    """The kernel's jiffies, by which kmemleak dates an allocation, and the seconds of a clock that only goes on."""
    # Nothing else shows them to user space.
    match = _JIFFIES.search((_PROC / "timer_list").read_text())
    assert match, "/proc/timer_list does not tell the jiffies"
    return int(match[1]), time.monotonic()


def scan() -> str:
    """Have the kernel seek memory that nothing points to; returns what it reports now."""
    _KMEMLEAK.write_text("scan")
    return _KMEMLEAK.read_text()
