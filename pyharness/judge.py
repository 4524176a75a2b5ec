# SPDX-License-Identifier: GPL-2.0-only
"""Judges what the driver did to the kernel between two moments, by all that the kernel can tell.

    judge = Judge(machine)
    judge.begin("a test")   # marks the state
    ...                     # the driver works
    judge.verdict()         # raises the HarnessError that names what is wrong
    judge.finish()          # once, before the machine goes: what takes kmemleak a while to be sure of

What a kernel was not configured to see is not judged: /proc/allocinfo and kmemleak are there on debug kernels.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyharness.errors import CheckFailed, GuestCrashed, HarnessError
from pyharness.guest.host import KernelMessage
from pyharness.guest.judge import DETECTORS
from pyharness.guest.kernel import LOST
from pyharness.machine.backtrace import stacks_in
from pyharness.machine.crash import Kind, splats_in
from pyharness.machine.vm import Machine

# A worker of the kernel frees what the host has just let go of. What is there after this long stays for ever.
_SETTLE_S = 10.0
_POLL_S = 0.02
# kmemleak does not report what is younger than 5 s, since a pointer may be on its way; with a margin for its tick.
_LEAK_AGE_S = 5.2
# A scan looks at every word of the kernel's data, which takes an emulated CPU 10 s or more. So there is none after each
# test: a leak does not go away, and kmemleak dates it.
_SCAN_TIMEOUT_S = 600.0

Counts = Mapping[str, int]


@dataclass(frozen=True)
class _Kind:
    """What there must be as much of as there was: how to say that there is more, or less."""

    more: str
    less: str


_KINDS = {
    "pins": _Kind(
        "{count} pages are left pinned (an unpin_user_pages is missing)", "{count} pages were unpinned twice"
    ),
    "requests": _Kind("a request is still pending: {what}", "a request is gone: {what}"),
    "users": _Kind("{what} has {count} more users than before", "{what} has {count} users less than before"),
    "devices": _Kind("device {what} is still bound", "device {what} is not bound any more"),
    "memory": _Kind("{count} bytes are left allocated by {what}", "{count} bytes less than before are held by {what}"),
}


@dataclass(frozen=True)
class State:
    """What is held at one moment: for each kind, how many of what."""

    held: Mapping[str, Counts]

    @classmethod
    def of(cls, rows: Sequence[tuple[str, Sequence[tuple[str, int]]]]) -> State:
        """From what `pyharness.guest.judge.state` returns; equal rows add up."""
        held: dict[str, dict[str, int]] = {}
        for kind, counts in rows:
            of_kind = held.setdefault(kind, {})
            for what, count in counts:
                of_kind[what] = of_kind.get(what, 0) + count
        return cls(held)

    def faults(self, later: State) -> list[str]:
        """What is held at `later` that was not held now, or the other way round: a line for each."""
        found = []
        for kind, words in _KINDS.items():
            before, after = self.held[kind], later.held[kind]
            for what in sorted(before.keys() | after.keys()):
                count = after.get(what, 0) - before.get(what, 0)
                if count:
                    found.append((words.more if count > 0 else words.less).format(what=what, count=abs(count)))
        return found


@dataclass(frozen=True)
class Leak:
    """An object of kmemleak's report: nothing in the kernel's memory points to it."""

    address: str
    size: int
    jiffies: int
    text: str

    @property
    def culprit(self) -> str:
        """The innermost function of a module that is on the stack of the allocation, or else the innermost at all."""
        frames = [frame for stack in stacks_in(self.text.splitlines()) for frame in stack.frames]
        return str(next((frame for frame in frames if frame.module), frames[0] if frames else "an unknown function"))


_LEAK = re.compile(
    r"^unreferenced object(?: \(\w+\))? (?P<address>0x[0-9a-f]+) \(size (?P<size>\d+)\):\n"
    r"  comm .*, jiffies (?P<jiffies>\d+).*\n(?:  .*\n?)*",
    re.MULTILINE,
)


def parse_leaks(report: str) -> dict[tuple[str, int], Leak]:
    """kmemleak's report by the objects' address and time of allocation, which no two objects share.

    Raises HarnessError for one in another format.
    """
    found = {}
    for match in _LEAK.finditer(report):
        leak = Leak(match["address"], int(match["size"]), int(match["jiffies"]), match[0].rstrip())
        found[leak.address, leak.jiffies] = leak
    if len(found) != report.count("unreferenced object"):
        raise HarnessError("kmemleak's report has a format that is not known", detail=report)
    return found


class Judge:
    """Judges one machine. It may be made before the modules are loaded."""

    def __init__(self, machine: Machine) -> None:
        """Raises HarnessError when the kernel was configured with a detector that is off."""
        self._machine = machine
        self._guest = machine.guest.module("pyharness.guest.judge")
        self._kmemleak = machine.config.kernel.has("DEBUG_KMEMLEAK")
        self._marks: list[tuple[int, str]] = []
        """When what began, in jiffies."""
        self._begun = False
        self._messages = 0
        """How much of the kernel's log has been judged, or is from before the first mark."""
        self._state = State({})
        self._passed = False
        self._check_detectors()

    def begin(self, name: str) -> None:
        """Mark the state: `name` is what a fault that shows later is blamed on.

        Raises, as `verdict` does, what the kernel's log says of the time since the last verdict or mark.
        """
        if self._begun:
            self._check_log()
        else:
            self._begun, self._messages = True, len(self._machine.guest.dmesg())
        if self._kmemleak:
            self._marks.append((self._guest.clock()[0], name))
        if not self._passed:  # else all is as it was
            self._state = self._now()
        self._passed = False

    def verdict(self, tolerated: Sequence[str] = (), tolerated_reports: Sequence[str] = ()) -> None:
        """Raise what is wrong since `begin`.

        GuestCrashed for a report of the kernel's detectors, also one that the kernel survived, and CheckFailed when
        something is held that was not held before, or is no longer, unless either contains a text of
        `tolerated_reports`. CheckFailed for a warning in the kernel's log, unless it contains a text of `tolerated`.
        """
        self._settle(tolerated_reports)
        self._check_log(tolerated, tolerated_reports)
        self._passed = not tolerated_reports

    def glance(self, tolerated: Sequence[str] = ()) -> None:
        """Raise what the kernel's log says since it was last judged. What is held is not looked at: this is quick."""
        self._check_log(tolerated)

    def finish(self) -> None:
        """Raise GuestCrashed if anything leaked since the first `begin`, with the names of what leaked it.

        Raises HarnessError when a detector has been switched off meanwhile, by itself too. Takes some seconds where
        there is a kmemleak, and no time elsewhere.
        """
        if not self._begun:
            return
        self._check_log()
        self._check_detectors()
        if not self._kmemleak:
            return
        _, end = self._guest.clock()
        # The first scan takes checksums; an object that has changed by the second is in use, and is not reported.
        self._leaks()
        while self._guest.clock()[1] < end + _LEAK_AGE_S:
            time.sleep(_POLL_S)
        leaks = self._leaks()
        if leaks:
            # A pointer that was on its way during one scan has arrived by the next.
            again = self._leaks()
            leaks = {key: leak for key, leak in leaks.items() if key in again}
        if leaks:
            raise self._leaked(list(leaks.values()))
        self._check_log()

    def _now(self) -> State:
        return State.of(self._guest.state())

    def _settle(self, tolerated_reports: Sequence[str]) -> None:
        """Wait until everything is as it was, or has had its time."""
        deadline = time.monotonic() + _SETTLE_S
        while True:
            faults = [
                fault
                for fault in self._state.faults(self._now())
                if not any(part in fault for part in tolerated_reports)
            ]
            if not faults:
                return
            self._check_splats(self._news(), tolerated_reports)
            if time.monotonic() > deadline:
                raise CheckFailed(faults[0] + _more(faults), detail="\n".join(faults))
            self._guest.hurry()
            time.sleep(_POLL_S)

    def _check_detectors(self) -> None:
        kernel = self._machine.config.kernel
        wanted = tuple(option for option in DETECTORS if kernel.has(option))
        if off := self._guest.off(wanted) if wanted else ():
            raise HarnessError(
                f"the guest's kernel has CONFIG_{off[0]}, but it is off{_more(off)}: nothing can be judged by it",
                mend=f"see what the kernel says of it in {self._machine.console.log}",
            )

    def _check_log(self, tolerated: Sequence[str] = (), tolerated_reports: Sequence[str] = ()) -> None:
        """Judge what is new in the kernel's log; it is not judged again."""
        messages = self._news()
        self._messages += len(messages)
        self._check_splats(messages, tolerated_reports)
        if any(message.text == LOST for message in messages):
            raise HarnessError(f"the guest's kernel said more than its log holds: {LOST}")
        warnings = [
            str(message)
            for message in messages
            if message.is_warning and not any(part in message.text for part in tolerated)
        ]
        if warnings:
            raise CheckFailed(f"the guest's kernel warned: {warnings[0]}{_more(warnings)}", detail="\n".join(warnings))

    def _news(self) -> list[KernelMessage]:
        """What has not been judged: of the log rather than the console, which may lag behind it."""
        self._machine.check()
        return self._machine.guest.dmesg(self._messages)

    def _check_splats(self, messages: Sequence[KernelMessage], tolerated_reports: Sequence[str]) -> None:
        splats = [
            splat
            for splat in splats_in(map(str, messages))
            # What kmemleak found is judged by its report, which tells what the boot left.
            if splat.kind is not Kind.KMEMLEAK and not any(part in splat.text for part in tolerated_reports)
        ]
        if splats:
            first = splats[0]
            raise GuestCrashed(
                f"the guest's kernel reported {first.kind}: {first.headline}{_more(splats)}",
                detail="\n\n".join(self._machine.explain(splat.text) for splat in splats),
                kind=first.kind,
            )

    def _leaks(self) -> dict[tuple[str, int], Leak]:
        """What a scan reports of what was allocated since the first mark: the rest is the boot's."""
        report = self._machine.guest.spawn(self._guest.scan).result(_SCAN_TIMEOUT_S)
        return {key: leak for key, leak in parse_leaks(str(report)).items() if leak.jiffies >= self._marks[0][0]}

    def _leaked(self, leaks: Sequence[Leak]) -> GuestCrashed:
        names = [self._blame(leak) for leak in leaks]
        first = leaks[0]
        error = GuestCrashed(
            f"kmemleak: {first.size} bytes allocated by {first.culprit} leaked in {names[0]}{_more(leaks)}",
            detail="\n\n".join(
                f"in {name}:\n{self._machine.explain(leak.text)}" for name, leak in zip(names, leaks, strict=True)
            ),
            kind=Kind.KMEMLEAK,
        )
        error.blamed = names[0] if "::" in names[0] else ""
        return error

    def _blame(self, leak: Leak) -> str:
        """The name of the interval in which it was allocated."""
        begins = [jiffies for jiffies, _ in self._marks]
        return self._marks[bisect_right(begins, leak.jiffies) - 1][1]


def _more(found: Sequence[object]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""
