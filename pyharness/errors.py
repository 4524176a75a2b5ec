# SPDX-License-Identifier: GPL-2.0-only
"""Errors that end a command, each with the exit code that CI reads.

A message is one line that names the cause; `mend` is one line that says what to do about it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyharness.machine.crash import Kind


class Exit(IntEnum):
    """Exit codes of every `pyharness` command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    GUEST_CRASH = 3
    TIMEOUT = 4
    HARNESS = 5


VERDICTS = {
    Exit.OK: "pass",
    Exit.FAILED: "fail",
    Exit.USAGE: "usage",
    Exit.GUEST_CRASH: "crash",
    Exit.TIMEOUT: "timeout",
    Exit.HARNESS: "error",
}
"""What reports call each in one word."""


class HarnessError(Exception):
    """The harness or its environment failed: no disk, no package, QEMU died."""

    exit_code: Exit = Exit.HARNESS
    blamed = ""
    """The id of the test that caused it, when it shows in another one."""

    def __init__(self, message: str, *, mend: str = "", detail: str = "", kind: Kind | None = None) -> None:
        """`detail` is shown below the message as it is (a console tail, a compiler's output).

        `kind` says what became of a machine, where one is concerned.
        """
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.mend = mend
        self.detail = detail


class CheckFailed(HarnessError):
    """A test or a check found a fault in what it examined."""

    exit_code = Exit.FAILED


class UsageError(HarnessError):
    """The user asked for something that does not exist or cannot be."""

    exit_code = Exit.USAGE


class GuestCrashed(HarnessError):
    """The guest kernel crashed; `detail` holds the splat."""

    exit_code = Exit.GUEST_CRASH


class TimedOut(HarnessError):
    """Something that was waited for did not happen in its time; `detail` holds the console tail."""

    exit_code = Exit.TIMEOUT
