# SPDX-License-Identifier: GPL-2.0-only
"""Why a test failed: the decoded reason before any traceback, in values that a worker can hand to the controller."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pyharness.errors import VERDICTS, Exit, HarnessError
from pyharness.machine.vm import Machine

WORST_FIRST = (Exit.GUEST_CRASH, Exit.HARNESS, Exit.TIMEOUT, Exit.USAGE, Exit.FAILED)

_PACKAGE = Path(__file__).resolve().parent.parent
_TAIL_LINES = 40
_SUITES_TIMEOUT = re.compile(r"^Failed: Timeout \(>\S+s\) from pytest-timeout")


@dataclass(frozen=True)
class Fault:
    """Why a test failed. `where` is the last line of the test or its fixtures that was reached."""

    exit_code: int
    message: str
    mend: str = ""
    detail: str = ""
    where: str = ""
    blamed: str = ""
    """The id of the test that caused it, when it is another one than that in which it shows."""

    @classmethod
    def of(cls, error: HarnessError) -> Fault:
        """What an error says of itself."""
        return cls(int(error.exit_code), error.message, error.mend, error.detail, blamed=error.blamed)

    @property
    def verdict(self) -> str:
        """The class of the fault in one word."""
        return VERDICTS[Exit(self.exit_code)]


class CrashLine(NamedTuple):
    """What pytest's summary takes the message from."""

    path: str
    lineno: int
    message: str


class Explanation:
    """A failure as pytest shows it: what happened, what to do about it, what was seen, and where the test was."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.reprcrash = CrashLine(fault.where, 0, f"{fault.verdict}: {fault.message}")

    def __str__(self) -> str:
        fault = self.fault
        parts = [f"{fault.verdict}: {fault.message}"]
        parts += [f"  mend: {fault.mend}"] if fault.mend else []
        parts += ["", fault.detail.rstrip("\n")] if fault.detail else []
        parts += ["", f"raised at {fault.where}"] if fault.where else []
        return "\n".join(parts)

    def toterminal(self, writer: Any) -> None:
        """Write it in pytest's colours."""
        first, *rest = str(self).split("\n")
        writer.line(first, red=True, bold=True)
        for line in rest:
            writer.line(line)


def fault_of(item: pytest.Item, error: BaseException) -> tuple[Fault, bool]:
    """The fault behind an exception, and whether it tells all: then no traceback is needed."""
    found = list(_harness_errors(error))
    where = _where(item, error)
    if not found:
        said = pytest.ExceptionInfo.from_exception(error).exconly().strip().split("\n")[0]
        code = Exit.TIMEOUT if _SUITES_TIMEOUT.search(said) else Exit.FAILED
        return Fault(int(code), said, where=where), False
    found.sort(key=lambda one: WORST_FIRST.index(one.exit_code))
    worst = found[0]
    leaves = list(_leaves(error))
    others = [f"also: {one.message}" for one in leaves if isinstance(one, HarnessError) and one is not worst]
    notes = getattr(worst, "__notes__", ())
    detail = "\n".join((worst.detail.rstrip("\n"), *notes, *dict.fromkeys(others))).strip("\n")
    complete = all(isinstance(leaf, HarnessError) for leaf in leaves)
    return replace(Fault.of(worst), detail=detail, where=where), complete


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _harness_errors(error: BaseException) -> Iterator[HarnessError]:
    """Those in an exception, its group, and what it was raised from: a check that failed because the guest was dead."""
    todo, seen = [error], set()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, HarnessError):
            yield one
        if isinstance(one, BaseExceptionGroup):
            todo.extend(one.exceptions)
        if one.__cause__:
            todo.append(one.__cause__)
        elif one.__context__ and not one.__suppress_context__:
            todo.append(one.__context__)


def _where(item: pytest.Item, error: BaseException) -> str:
    root = item.config.rootpath
    first = next(_leaves(error))
    if first.__traceback__ is None:
        return ""
    for entry in reversed(pytest.ExceptionInfo.from_exception(first).traceback):
        path = Path(entry.path)
        if path.is_relative_to(root) and not path.is_relative_to(_PACKAGE) and "site-packages" not in path.parts:
            return f"{path.relative_to(root)}:{entry.lineno + 1}"
    return ""


def machines_of(item: pytest.Item) -> list[Machine]:
    """The machines that the test's fixtures hold, themselves or as `machine`.

    Attributes are looked up without calling anything: a value may be a proxy of an object in a guest that is dead.
    """
    values: Iterable[object] = (getattr(item, "funcargs", None) or {}).values()
    found: list[Machine] = []
    for value in values:
        for candidate in (value, inspect.getattr_static(value, "machine", None)):
            if isinstance(candidate, Machine) and candidate not in found:
                found.append(candidate)
    return found


def consoles_of(machines: Iterable[Machine]) -> Iterator[tuple[str, str]]:
    """The console log and the last lines of each machine that has got as far as having a console."""
    for machine in machines:
        try:
            console = machine.console
        except HarnessError:
            continue
        yield str(console.log), console.tail(_TAIL_LINES)
