# SPDX-License-Identifier: GPL-2.0-only
"""Build QEMU, the kernel modules and the guest image, or take them from the cache, and say where they are."""

from __future__ import annotations

import argparse
import json

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.prepare import prepare
from pyharness.commands import options
from pyharness.errors import Exit
from pyharness.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness build`."""
    options.add_kernel(parser)
    parser.add_argument("--update", action="store_true", help="take the newest kernel and QEMU that Debian serves now")
    parser.add_argument("--json", action="store_true", help="print what was built as JSON")


def execute(args: argparse.Namespace) -> Exit:
    """Build everything that a guest with this kernel needs."""
    cache, progress = Cache.open(), Progress()
    if args.update:
        cache.forget()
    prepared = prepare(options.chosen_kernel(args), cache, progress)
    built = {
        "kernel": {"release": prepared.kernel.release, "image": str(prepared.kernel.vmlinuz)},
        "hv_vmbus": {"hash": prepared.modules.vmbus.hash, "path": str(prepared.modules.vmbus.path)},
        "hv_azure_blob": {"hash": prepared.modules.driver.hash, "path": str(prepared.modules.driver.path)},
        "root_image": {"key": prepared.root_image.key, "path": str(prepared.root_image.path)},
        "qemu": {"version": prepared.qemu.version, "key": prepared.qemu.key, "path": str(prepared.qemu.binary)},
    }
    if args.json:
        print(json.dumps(built, indent=2))
    else:
        for name, facts in built.items():
            print(f"{name:14} " + "  ".join(facts.values()))
    return Exit.OK
