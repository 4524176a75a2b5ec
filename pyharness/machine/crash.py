# SPDX-License-Identifier: GPL-2.0-only
"""Tells a kernel crash from the console's lines.

Each pattern is anchored at the start of the kernel's message, so that a line that merely mentions "BUG:" or "RIP:"
is no crash. The sample above each pattern is what the tests feed it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

_MAX_SPLAT_LINES = 120


class Severity(Enum):
    """FATAL ends the run at once; a WARNING is collected and fails the test that caused it."""

    FATAL = "fatal"
    WARNING = "warning"


@dataclass(frozen=True)
class Pattern:
    """A kind of splat, known by its first line."""

    kind: str
    severity: Severity
    sample: str
    regex: str


PATTERNS = (
    Pattern(
        "panic",
        Severity.FATAL,
        "Kernel panic - not syncing: sysrq triggered crash",
        r"Kernel panic - not syncing: ",
    ),
    Pattern("KASAN", Severity.FATAL, "BUG: KASAN: slab-use-after-free in foo+0x1c/0x40 [bar]", r"BUG: KASAN: "),
    Pattern("KFENCE", Severity.FATAL, "BUG: KFENCE: use-after-free read in foo+0x1c/0x40", r"BUG: KFENCE: "),
    Pattern(
        "soft lockup",
        Severity.FATAL,
        "watchdog: BUG: soft lockup - CPU#1 stuck for 130s! [insmod:321]",
        r"watchdog: BUG: soft lockup - CPU#\d+ ",
    ),
    Pattern(
        "hard lockup",
        Severity.FATAL,
        "watchdog: Watchdog detected hard LOCKUP on cpu 0",
        r"watchdog: Watchdog detected hard LOCKUP on cpu ",
    ),
    Pattern("BUG", Severity.FATAL, "BUG: kernel NULL pointer dereference, address: 0000000000000008", r"BUG: \S"),
    Pattern("BUG", Severity.FATAL, "kernel BUG at drivers/hv/channel.c:123!", r"kernel BUG at \S+!"),
    Pattern("oops", Severity.FATAL, "Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI", r"Oops: .*\[#\d+\]"),
    Pattern(
        "oops",
        Severity.FATAL,
        "general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] PREEMPT SMP",
        r"(general protection fault|invalid opcode|divide error|stack segment|int3).*: [0-9a-f]{4} \[#\d+\]",
    ),
    Pattern(
        "hung task",
        Severity.FATAL,
        "INFO: task insmod:321 blocked for more than 241 seconds.",
        r"INFO: task \S+:\d+ (is )?blocked .*(more|longer) than \d+ seconds",
    ),
    Pattern(
        "RCU stall",
        Severity.WARNING,
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        r"rcu: INFO: rcu_\w+ (self-)?detected ",
    ),
    Pattern(
        "UBSAN",
        Severity.WARNING,
        "UBSAN: array-index-out-of-bounds in drivers/hv/channel.c:12:3",
        r"UBSAN: \S+ in ",
    ),
    Pattern(
        "lockdep",
        Severity.WARNING,
        "WARNING: possible circular locking dependency detected",
        r"WARNING: (possible |inconsistent lock state|suspicious RCU|bad unlock|Nested lock|held lock)",
    ),
    Pattern(
        "WARNING",
        Severity.WARNING,
        "WARNING: CPU: 1 PID: 321 at drivers/hv/channel.c:12 vmbus_open+0x1c/0x40 [hv_vmbus]",
        r"WARNING: .* at ",
    ),
)

# "[    1.234567] ", or "[    1.234567][  T321] " with CONFIG_PRINTK_CALLER.
_PREFIX = re.compile(r"^\[ *\d+\.\d+\](\[ *[TC]\d+\])? ?")
_COMPILED = [(pattern, re.compile(pattern.regex)) for pattern in PATTERNS]
_END = re.compile(r"---\[ end (trace|Kernel panic)")
_PANIC_END = re.compile(r"---\[ end Kernel panic")


def message_of(line: str) -> str:
    """The kernel's message without the time stamp of its line."""
    return _PREFIX.sub("", line)


def classify(line: str) -> Pattern | None:
    """The pattern that `line` is the first line of."""
    message = message_of(line)
    return next((pattern for pattern, regex in _COMPILED if regex.match(message)), None)


@dataclass
class Splat:
    """A splat: its kind, and its lines as they came."""

    kind: str
    severity: Severity
    lines: list[str] = field(default_factory=list)

    @property
    def headline(self) -> str:
        """The first line's message."""
        return message_of(self.lines[0])

    @property
    def text(self) -> str:
        """The whole splat."""
        return "\n".join(self.lines)


class CrashDetector:
    """Fed with the console line by line, it collects splats."""

    def __init__(self) -> None:
        self.fatal: Splat | None = None
        self.complete = False
        """The fatal splat has ended: the kernel said its last word."""
        self.warnings: list[Splat] = []
        self._open: Splat | None = None

    def feed(self, line: str) -> None:
        """Take one line, without its line end."""
        pattern = classify(line)
        if pattern and self.fatal is None and pattern.severity is Severity.FATAL:
            self.fatal = self._open = Splat(pattern.kind, pattern.severity)
        elif pattern and self._open is None:
            self._open = Splat(pattern.kind, pattern.severity)
            self.warnings.append(self._open)
        if self._open is None:
            return
        if len(self._open.lines) < _MAX_SPLAT_LINES:
            self._open.lines.append(line)
        if self._open is self.fatal:
            # An oops is followed by a panic, which belongs to it.
            self.complete = self.complete or _PANIC_END.search(line) is not None
        elif _END.search(line) or len(self._open.lines) >= _MAX_SPLAT_LINES:
            self._open = None
