# SPDX-License-Identifier: GPL-2.0-only
"""Build what is missing, with progress, then run pytest over tests/. Arguments after -- go to pytest:

pyharness test -- tests/driver -k einval -x
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.prepare import prepare
from pyharness.commands import options
from pyharness.errors import Exit
from pyharness.progress import Progress

# What pytest and tests/conftest.py end with; anything else (2: interrupted) is no verdict.
_PYTEST_EXITS = {0: Exit.OK, 1: Exit.FAILED, 3: Exit.GUEST_CRASH, 4: Exit.USAGE}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness test`."""
    options.add_kernel(parser)
    parser.add_argument("pytest_args", nargs="*", metavar="-- PYTEST_ARGUMENT", help="passed to pytest")


def execute(args: argparse.Namespace) -> Exit:
    """Run the suite; a run of no test is never a pass."""
    prepare(args.kernel, Cache.open(), Progress())
    argv = [sys.executable, "-m", "pytest", *args.pytest_args]
    done = subprocess.run(argv, cwd=repository.ROOT, check=False, env={**os.environ, "PYHARNESS_KERNEL": args.kernel})
    return _PYTEST_EXITS.get(done.returncode, Exit.HARNESS)
