# SPDX-License-Identifier: GPL-2.0-only
"""Arguments that several subcommands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pyharness.artifacts.kernels import DEFAULT_KERNEL, KERNELS, KernelChoice, KernelTree
from pyharness.errors import UsageError
from pyharness.trace.output import empty_transcript

if TYPE_CHECKING:
    from pyharness.rig import RigOptions
    from pyharness.vsp.backends.choice import BackendChoice
    from pyharness.vsp.scenario import Scenario


def add_kernel(parser: argparse.ArgumentParser) -> None:
    """--kernel NAME, or --kernel-dir DIR."""
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--kernel",
        default=DEFAULT_KERNEL,
        metavar="NAME",
        help=f"the guest's kernel, one of {', '.join(KERNELS)} (default: %(default)s)",
    )
    add_kernel_tree(parser, chosen)


def add_kernel_tree(
    parser: argparse.ArgumentParser, where: argparse._MutuallyExclusiveGroup | argparse.ArgumentParser
) -> None:
    """--kernel-dir DIR with --kernel-config FILE."""
    where.add_argument(
        "--kernel-dir", type=Path, metavar="DIR", help="build and boot this Linux source tree, which stays as it is"
    )
    parser.add_argument(
        "--kernel-config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="CONFIG_ lines to build the tree of --kernel-dir with, on top of kernel/configs/guest.config "
        "(kernel/configs/debug.config makes it a debug kernel); may be repeated",
    )


def chosen_kernel(args: argparse.Namespace) -> KernelChoice:
    """What --kernel or --kernel-dir chose."""
    return chosen_tree(args) or str(args.kernel)


def chosen_tree(args: argparse.Namespace) -> KernelTree | None:
    """What --kernel-dir chose, if it was given."""
    if args.kernel_config and not args.kernel_dir:
        raise UsageError("--kernel-config is for a tree of your own", mend="give --kernel-dir as well")
    return KernelTree(args.kernel_dir, tuple(args.kernel_config)) if args.kernel_dir else None


def add_qemu(parser: argparse.ArgumentParser) -> None:
    """--qemu BINARY."""
    parser.add_argument(
        "--qemu",
        type=Path,
        metavar="BINARY",
        help="a QEMU of your own with the devices of qemu/, instead of building one",
    )


def add_debugging(parser: argparse.ArgumentParser) -> None:
    """--dump and --gdb."""
    add_dump(parser)
    parser.add_argument(
        "--gdb", action="store_true", help="wait for gdb once the modules are loaded, and say how to attach it"
    )


def add_dump(parser: argparse.ArgumentParser) -> None:
    """--dump."""
    parser.add_argument(
        "--dump",
        action="store_true",
        help="leave the memory of a guest that crashes or hangs beside its logs, for `pyharness inspect`",
    )


def add_trace(parser: argparse.ArgumentParser) -> None:
    """--trace FILE."""
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="record what passes over VMBus in FILE, for `pyharness trace`; it may be read meanwhile",
    )


def trace_file(args: argparse.Namespace) -> Path | None:
    """What --trace named, made empty. Raises UsageError when it cannot be written."""
    return empty_transcript(args.trace) if args.trace else None


def add_scenario(parser: argparse.ArgumentParser) -> None:
    """--scenario FILE."""
    parser.add_argument(
        "--scenario", type=Path, metavar="FILE", help="let the host behave as FILE says (docs/behaviours.md)"
    )


def chosen_scenario(args: argparse.Namespace) -> Scenario:
    """What --scenario chose, or else an honest host. Raises UsageError."""
    # Behaviours take a tenth of a second to load, at the start of every command otherwise.
    from pyharness.vsp.scenario import HONEST, Scenario

    return Scenario.load(args.scenario) if args.scenario else HONEST


def add_backend(parser: argparse.ArgumentParser) -> None:
    """--backend memory|http=URL."""
    parser.add_argument(
        "--backend",
        default="memory",
        metavar="memory|http=URL",
        help="what carries the requests out: an object store of the harness's own, or the blob service where the "
        "container URL is (with its SAS if it needs one), such as http=http://127.0.0.1:10000/ACCOUNT/CONTAINER?SAS "
        "(default: %(default)s)",
    )


def chosen_backend(args: argparse.Namespace) -> BackendChoice:
    """What --backend chose. Raises UsageError."""
    from pyharness.vsp.backends.choice import parse_backend

    try:
        return parse_backend(args.backend)
    except ValueError as error:
        raise UsageError(f"--backend: {error}", mend="give memory, or http= and the URL of a container") from error


def add_rig(parser: argparse.ArgumentParser) -> None:
    """All that a rig is started with."""
    for add in (add_kernel, add_qemu, add_cold, add_debugging, add_trace, add_scenario, add_backend):
        add(parser)


def rig_options(args: argparse.Namespace, trace: Path | None) -> RigOptions:
    """How the arguments of `add_rig` start a rig; `trace` is what `trace_file` returned. Raises UsageError."""
    # What guests need takes a while to load, at the start of every command otherwise.
    from pyharness.rig import RigOptions

    return RigOptions(
        cold=args.cold,
        dump=args.dump,
        gdb=args.gdb,
        trace=trace,
        scenario=chosen_scenario(args),
        backend=chosen_backend(args),
    )


def at_least_one(text: str) -> int:
    """An argument's type: a number from 1."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def add_cold(parser: argparse.ArgumentParser) -> None:
    """--cold."""
    parser.add_argument("--cold", action="store_true", help="boot instead of restoring the snapshot of an earlier boot")
