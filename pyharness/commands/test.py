# SPDX-License-Identifier: GPL-2.0-only
"""Build what is missing, with progress, then run pytest over tests/: the default kernel in full and the debug kernel in
full, unless others are named. Arguments after -- go to pytest:

pyharness test --kernel debug-6.12 -- tests/driver -k einval -x
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import DEBUG_KERNEL, DEFAULT_KERNEL, KERNELS, KernelChoice, spec_of
from pyharness.commands import options
from pyharness.commands.start import told_accelerator
from pyharness.errors import Exit, HarnessError, UsageError
from pyharness.progress import Progress
from pyharness.report.directory import ReportDirectory
from pyharness.report.faults import Fault
from pyharness.report.recorder import Recorder
from pyharness.report.session import Session
from pyharness.report.subjects import Subject, arguments_for, subject_of

_DEFAULT_JOBS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness test`."""
    parser.add_argument(
        "--kernel",
        action="append",
        default=[],
        metavar="NAME",
        help=f"run on this kernel, one of {', '.join(KERNELS)}; may be repeated, and given with --kernel-dir "
        f"(default: {DEFAULT_KERNEL} and {DEBUG_KERNEL})",
    )
    options.add_kernel_tree(parser, parser)
    parser.add_argument(
        "--modules",
        type=Path,
        metavar="DIR",
        help="test the hv_vmbus.ko and hv_azure_blob.ko of this directory, made for the one kernel that is named",
    )
    add_session_arguments(parser)


def add_session_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that runs the suite."""
    options.add_cold(parser)
    options.add_dump(parser)
    parser.add_argument("--report", type=Path, metavar="DIR", help="write JUnit XML, KTAP and metadata.json into DIR")
    parser.add_argument(
        "-j",
        dest="jobs",
        type=options.at_least_one,
        default=_DEFAULT_JOBS,
        metavar="N",
        help="run N tests side by side, in workers that stay on a kernel; 1 runs them in this process, one by one "
        "(default: %(default)s)",
    )
    parser.add_argument("pytest_args", nargs="*", metavar="-- PYTEST_ARGUMENT", help="passed to pytest")


def execute(args: argparse.Namespace) -> int:
    """Run the suite on the chosen kernels."""
    tree = options.chosen_tree(args)
    choices: list[KernelChoice] = [*args.kernel, *([tree] if tree else [])]
    if args.modules and len(choices) != 1:
        raise UsageError("--modules is for one kernel", mend="name the kernel that they were made for")
    return prepare_session(choices or [DEFAULT_KERNEL, DEBUG_KERNEL], args, modules=args.modules).run()


def prepare_session(
    choices: Sequence[KernelChoice], args: argparse.Namespace, keep_going: bool = False, modules: Path | None = None
) -> Session:
    """Prepare the kernels and say what the session runs with; `args` are those of `add_session_arguments`.

    `modules` is a directory with modules to test instead of building them.
    Raises UsageError for a kernel that does not exist, and for a report directory that cannot be written, before
    anything is done; and what `prepare` raises, unless `keep_going`: then the session fails, and runs on the others.
    """
    progress, cache = Progress(), Cache.open()
    recorder = Recorder()
    report = ReportDirectory.open(args.report) if args.report else None
    accelerator = told_accelerator(progress)
    try:
        _check_names(choices)
        subjects = _prepared(choices, recorder, cache, progress, keep_going, modules)
    except HarnessError as error:
        if report:
            recorder.problems[:] = [Fault.of(error)]
            report.finish(recorder, int(error.exit_code))
        raise
    for subject in subjects:
        _identify(subject, progress)
    if report:
        report.subjects, report.accelerator, report.cold = subjects, accelerator, args.cold
    os.chdir(repository.ROOT)
    return Session(args.pytest_args, subjects, args.jobs, args.cold, report, recorder, dump=args.dump)


def _check_names(choices: Sequence[KernelChoice]) -> None:
    for choice in choices:
        if isinstance(choice, str):
            spec_of(choice)
    if twice := [choice for choice, count in Counter(choices).items() if count > 1]:
        raise UsageError(f"kernel {twice[0]} is named twice", mend="name each kernel once")


def _prepared(
    choices: Sequence[KernelChoice],
    recorder: Recorder,
    cache: Cache,
    progress: Progress,
    keep_going: bool,
    own_modules: Path | None,
) -> list[Subject]:
    subjects: list[Subject] = []
    failed: list[HarnessError] = []
    for choice in choices:
        progress.line(f"preparing      {arguments_for(choice)[1]}")
        try:
            subject = subject_of(choice, cache, progress, own_modules)
        except HarnessError as error:
            if not keep_going or error.exit_code is Exit.USAGE:
                raise
            failed.append(error)
            progress.line(f"kernel         {choice} is left out: {error.message}")
        else:
            if subject.name in [other.name for other in subjects]:
                raise UsageError(f"the tree is called like kernel {subject.name}", mend="rename its directory")
            subjects.append(subject)
    if not subjects:
        raise failed[0]
    recorder.problems += [Fault.of(error) for error in failed]
    return subjects


def _identify(subject: Subject, progress: Progress) -> None:
    prepared = subject.prepared
    modules, qemu = prepared.modules, prepared.qemu
    progress.line(f"kernel         {subject.name} {prepared.kernel.release}")
    progress.line(f"  modules      hv_azure_blob {modules.driver.hash}, hv_vmbus {modules.vmbus.hash} (patched)")
    progress.line(f"  qemu         {qemu.version} {qemu.key}")
