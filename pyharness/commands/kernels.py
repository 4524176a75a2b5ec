# SPDX-License-Identifier: GPL-2.0-only
"""List the kernels that have a name: what each is for, and what the cache has of it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import DEBUG_KERNEL, DEFAULT_KERNEL, KERNELS, cached_kernel
from pyharness.errors import Exit

_MIB = 1 << 20
_ROLES = {DEFAULT_KERNEL: "default, tested", DEBUG_KERNEL: "tested"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness kernels`."""
    parser.add_argument("--json", action="store_true", help="print the list as JSON; sizes are in bytes")


def execute(args: argparse.Namespace) -> Exit:
    """Print the table."""
    cache = Cache.open()
    sizes = {(entry.kind, entry.key): entry.size for entry in cache.entries()}
    rows = [_row(name, cache, sizes) for name in KERNELS]
    if args.json:
        print(json.dumps(rows, indent=2))
        return Exit.OK
    line = "{:12} {:22} {:>9}  {:16} {}"
    print(line.format("NAME", "RELEASE", "CACHED", "make test", "WHAT IT IS"))
    for row in rows:
        size = f"{row['bytes'] / _MIB:.0f} MiB" if row["release"] else "no"
        print(line.format(row["name"], row["release"] or "-", size, _ROLES.get(row["name"], "-"), row["summary"]))
    snapshots = [size for (kind, _), size in sizes.items() if kind == "snapshot"]
    print(f"{len(snapshots)} snapshots of booted guests take {sum(snapshots) / _MIB:.0f} MiB more")
    return Exit.OK


def _row(name: str, cache: Cache, sizes: dict[tuple[str, str], int]) -> dict[str, Any]:
    kernel = cached_kernel(name, cache)
    return {
        "name": name,
        "summary": KERNELS[name].summary,
        "release": kernel.release if kernel else None,
        "bytes": sizes.get(("kernel", kernel.key), 0) if kernel else 0,
    }
