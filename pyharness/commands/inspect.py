# SPDX-License-Identifier: GPL-2.0-only
"""Show what the driver holds in a guest's memory: devices, open files, and requests with their callers.

FROM is a dump that --dump has left, or the debug socket of a running guest, which `pyharness shell` names. Kernel and
modules are known by their build ids; their symbols come from the cache.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import drgn

from pyharness.artifacts.cache import Cache
from pyharness.debug.program import open_dump, open_live
from pyharness.debug.survey import Device, render, survey
from pyharness.errors import CheckFailed, Exit, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness inspect`."""
    parser.add_argument("source", type=Path, metavar="FROM", help="a memory dump, or a running guest's debug socket")
    parser.add_argument("--json", action="store_true", help="print JSON")


def execute(args: argparse.Namespace) -> Exit:
    """Open, survey, print."""
    devices = _survey(args.source)
    if args.json:
        print(json.dumps([asdict(device) for device in devices], indent=2, default=str))
    else:
        print(render(devices))
    return Exit.OK


def _survey(source: Path) -> tuple[Device, ...]:
    cache = Cache.open()
    if not source.exists():
        raise UsageError(f"there is no {source}", mend="name a dump, or the debug socket of a running guest")
    try:
        if source.is_socket():
            with open_live(source, cache) as program:
                return survey(program)
        return survey(open_dump(source, cache))
    except drgn.FaultError as error:
        raise CheckFailed(f"the driver's objects in {source} are damaged: {error}") from error
