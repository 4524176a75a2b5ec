# SPDX-License-Identifier: GPL-2.0-only
"""Tells what the kernel's detectors report, from the lines of its console or of its log.

A report is known by its first line, anchored at the start of a message of the kernel, so that a line that merely
mentions "BUG:" or "RIP:" is none. What user space prints has no time stamp and is never one. The sample beside each
pattern is what the tests feed it; tests/unit/splats holds whole reports of real kernels.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, StrEnum

# What a WARN was given to say stands between "cut here" and the WARNING (up to 6.x), or below that.
_TEXT_WITHIN = 3
# UBSAN names a file by where it was compiled, which is gone.
_BUILD_DIRECTORY = re.compile(r"/\S*/module\.\w+/sources/")
_CUT_HERE = re.compile(r"-+\[ cut here \]-+$")

_RULER = r"={40,}$"
_TRACE_END = r"---\[ end trace "
_STACK_END = r" ?</TASK>"
# The last word of a kernel that stops; the last but one of a kernel that resets.
_PANIC_END = r"---\[ end Kernel panic|Kernel Offset: "
_ONE_LINE = r""


class Kind(StrEnum):
    """What a crash or a report of the kernel is; the last five are verdicts of the machine, not of the kernel."""

    PANIC = "panic"
    OOPS = "oops"
    BUG = "BUG"
    WARNING = "WARNING"
    KASAN = "KASAN"
    KFENCE = "KFENCE"
    UBSAN = "UBSAN"
    LOCKDEP = "lockdep"
    ATOMIC_SLEEP = "atomic sleep"
    DEBUG_OBJECTS = "DEBUG_OBJECTS"
    LIST_CORRUPTION = "list corruption"
    REFCOUNT = "refcount"
    SLAB_CORRUPTION = "slab corruption"
    BAD_PAGE = "bad page"
    PAGE_ALLOCATION = "page allocation"
    LEFTOVER = "leftover"
    """Memory that a module or a cache still held when it went."""
    KMEMLEAK = "kmemleak"
    RCU_STALL = "RCU stall"
    HUNG_TASK = "hung task"
    SOFT_LOCKUP = "soft lockup"
    HARD_LOCKUP = "hard lockup"

    TRIPLE_FAULT = "triple fault"
    RESET = "reset"
    POWER_OFF = "power off"
    QEMU_DEATH = "QEMU death"
    BOOT_HANG = "boot hang"


class Severity(Enum):
    """FATAL ends the run at once; a WARNING is collected and fails the test that caused it."""

    FATAL = "fatal"
    WARNING = "warning"


_MAX_LINES = {Severity.FATAL: 500, Severity.WARNING: 200}


@dataclass(frozen=True)
class Pattern:
    """A report, known by its first line; `end` matches its last. `text`: it is what a WARN was given to say."""

    kind: Kind
    severity: Severity
    end: str
    sample: str
    regex: str
    text: bool = False


_FATAL, _WARNING = Severity.FATAL, Severity.WARNING

PATTERNS = (
    Pattern(
        Kind.PANIC,
        _FATAL,
        _PANIC_END,
        "Kernel panic - not syncing: sysrq triggered crash",
        r"Kernel panic - not syncing: ",
    ),
    Pattern(Kind.PANIC, _FATAL, _PANIC_END, "traps: PANIC: double fault, error_code: 0x0", r"(traps: )?PANIC: "),
    Pattern(Kind.KASAN, _FATAL, _RULER, "BUG: KASAN: slab-use-after-free in foo+0x1c/0x40 [bar]", r"BUG: KASAN: "),
    Pattern(Kind.KFENCE, _FATAL, _RULER, "BUG: KFENCE: use-after-free read in foo+0x1c/0x40", r"BUG: KFENCE: "),
    Pattern(
        Kind.SOFT_LOCKUP,
        _FATAL,
        _STACK_END,
        "watchdog: BUG: soft lockup - CPU#1 stuck for 130s! [insmod:321]",
        r"watchdog: BUG: soft lockup - CPU#\d+ ",
    ),
    Pattern(
        Kind.HARD_LOCKUP,
        _FATAL,
        _STACK_END,
        "watchdog: Watchdog detected hard LOCKUP on cpu 0",
        r"(NMI )?watchdog: (CPU\d+: )?Watchdog detected hard LOCKUP on cpu ",
    ),
    Pattern(
        Kind.ATOMIC_SLEEP,
        _WARNING,
        _STACK_END,
        "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585",
        r"BUG: (sleeping function called from invalid context|assuming (atomic|non migratable) context) at ",
    ),
    Pattern(
        Kind.ATOMIC_SLEEP,
        _FATAL,
        _STACK_END,
        "BUG: scheduling while atomic: python3/99/0x00000002",
        r"BUG: scheduling (while atomic|in a non-blocking section): ",
    ),
    Pattern(
        Kind.ATOMIC_SLEEP,
        _WARNING,
        _TRACE_END,
        "Voluntary context switch within RCU read-side critical section!",
        r"Voluntary context switch within RCU read-side critical section!",
        text=True,
    ),
    Pattern(
        Kind.LOCKDEP,
        _WARNING,
        _STACK_END,
        "WARNING: possible circular locking dependency detected",
        r"WARNING: (possible (circular locking|recursive locking|irq lock inversion)|\S+-safe -> \S+-unsafe lock order"
        r"|inconsistent lock state|suspicious RCU usage|chain_key collision|Nested lock was not taken"
        r"|bad unlock balance|bad contention|held lock freed|lock held when returning to user space"
        r"|.*/\d+ still has locks held)",
    ),
    Pattern(
        Kind.LOCKDEP,
        _WARNING,
        _STACK_END,
        "[ BUG: Invalid wait context ]",
        r"\[ BUG: Invalid wait context \]|INFO: trying to register non-static key"
        r"|BUG: (workqueue leaked |key \S+ has not been registered|MAX_\w+ too low)",
    ),
    Pattern(
        Kind.LOCKDEP,
        _WARNING,
        _TRACE_END,
        "DEBUG_LOCKS_WARN_ON(lock->magic != lock)",
        r"DEBUG_LOCKS_WARN_ON\(",
        text=True,
    ),
    Pattern(
        Kind.BAD_PAGE,
        _FATAL,
        _STACK_END,
        "BUG: Bad page state in process python3  pfn:12345",
        r"BUG: Bad (page|rss-counter|pagetable)",
    ),
    Pattern(
        Kind.LEFTOVER,
        _WARNING,
        _STACK_END,
        "BUG hv_request (Tainted: G           O      ): Objects remaining in hv_request on __kmem_cache_shutdown()",
        r"BUG \S+ \(.*\): Objects remaining",
    ),
    Pattern(
        Kind.LEFTOVER,
        _WARNING,
        _TRACE_END,
        "kmem_cache_destroy hv_request: Slab cache still has objects when called from foo_exit+0x10/0x20 [foo]",
        r"kmem_cache_destroy \S+: Slab cache still has objects",
        text=True,
    ),
    Pattern(
        Kind.LEFTOVER,
        _WARNING,
        _TRACE_END,
        "kernel/hv_azure_blob.c:123 module hv_azure_blob func:foo has 64 allocated at module unload",
        r"\S+:\d+ module \S+ func:\S+ has \d+ allocated at module unload",
        text=True,
    ),
    Pattern(
        Kind.SLAB_CORRUPTION,
        _FATAL,
        _STACK_END,
        "BUG kmalloc-64 (Tainted: G           O      ): Poison overwritten",
        r"BUG \S+ \(.*\): ",
    ),
    Pattern(
        Kind.LIST_CORRUPTION,
        _FATAL,
        _TRACE_END,
        "list_add corruption. next->prev should be prev (ffff888007c8fd08), but was ffff888007c8fd18.",
        r"list_(add|del) (corruption|double add)",
        text=True,
    ),
    Pattern(
        Kind.REFCOUNT,
        _WARNING,
        _TRACE_END,
        "refcount_t: underflow; use-after-free.",
        r"refcount_t: (saturated|addition on 0|underflow|decrement hit 0|unknown)",
        text=True,
    ),
    Pattern(
        Kind.DEBUG_OBJECTS,
        _WARNING,
        _TRACE_END,
        "ODEBUG: free active (active state 0) object: ffff88800 object type: timer_list hint: foo+0x0/0x10 [bar]",
        r"ODEBUG: \w+ .*object( type)?: .* hint: ",
        text=True,
    ),
    Pattern(
        Kind.OOPS,
        _FATAL,
        _PANIC_END,
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        r"BUG: (kernel NULL pointer dereference|unable to handle |.* stack guard page was hit)",
    ),
    Pattern(Kind.OOPS, _FATAL, _PANIC_END, "Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI", r"Oops: .*\[#\d+\]"),
    Pattern(
        Kind.OOPS,
        _FATAL,
        _PANIC_END,
        "general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] PREEMPT SMP",
        r"(general protection fault|invalid opcode|divide error|stack segment|int3).*: [0-9a-f]{4} \[#\d+\]",
    ),
    Pattern(Kind.BUG, _FATAL, _PANIC_END, "kernel BUG at drivers/hv/channel.c:123!", r"kernel BUG at \S+"),
    Pattern(Kind.BUG, _FATAL, _PANIC_END, "BUG: using smp_processor_id() in preemptible [00000000] code", r"BUG: \S"),
    Pattern(
        Kind.HUNG_TASK,
        _FATAL,
        _RULER,
        "INFO: task insmod:321 blocked for more than 241 seconds.",
        r"INFO: task .+:\d+ (is )?blocked .*for more than \d+ seconds",
    ),
    Pattern(
        Kind.RCU_STALL,
        _WARNING,
        _STACK_END,
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        r"(rcu: )?INFO: rcu_\w+ (self-)?detected (expedited )?stall",
    ),
    Pattern(
        Kind.UBSAN,
        _WARNING,
        rf"{_TRACE_END}|{_RULER}",
        "UBSAN: array-index-out-of-bounds in drivers/hv/channel.c:12:3",
        r"UBSAN: \S+ in \S+:\d+:\d+",
    ),
    Pattern(
        Kind.PAGE_ALLOCATION,
        _WARNING,
        _STACK_END,
        "python3: page allocation failure: order:10, mode:0xcc0(GFP_KERNEL), nodemask=(null),cpuset=/,mems_allowed=0",
        r".{1,16}: (page allocation failure: order:\d+|vmalloc error: size \d+), .*mode:0x",
    ),
    Pattern(
        Kind.KMEMLEAK,
        _WARNING,
        _ONE_LINE,
        "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        r"kmemleak: \d+ new suspected memory leaks ",
    ),
    Pattern(
        Kind.WARNING,
        _WARNING,
        _TRACE_END,
        "WARNING: CPU: 1 PID: 321 at drivers/hv/channel.c:12 vmbus_open+0x1c/0x40 [hv_vmbus]",
        r"WARNING: (CPU: \d+ PID: \d+ at |\S+:\d+ at |at \S+\+0x)",
    ),
)

# "[    1.234567] ", or "[    1.234567][  T321] " with CONFIG_PRINTK_CALLER. Not always at the start of the line: user
# space may have printed half a line before.
_STAMP = re.compile(r"\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ?")
_COMPILED = [(pattern, re.compile(pattern.regex)) for pattern in PATTERNS]


def message_of(line: str) -> str | None:
    """The kernel's message without the time stamp; None for what user space has printed."""
    stamp = _STAMP.search(line)
    return line[stamp.end() :] if stamp else None


