# SPDX-License-Identifier: GPL-2.0-only
"""Show the ABI as all its sources have it, and where one differs from the others or from uapi/abi.json.

The sources are the header compiled for 64-bit and 32-bit programs, the built module's BTF, QEMU's header and the
mirrors in Python. An incompatible change cannot be recorded unless it comes with a new number (docs/abi.md).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from pyharness import abi, repository
from pyharness.abi.model import Interface
from pyharness.abi.record import FILE
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import ensure_kernel
from pyharness.commands import options
from pyharness.errors import Exit
from pyharness.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness abi`."""
    options.add_kernel(parser)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--record", action="store_true", help=f"make what the sources say the recorded ABI ({FILE})")
    action.add_argument("--json", action="store_true", help="print the ABI and the findings as JSON")


def execute(args: argparse.Namespace) -> Exit:
    """Examine, then record or print."""
    cache, progress = Cache.open(), Progress()
    kernel = ensure_kernel(options.chosen_kernel(args), cache, progress)
    found = abi.examine(repository.ROOT, kernel, cache, progress)
    if args.record:
        changes = found.record()
        print("\n".join(map(str, changes)) or f"{FILE}: nothing has changed")
        return Exit.OK
    if args.json:
        interfaces = {name: interface.as_json() for name, interface in found.interfaces.items()}
        print(json.dumps({"abi": interfaces, "findings": [asdict(one) for one in found.findings]}, indent=2))
    else:
        print("\n\n".join(_render(name, interface) for name, interface in found.interfaces.items()))
        print("\n" + ("\n".join(map(str, found.findings)) or f"all sources agree, and {FILE} with them"))
    return Exit.FAILED if found.findings else Exit.OK


def _render(name: str, interface: Interface) -> str:
    lines = [f"{name}:"]
    for struct in interface.structs.values():
        align = f", aligned to {struct.align}" if struct.align else ""
        lines.append(f"  {struct.name}  {struct.size} bytes{align}")
        lines += [f"    {one.offset:4}  {one.full_type:24} {one.name}" for one in struct.fields]
    lines += [f"  {name} = {value}" for name, value in interface.constants.items()]
    lines += [
        f"  {name} = {ioctl.command:#x}  number {ioctl.number}, argument {ioctl.argument}"
        for name, ioctl in interface.ioctls.items()
    ]
    return "\n".join(lines)
