# SPDX-License-Identifier: GPL-2.0-only
"""Fuzz the driver until Ctrl-C, or as long as --executions or --seconds say.

ioctl: programs in the guest do anything with the device, and those that reach new code (KCOV) are changed further.
host:  the host does anything with the requests of a guest under load, and every one of them must come back.

What fails is made smaller, left in build/fuzz and printed as a test (docs/fuzzing.md).
"""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import DEBUG_KERNEL
from pyharness.commands import options
from pyharness.commands.start import told_guest
from pyharness.errors import Exit, UsageError
from pyharness.progress import Progress

FUZZERS = ("ioctl", "host")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness fuzz`."""
    parser.add_argument("fuzzer", choices=FUZZERS, metavar="ioctl|host", help="what does anything")
    options.add_kernel(parser)
    parser.set_defaults(kernel=DEBUG_KERNEL)
    options.add_qemu(parser)
    options.add_cold(parser)
    options.add_dump(parser)
    parser.add_argument(
        "--seed", type=int, metavar="N", help="what decides all that is random (default: another each time)"
    )
    parser.add_argument(
        "--executions", type=int, metavar="N", help="end after about so many ioctls, or packets of the host"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="end after about so many seconds")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="do what a file of build/fuzz or of the corpus says, once"
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        metavar="DIR",
        help="ioctl: the programs that reach new code, to which others are added (default: tests/fuzz/corpus/ioctl)",
    )
    parser.add_argument(
        "--minimise",
        action="store_true",
        help="ioctl: only remove from the corpus what it does not need to reach the same code",
    )


def execute(args: argparse.Namespace) -> Exit:
    """Prepare the guest, then fuzz."""
    if args.fuzzer == "host" and (args.corpus or args.minimise):
        raise UsageError(
            "the host fuzzer has no corpus", mend="leave --corpus and --minimise to `pyharness fuzz ioctl`"
        )
    progress = Progress()
    accelerator, prepared = told_guest(args, Cache.open(), progress)
    # Not earlier: the driver is being compiled while these are loaded.
    from pyharness.fuzz import session

    setting = session.Setting(prepared, accelerator, progress, cold=args.cold, dump=args.dump)
    if args.minimise:
        session.minimise_ioctl(setting, args.corpus)
    elif args.replay:
        {"ioctl": session.replay_ioctl, "host": session.replay_host}[args.fuzzer](setting, args.replay)
    else:
        seed = secrets.randbits(32) if args.seed is None else args.seed
        progress.line(f"seed           {seed}")
        limits = session.Limits(args.executions, args.seconds)
        if args.fuzzer == "host":
            session.fuzz_host(setting, seed, limits)
        else:
            session.fuzz_ioctl(setting, seed, limits, args.corpus)
    return Exit.OK