def classify(message: str) -> Pattern | None:
    """The pattern that the kernel's `message` is the first line of."""
    return next((pattern for pattern, regex in _COMPILED if regex.match(message)), None)


@dataclass
class Splat:
    """A report of the kernel: its kind, and its lines as they came."""

    kind: Kind
    severity: Severity
    headline: str
    """The message that tells the kind."""
    lines: list[str] = field(default_factory=list)
    seen: float = field(default_factory=time.monotonic)
    """When it began, by the host's monotonic clock in seconds."""

    @property
    def text(self) -> str:
        """The whole report."""
        return "\n".join(self.lines)


@dataclass
class _Report:
    """A splat that is being read."""

    splat: Splat
    pattern: Pattern
    below: int = 0
    """How many lines stand below the headline."""


class CrashDetector:
    """Fed with the console line by line, it collects splats."""

    def __init__(self) -> None:
        self.fatal: Splat | None = None
        self.complete = False
        """The fatal splat has ended."""
        self.warnings: list[Splat] = []
        self._open: _Report | None = None
        self._cut: list[str] = []
        """The last "cut here" and what followed it, until it is known what it is the start of."""

    def feed(self, line: str) -> None:
        """Take one line, without its line end."""
        message = message_of(line)
        if message is None or self.complete:
            return
        if _CUT_HERE.match(message):
            self._cut = [line]
            if self.fatal is None:
                self._open = None
                return
        pattern = classify(message)
        if pattern and not (self._open and self._belongs(self._open, pattern, message)):
            self._begin(pattern, message, line)
        elif self._open:
            self._extend(self._open, message, line)
        elif self._cut:
            self._cut = [*self._cut, line] if len(self._cut) < _TEXT_WITHIN else []

    def _belongs(self, report: _Report, pattern: Pattern, message: str) -> bool:
        """Whether the first line of a report is a part of the one that is being read."""
        if report.splat is self.fatal:
            # An oops is followed by a panic.
            return True
        if report.below >= _TEXT_WITHIN:
            return False
        if report.pattern.kind is Kind.WARNING and pattern.text:
            splat, report.pattern = report.splat, pattern
            splat.kind, splat.severity, splat.headline = pattern.kind, pattern.severity, message
            if pattern.severity is Severity.FATAL:
                self.fatal = self.warnings.pop()
            return True
        return report.pattern.text and pattern.kind is Kind.WARNING

    def _begin(self, pattern: Pattern, message: str, line: str) -> None:
        headline = _BUILD_DIRECTORY.sub("", message)
        splat = Splat(pattern.kind, pattern.severity, headline, [*self._cut, line])
        self._open, self._cut = _Report(splat, pattern), []
        if pattern.severity is Severity.FATAL:
            self.fatal = splat
        else:
            self.warnings.append(splat)
        if pattern.end == _ONE_LINE:
            self._open = None

    def _extend(self, report: _Report, message: str, line: str) -> None:
        splat = report.splat
        splat.lines.append(line)
        report.below += 1
        full = len(splat.lines) >= _MAX_LINES[splat.severity]
        if full or re.match(rf"{report.pattern.end}|{_PANIC_END}", message):
            self.complete = splat is self.fatal
            self._open = None


def splats_in(lines: Iterable[str]) -> list[Splat]:
    """The splats of a log, the fatal one last."""
    detector = CrashDetector()
    for line in lines:
        detector.feed(line)
    return [*detector.warnings, *([detector.fatal] if detector.fatal else [])]
