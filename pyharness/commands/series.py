# SPDX-License-Identifier: GPL-2.0-only
"""Write the driver, or with --fixes the fixes of hv_vmbus, as a series of patches for a kernel tree, ready to be sent.

With --check: see instead that both series apply, keep the kernel's style, build after each patch, boot, and pass the
driver's tests, in the trees of several kernels (docs/series.md).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import KERNELS, ensure_kernel
from pyharness.bench import RESULTS
from pyharness.commands.options import at_least_one
from pyharness.errors import Exit, UsageError
from pyharness.progress import Progress
from pyharness.series.gate import PROBE, findings
from pyharness.series.intree import DoesNotBuild, build_in_tree
from pyharness.series.make import Author, Options, default_date, make
from pyharness.series.plan import DRIVER, FIXES
from pyharness.series.target import SERIES_KERNELS, named_target, source_of, tree_target
from pyharness.series.write import MBOX, check_directory, write

_TESTS = "tests/driver"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness series`."""
    tree = parser.add_mutually_exclusive_group()
    tree.add_argument(
        "--kernel",
        metavar="NAME",
        help=f"make it for the source of this kernel, one of {', '.join(KERNELS)} (default: {SERIES_KERNELS[-1]}, "
        f"the newest; with --check: {', '.join(SERIES_KERNELS)})",
    )
    tree.add_argument(
        "--kernel-dir",
        type=Path,
        metavar="DIR",
        help="make it for this Linux tree, which stays as it is; in a git tree for its HEAD",
    )
    parser.add_argument("-o", dest="output", type=Path, metavar="DIR", help="default: build/series/KERNEL")
    parser.add_argument("--fixes", action="store_true", help="the series of fixes of hv_vmbus instead of the driver's")
    parser.add_argument("--author", metavar='"NAME <MAIL>"', help="who signs it off (default: as git is configured)")
    parser.add_argument("--version", type=at_least_one, metavar="N", help="default: what kernel/series says")
    parser.add_argument("--to", action="append", default=[], metavar="ADDRESS", help="send it here too; repeatable")
    parser.add_argument("--cc", action="append", default=[], metavar="ADDRESS", help="a copy here too; repeatable")
    parser.add_argument(
        "--no-recipients", action="store_true", help="do not ask the tree's get_maintainer.pl whom to send it to"
    )
    parser.add_argument("--check", action="store_true", help="write nothing, and see whether it could be accepted")


def execute(args: argparse.Namespace) -> int:
    """Write a series, or check both."""
    return _check(args) if args.check else _write(args)


def _write(args: argparse.Namespace) -> int:
    root, progress = repository.ROOT, Progress()
    author = Author.parse(args.author) if args.author else Author.configured(root)
    options = Options(
        author=author,
        date=default_date(root),
        version=args.version,
        to=tuple(args.to),
        cc=tuple(args.cc),
        ask_tree=not args.no_recipients,
    )
    target = (
        tree_target(args.kernel_dir)
        if args.kernel_dir
        else named_target(args.kernel or SERIES_KERNELS[-1], Cache.open(), progress)
    )
    name = FIXES if args.fixes else DRIVER
    output = args.output or repository.BUILD / "series" / f"{target.name}{'-fixes' if args.fixes else ''}"
    check_directory(output)
    progress.line(f"kernel         {target.name}: {target.base}")
    progress.line(f"author         {author}")
    benchmark = repository.BUILD / RESULTS
    if name == DRIVER:
        if benchmark.is_file():
            options = replace(options, benchmark=benchmark)
        progress.line(f"figures        {benchmark if options.benchmark else f'none: there is no {benchmark}'}")
    with progress.stage("series"):
        series = make(name, target, options, root)
        mails = write(series, output)
    for mail in mails:
        print(mail)
    print(output / MBOX)
    progress.line(f"send it with   git send-email {output}/*.patch")
    return Exit.OK


def _check(args: argparse.Namespace) -> int:
    given = ("kernel_dir", "output", "author", "version", "to", "cc", "fixes", "no_recipients")
    if useless := [name for name in given if getattr(args, name)]:
        raise UsageError(
            f"--check examines both series for named kernels: --{useless[0].replace('_', '-')} is of no use",
            mend="leave it out, or leave --check out",
        )
    kernels = [args.kernel] if args.kernel else list(SERIES_KERNELS)
    root, cache, progress = repository.ROOT, Cache.open(), Progress()
    for name in kernels:
        progress.line(f"kernel         {name}: {named_target(name, cache, progress).base}")
    with progress.stage("examining the patches"):
        found = findings(root, cache, progress, kernels)
    _tell("applies, style, maintainers", found)
    if found:
        return Exit.FAILED
    built: dict[str, Path] = {}
    for name in kernels:
        with progress.stage(f"kernel {name}"):
            kernel = ensure_kernel(name, cache, progress)
        all_series = [make(one, named_target(name, cache, progress), PROBE, root) for one in (DRIVER, FIXES)]
        try:
            with progress.stage(f"building in the tree of {name}"):
                built[name] = build_in_tree(kernel, source_of(name, cache, progress), all_series, cache, progress)
            _tell(f"builds in the tree of {name}", [])
        except DoesNotBuild as error:
            _tell(f"builds in the tree of {name}", error.findings)
    if len(built) < len(kernels):
        return Exit.FAILED
    return _boot(built, cache, progress)


def _tell(what: str, found: Sequence[object]) -> None:
    print(f"{'FAIL' if found else 'pass'}  {what}", flush=True)
    for finding in found:
        print(f"      {finding}", flush=True)


def _boot(built: dict[str, Path], cache: Cache, progress: Progress) -> int:
    """Run the driver's tests on what was built."""
    # pytest and what the guests need take a while to load, and a failed build has no use for them.
    from pyharness.report.session import Session
    from pyharness.report.subjects import subject_of

    subjects = [subject_of(name, cache, progress, modules) for name, modules in built.items()]
    os.chdir(repository.ROOT)
    code = Session([_TESTS], subjects, jobs=2).run()
    sys.stdout.flush()
    _tell(f"boots, and passes {_TESTS}", [f"exit code {code}"] if code else [])
    return code
