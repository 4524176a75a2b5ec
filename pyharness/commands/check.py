# SPDX-License-Identifier: GPL-2.0-only
"""Run the static checks on this checkout: one line each as it ends, with file:line of what it objects to.

What a check said of the same files and tools is remembered. A check whose tool is missing is skipped and says what to
install; a skip does not fail the command.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.checks import CHECKS
from pyharness.checks.check import Check, Uses
from pyharness.checks.context import Artifacts
from pyharness.checks.formats import FORMATS, lines_of
from pyharness.checks.run import Result, Verdict, mend, run_checks
from pyharness.errors import Exit, UsageError
from pyharness.progress import Progress

_WIDTH = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness check`."""
    parser.add_argument("--only", metavar="NAME", action="append", help="run this check alone; may be repeated")
    parser.add_argument(
        "--format",
        choices=("text", *FORMATS),
        default="text",
        help="how to print the results; the lines for people go to stderr when it is not text",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the results there instead of printing them")
    parser.add_argument("--fix", action="store_true", help="first mend what the tools can mend by themselves")
    parser.add_argument(
        "-j",
        dest="jobs",
        metavar="N",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="run this many checks at a time (as many as there are CPUs)",
    )


def execute(args: argparse.Namespace) -> Exit:
    """Run the checks; a skip does not fail, and says what is missing."""
    chosen = _choose(args.only)
    if args.jobs < 1:
        raise UsageError(f"-j {args.jobs} runs no check", mend="give it a number from 1")
    if args.format == "text" and args.output:
        raise UsageError("--output needs another format than text", mend="choose one with --format")
    people = sys.stdout if args.format == "text" or args.output else sys.stderr

    def tell(*lines: str) -> None:
        progress.line("\n".join(lines))

    progress = Progress(people)
    artifacts = Artifacts(Cache.open(), progress)
    started = time.monotonic()
    if args.fix:
        for check in mend(chosen, repository.ROOT, artifacts):
            tell(f"mended  {check.name}")
    tell(*_what_with([check for check in chosen if not check.missing], artifacts))
    results = run_checks(
        chosen,
        repository.ROOT,
        artifacts,
        jobs=args.jobs,
        on_result=lambda result: tell(*lines_of(result)),
    )
    tell(f"{_summary(results)} in {time.monotonic() - started:.1f} s")
    if args.format != "text":
        document = FORMATS[args.format](results)
        if args.output:
            _write(args.output, document)
        elif document:
            print(document)
    return Exit.FAILED if any(result.verdict is Verdict.FAIL for result in results) else Exit.OK


def _write(path: Path, document: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", mend="name a file that can be written") from error


def _choose(names: list[str] | None) -> list[Check]:
    known = {check.name: check for check in CHECKS}
    for name in names or ():
        if name not in known:
            raise UsageError(f"there is no check named {name}", mend="choose one of " + ", ".join(known))
    return [check for check in CHECKS if names is None or check.name in names]


def _what_with(checks: Sequence[Check], artifacts: Artifacts) -> list[str]:
    """The versions that the verdicts depend on."""
    versions = {need.name: need.version for check in checks for need in check.needs}
    tools = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    used = {use for check in checks for use in check.uses}
    lines = []
    if used & {Uses.KERNEL, Uses.KERNELS}:
        compiled = ", ".join(f"{kernel.name} {kernel.version}" for kernel in artifacts.kernels)
        lines.append(f"kernels    {compiled}")
    if used & {Uses.SCRIPTS, Uses.HEADERS}:
        lines.append(f"scripts    of Linux {artifacts.source.package.version}")
    return lines + textwrap.wrap(tools, _WIDTH, initial_indent="tools      ", subsequent_indent=" " * 11)


def _summary(results: Sequence[Result]) -> str:
    count = {verdict: sum(result.verdict is verdict for result in results) for verdict in Verdict}
    return f"{count[Verdict.PASS]} passed, {count[Verdict.FAIL]} failed, {count[Verdict.SKIP]} skipped"
