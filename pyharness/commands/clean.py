# SPDX-License-Identifier: GPL-2.0-only
"""Remove what runs left in build/ (logs, reports), and with --cache every cached artifact too."""

from __future__ import annotations

import argparse
import shutil

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.errors import Exit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness clean`."""
    parser.add_argument("--cache", action="store_true", help="also remove what was built (minutes to rebuild)")


def execute(args: argparse.Namespace) -> Exit:
    """Remove the build directory and, if asked, the cache."""
    shutil.rmtree(repository.BUILD, ignore_errors=True)
    if args.cache:
        cache = Cache.open()
        cache.forget()
        kept = [entry for entry in cache.entries() if not cache.remove(entry)]
        for entry in kept:
            print(f"kept {entry.kind}/{entry.key}: a run uses it now")
        for release in cache.remove_package_lists():
            print(f"kept the package lists of {release}: a run uses them now")
    return Exit.OK
