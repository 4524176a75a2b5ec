# SPDX-License-Identifier: GPL-2.0-only
"""Build what is missing, with progress, then run pytest over tests/: the default kernel in full and the debug kernel in
full, unless others are named. Arguments after -- go to pytest:

pyharness test --kernel debug-6.12 -- tests/driver -k einval -x
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import DEBUG_KERNEL, DEFAULT_KERNEL, KERNELS, KernelChoice, KernelTree
from pyharness.errors import Exit, HarnessError, UsageError
from pyharness.machine.accel import choose_accelerator
from pyharness.progress import Progress
from pyharness.report.directory import ReportDirectory
from pyharness.report.recorder import Recorder
from pyharness.report.session import run_session
from pyharness.report.subjects import Subject, subject_of

DEFAULT_JOBS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness test`."""
    parser.add_argument(
        "--kernel",
        action="append",
        default=[],
        metavar="NAME",
        help=f"run on this kernel, one of {', '.join(KERNELS)}; may be repeated (default: {DEFAULT_KERNEL} and "
        f"{DEBUG_KERNEL})",
    )
    parser.add_argument(
        "--kernel-dir",
        type=Path,
        metavar="DIR",
        help="run on the kernel of the source tree DIR as well as on those named",
    )
    add_session_arguments(parser)


def add_session_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that runs the suite."""
    parser.add_argument("--report", type=Path, metavar="DIR", help="write JUnit XML, KTAP and metadata.json into DIR")
    parser.add_argument(
        "-j",
        dest="jobs",
        type=_at_least_one,
        default=DEFAULT_JOBS,
        metavar="N",
        help="run N tests side by side, each worker on a kernel; 1 runs them in this process (default: %(default)s)",
    )
    parser.add_argument("pytest_args", nargs="*", metavar="-- PYTEST_ARGUMENT", help="passed to pytest")


def _at_least_one(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def execute(args: argparse.Namespace) -> int:
    """Run the suite on the chosen kernels."""
    choices: list[KernelChoice] = [*args.kernel]
    if args.kernel_dir:
        choices.append(KernelTree(args.kernel_dir))
    return run_suite(choices or [DEFAULT_KERNEL, DEBUG_KERNEL], args)[1]


def run_suite(choices: Sequence[KernelChoice], args: argparse.Namespace) -> tuple[Recorder, int]:
    """Prepare the kernels, say what the session runs with, and run it; `args` are those of `add_session_arguments`."""
    progress = Progress()
    unknown = [choice for choice in choices if isinstance(choice, str) and choice not in KERNELS]
    if unknown:
        raise UsageError(f"there is no kernel {unknown[0]!r}", mend="choose one of " + ", ".join(KERNELS))
    report = ReportDirectory.open(args.report) if args.report else None
    try:
        accelerator = choose_accelerator()
        progress.line(f"accelerator    {accelerator.name} ({accelerator.reason})")
        cache = Cache.open()
        subjects = [subject_of(choice, cache, progress) for choice in choices]
    except BaseException as error:
        if report:
            code = error.exit_code if isinstance(error, HarnessError) else Exit.HARNESS
            report.finish(Recorder(), int(code) if isinstance(error, Exception) else None, error=str(error))
        raise
    for subject in subjects:
        _identify(subject, progress)
    qemu = subjects[0].prepared.qemu
    progress.line(f"qemu           {qemu.version} {qemu.key}")
    if report:
        report.subjects, report.accelerator = subjects, accelerator
    os.chdir(repository.ROOT)
    recorder, status = run_session(args.pytest_args, subjects, args.jobs, report)
    if report:
        report.finish(recorder, status)
    return recorder, status


def _identify(subject: Subject, progress: Progress) -> None:
    prepared = subject.prepared
    modules = f"hv_azure_blob {prepared.modules.driver.hash}  hv_vmbus {prepared.modules.vmbus.hash} (patched)"
    progress.line(f"kernel         {subject.name} {prepared.kernel.release}  {modules}")
