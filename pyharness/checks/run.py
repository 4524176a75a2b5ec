# SPDX-License-Identifier: GPL-2.0-only
"""Run checks beside each other, and remember what they said of which inputs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from pyharness.artifacts.cache import Cache
from pyharness.checks.check import Check
from pyharness.checks.context import Artifacts, Context, list_files
from pyharness.checks.finding import Finding
from pyharness.checks.tools import Runner
from pyharness.errors import CheckFailed

_REMEMBERED = 16
"""How many verdicts of one check are kept: those of some branches."""


class Verdict(Enum):
    """What a check says of the tree."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class Result:
    """What became of a check: `findings` of a failed one, what is `missing` for a skipped one.

    `seconds` is how long it took, zero when its verdict was `remembered`.
    """

    check: Check
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    missing: tuple[str, ...] = ()
    seconds: float = 0.0
    remembered: bool = False


def run_checks(
    checks: Sequence[Check],
    root: Path,
    artifacts: Artifacts,
    *,
    jobs: int,
    on_result: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Examine the checkout at `root`; the results are in the order of `checks`, `on_result` hears each as it ends.

    A check that lacks a tool is skipped. Raises HarnessError when what a check uses cannot be fetched; however this is
    left, no tool is left running.
    """
    results: dict[str, Result] = {}

    def done(result: Result) -> None:
        results[result.check.name] = result
        on_result(result)

    cache, runner = artifacts.cache, Runner()
    files = list_files(root)
    with tempfile.TemporaryDirectory(prefix="pyharness-check-") as directory, ThreadPoolExecutor(jobs, "check") as pool:
        pending = {}
        try:
            for check in checks:
                if missing := check.missing:
                    done(Result(check, Verdict.SKIP, missing=tuple(missing)))
                    continue
                work = Path(directory) / check.name
                work.mkdir()
                context = Context(root, files, artifacts, runner, work)
                key = check.key(context)
                if (known := _recall(cache, check, key)) is not None:
                    done(_judged(check, known, remembered=True))
                else:
                    pending[pool.submit(_examine, check, context)] = key
            for future in as_completed(pending):
                result, lasting = future.result()
                if lasting:
                    _remember(cache, result, pending[future])
                done(result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.stop()
            raise
    return [results[check.name] for check in checks]


def mend(checks: Sequence[Check], root: Path, artifacts: Artifacts) -> list[Check]:
    """Have each check that can mend the tree do so, one after the other; returns those that did."""
    mended = []
    with tempfile.TemporaryDirectory(prefix="pyharness-check-") as directory:
        context = Context(root, list_files(root), artifacts, Runner(), Path(directory))
        for check in checks:
            if check.fix and not check.missing:
                check.fix(context)
                mended.append(check)
    return mended


def _examine(check: Check, context: Context) -> tuple[Result, bool]:
    """The result, and whether it says something lasting about the inputs."""
    started = time.monotonic()
    try:
        findings, lasting = tuple(check.examine(context)), True
    except CheckFailed as error:
        said = "; ".join([error.message, *error.detail.splitlines()])
        findings, lasting = (Finding(".", 0, said, "broken"),), False
    return _judged(check, findings, seconds=time.monotonic() - started), lasting


def _judged(check: Check, findings: Sequence[Finding], *, seconds: float = 0.0, remembered: bool = False) -> Result:
    verdict = Verdict.FAIL if findings else Verdict.PASS
    return Result(check, verdict, tuple(sorted(set(findings))), seconds=seconds, remembered=remembered)


def _recall(cache: Cache, check: Check, key: str) -> list[Finding] | None:
    known = (cache.recall(f"check-{check.name}") or {}).get("verdicts", [])
    return next(([Finding(**one) for one in findings] for kept, findings in known if kept == key), None)


def _remember(cache: Cache, result: Result, key: str) -> None:
    name = f"check-{result.check.name}"
    known = (cache.recall(name) or {}).get("verdicts", [])
    cache.remember(name, {"verdicts": [[key, [asdict(one) for one in result.findings]], *known][:_REMEMBERED]})
