# SPDX-License-Identifier: GPL-2.0-only
"""Results as KTAP version 1 (the kernel's Documentation/dev-tools/ktap.rst): one test per file, its tests within."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyharness.errors import Exit
from pyharness.report.recorder import Outcome, Result

_DIRECTIVES = {Exit.TIMEOUT: "TIMEOUT", Exit.HARNESS: "ERROR"}


def ktap(results: Iterable[Result]) -> str:
    """The whole document. What has not run is `not ok`, so that a run that was cut short reads as one."""
    files: dict[str, list[Result]] = {}
    for result in results:
        files.setdefault(result.file, []).append(result)
    lines = ["KTAP version 1", f"1..{len(files)}"]
    for number, (file, tests) in enumerate(files.items(), 1):
        lines += ["  KTAP version 1", f"  # Subtest: {file}", f"  1..{len(tests)}"]
        lines += [f"  {line}" for index, test in enumerate(tests, 1) for line in _test(index, test)]
        bad = any(test.outcome in (Outcome.FAILED, Outcome.NOT_RUN) for test in tests)
        skipped = all(test.outcome is Outcome.SKIPPED for test in tests)
        lines.append(f"{'not ok' if bad else 'ok'} {number} {_name(file)}{' # SKIP' if skipped else ''}")
    return "\n".join(lines) + "\n"


def _test(number: int, result: Result) -> Iterator[str]:
    name = _name(result.test)
    match result.outcome:
        case Outcome.PASSED:
            yield f"ok {number} {name}"
        case Outcome.SKIPPED:
            yield f"ok {number} {name} # SKIP {_line(result.reason)}"
        case Outcome.NOT_RUN:
            yield f"not ok {number} {name} # ERROR the session ended before it was run"
        case Outcome.FAILED:
            for line in result.reason.splitlines():
                yield f"# {line}".rstrip()
            fault = result.fault
            said = f"{_DIRECTIVES.get(Exit(fault.exit_code), '')} {_line(fault.message)}".strip() if fault else ""
            yield f"not ok {number} {name} # {said}"


def _name(text: str) -> str:
    """A description is anything but a hash sign or a line end."""
    return _line(text).replace("#", "%23")


def _line(text: str) -> str:
    return " ".join(text.split())
