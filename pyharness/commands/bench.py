# SPDX-License-Identifier: GPL-2.0-only
"""Measure the driver against HTTP through the guest's TCP stack, in one guest and in turns (docs/benchmark.md).

Prints a table, and leaves bench.json and plots in build/bench. Every figure is one of this machine and its accelerator:
what TCG takes says nothing of Azure.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.bench import RESULTS
from pyharness.commands import options
from pyharness.commands.start import told_guest
from pyharness.errors import CheckFailed, Exit, UsageError
from pyharness.machine.config import MachineConfig
from pyharness.progress import Progress

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZES = "4K,64K,1M,4M,16M"
_CLIENTS = "1,10,100"
_CEILING = (2, 5, 20, 50)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness bench`."""
    options.add_kernel(parser)
    options.add_qemu(parser)
    parser.add_argument(
        "--sizes", type=_sizes, metavar="N[K|M],...", help=f"bytes of each request (default: {_SIZES}; 4K with --quick)"
    )
    parser.add_argument(
        "--clients", type=_numbers, metavar="N,...", help=f"processes (default: {_CLIENTS}; 1,2 with --quick)"
    )
    parser.add_argument("--repetitions", type=int, metavar="N", help="of every cell (default: 5; 1 with --quick)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="of each cell, at least (default: 1; 0.2 with --quick)"
    )
    parser.add_argument(
        "--verify",
        type=_size,
        metavar="N[M|G]",
        help="bytes to write and read back through the driver, each of them hashed (default: 10G; 16M with --quick)",
    )
    parser.add_argument(
        "--backend", action="append", metavar="NAME", help="what is behind the VSP; may be repeated (default: memory)"
    )
    parser.add_argument(
        "--instructions",
        action="store_true",
        help="only count the guest's instructions for one request, and compare them with the record (TCG)",
    )
    parser.add_argument("--record", action="store_true", help="with --instructions: make what is counted the record")
    parser.add_argument("--quick", action="store_true", help="only see that everything works")
    parser.add_argument(
        "--output",
        type=Path,
        default=repository.BUILD / RESULTS.parent,
        metavar="DIR",
        help="where bench.json and the plots go (default: build/bench)",
    )


def _size(text: str) -> int:
    match = re.fullmatch(r"([1-9]\d{0,9})([KMG]?)", text)
    if not match:
        raise ValueError(text)
    return int(match[1]) * _UNITS[match[2]]


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(_size, text.split(",")))


def _numbers(text: str) -> tuple[int, ...]:
    return _sizes(text)


def execute(args: argparse.Namespace) -> Exit:
    """Prepare the guest, then measure or count."""
    if args.record and not args.instructions:
        raise UsageError("--record is for --instructions", mend="give --instructions as well")
    return _count(args) if args.instructions else _measure(args)


def _count(args: argparse.Namespace) -> Exit:
    progress, cache = Progress(), Cache.open()
    accelerator, prepared = told_guest(args, cache, progress)
    # Not at the top: the driver is being compiled while this is loaded.
    from pyharness.bench.instructions import RECORD, counting, differences, record, recorded

    with counting(prepared, accelerator, progress, cache) as running, progress.stage("count"):
        counts = running.count()
    for request, parts in counts.items():
        print(f"{request:10}", "  ".join(f"{part} {count}" for part, count in parts.items()))
    name = prepared.kernel.name
    if args.record:
        record(name, counts)
        progress.line(f"recorded       {RECORD}")
        return Exit.OK
    if name not in (known := recorded()):
        raise UsageError(f"nothing is recorded of kernel {name}", mend="give --record")
    if found := differences(counts, known[name]):
        raise CheckFailed(
            "a request takes another number of instructions than recorded",
            detail="\n".join(found),
            mend="if that is wanted: pyharness bench --instructions --record",
        )
    return Exit.OK


def _measure(args: argparse.Namespace) -> Exit:
    # Not at the top: half a second, at the start of every command otherwise.
    from pyharness.bench.plots import write_plots
    from pyharness.bench.results import Results
    from pyharness.bench.session import Plan, machine_of, measure
    from pyharness.bench.stands import STANDS

    quick = args.quick
    plan = Plan(
        sizes=args.sizes or _sizes("4K" if quick else _SIZES),
        clients=args.clients or _numbers("1,2" if quick else _CLIENTS),
        ceiling=() if quick or args.clients else _CEILING,
        repetitions=args.repetitions or (1 if quick else 5),
        seconds=args.seconds or (0.2 if quick else 1.0),
        verify_bytes=args.verify or _size("16M" if quick else "10G"),
        backends=tuple(args.backend or ("memory",)),
    )
    if unknown := [name for name in plan.backends if name not in STANDS]:
        raise UsageError(f"there is no backend {unknown[0]!r}", mend="choose one of " + ", ".join(STANDS))
    if max(plan.sizes) > 31 << 20:
        raise UsageError("a request carries at most 31M", mend="give smaller --sizes")
    args.output.mkdir(parents=True, exist_ok=True)

    progress = Progress()
    accelerator, prepared = told_guest(args, Cache.open(), progress)
    kernel, qemu = prepared.kernel, prepared.qemu
    results = Results(
        accelerator=accelerator.name,
        kernel=f"{kernel.name} {kernel.release}",
        machine=machine_of(MachineConfig.cpus),
        qemu=f"{qemu.version} {qemu.key}",
        driver="",
        repetitions=plan.repetitions,
    )
    measure(prepared, accelerator, progress, plan, results)
    path = args.output / RESULTS.name
    path.write_text(json.dumps(results.as_json(), indent=1) + "\n")
    print(results.table())
    for written in (path, *write_plots(results, args.output)):
        progress.line(f"written        {written}")
    return Exit.OK
