# SPDX-License-Identifier: GPL-2.0-only
"""Run the static checks on this checkout: one line each, then what a failing one printed."""

from __future__ import annotations

import argparse
import json

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import DEFAULT_KERNEL, ensure_kernel
from pyharness.checks import CHECKS, Verdict
from pyharness.errors import Exit, UsageError
from pyharness.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness check`."""
    parser.add_argument("--only", metavar="NAME", help="run this check alone")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def execute(args: argparse.Namespace) -> Exit:
    """Run the checks; a skip does not fail, and says what is missing."""
    chosen = [check for check in CHECKS if args.only in (None, check.name)]
    if not chosen:
        raise UsageError(
            f"there is no check named {args.only}", mend="choose one of " + ", ".join(check.name for check in CHECKS)
        )
    # checkpatch comes with the kernel's source, in the version that the project follows.
    kernel_source = ensure_kernel(DEFAULT_KERNEL, Cache.open(), Progress()).source
    results = []
    for check in chosen:
        result = check.examine(kernel_source)
        results.append({"check": check.name, "verdict": result.verdict.value, "detail": result.detail})
        if not args.json:
            print(f"{result.verdict.value:4}  {check.name:12} {check.summary}", flush=True)
            if result.detail:
                print("      " + result.detail.replace("\n", "\n      "), flush=True)
    if args.json:
        print(json.dumps(results, indent=2))
    failed = any(result["verdict"] == Verdict.FAIL.value for result in results)
    return Exit.FAILED if failed else Exit.OK
