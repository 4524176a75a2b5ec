# SPDX-License-Identifier: GPL-2.0-only
"""Boot the guest and move FILE through /dev/azure_blob and back.

Builds what is missing, boots the kernel on the fake Hyper-V, loads the patched hv_vmbus and the driver, uploads FILE
as a blob through the ioctl, reads it back, compares SHA-256, lists what is pending, unloads both modules, and reports
each stage's seconds and any warning of the guest's kernel.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.modules import Modules
from pyharness.artifacts.prepare import Prepared, prepare
from pyharness.client.blob import CHUNK_BYTES, BlobServiceError
from pyharness.client.errors import HostError
from pyharness.commands import options
from pyharness.commands.start import told_accelerator
from pyharness.errors import VERDICTS, CheckFailed, Exit, HarnessError, UsageError
from pyharness.progress import Progress

if TYPE_CHECKING:
    from pyharness.rig import Rig
    from pyharness.vsp.backends.choice import BackendChoice
    from pyharness.vsp.scenario import Scenario

_BLOB = "pyharness-run"
_MIB = 1 << 20
_QUIET = "no kernel warning"


@dataclass
class Report:
    """What `--json` writes."""

    verdict: str = "incomplete"
    accelerator: str = ""
    kernel: str = ""
    qemu: str = ""
    driver: str = ""
    scenario: str = ""
    backend: str = ""
    host: dict[str, int] = field(default_factory=dict)
    """How many requests each behaviour of the scenario has had."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    bytes: int = 0
    sha256_match: bool = False
    kernel_warnings: list[str] = field(default_factory=list)
    error: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness run`."""
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="the file to move (default: hv_vmbus with its debug information)",
    )
    options.add_rig(parser)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result to PATH as JSON")


def execute(args: argparse.Namespace) -> Exit:
    """Run the main job; the report is written whatever becomes of it."""
    report, progress = Report(), Progress()
    given = _open(args.file) if args.file else None
    if args.scenario:
        options.chosen_scenario(args)  # a file that is none is known at once
        report.scenario = str(args.scenario)
    backend = options.chosen_backend(args)
    report.backend = backend.name
    with _written(report, progress, args.json):
        trace = options.trace_file(args)
        accelerator = told_accelerator(progress)
        report.accelerator = accelerator.name
        prepared = prepare(options.chosen_kernel(args), Cache.open(), progress, args.qemu)
        _identify(prepared, report, progress)
        # Not earlier: the driver is being compiled while this is loaded.
        from pyharness.rig import rig

        chosen = options.rig_options(args, trace)
        identify = partial(_identify_modules, report, progress)
        with (
            rig(prepared, accelerator, progress, chosen, identify) as running,
            given or _open(prepared.modules.vmbus.debug) as source,
            _judged(running, report, progress, chosen.scenario.tolerate),
            _played(running, chosen.scenario, report, progress),
        ):
            _move(running, source, backend, report, progress)
    return Exit.OK


def _open(file: Path) -> BinaryIO:
    mend = "name a file that you can read"
    try:
        # Opening a pipe would wait for its writer.
        if not stat.S_ISREG(file.stat().st_mode):
            raise UsageError(f"cannot read {file}: not a regular file", mend=mend)
        return file.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {_reason(error)}", mend=mend) from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


@contextmanager
def _written(report: Report, progress: Progress, path: Path | None) -> Iterator[None]:
    """Complete the report with the verdict and write it, however the block ends."""
    if path and not _is_special(path):
        _write(path, report)  # a path that cannot be written is known at once
    try:
        yield
        report.verdict = "pass"
    except BaseException as error:
        report.verdict, report.error = _verdict_of(error), str(error)
        with suppress(UsageError):
            _finish(report, progress, path)
        raise
    _finish(report, progress, path)
    warnings = f"{len(report.kernel_warnings)} kernel warnings, all tolerated" if report.kernel_warnings else _QUIET
    progress.line(f"PASS           {report.bytes} bytes, SHA-256 equal, nothing left behind, {warnings}")


def _verdict_of(error: BaseException) -> str:
    if isinstance(error, HarnessError):
        return VERDICTS[error.exit_code]
    return "error" if isinstance(error, Exception) else "interrupted"


def _finish(report: Report, progress: Progress, path: Path | None) -> None:
    report.stages = [asdict(stage) for stage in progress.stages]
    if path:
        _write(path, report)


def _is_special(path: Path) -> bool:
    """A terminal or a pipe, which a rename would replace by a file."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _write(path: Path, report: Report) -> None:
    text = json.dumps(asdict(report), indent=2) + "\n"
    try:
        if _is_special(path):
            path.write_text(text)
            return
        if path.is_dir():
            raise IsADirectoryError(None, "is a directory")
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            aside.write_text(text)
            aside.replace(path)
        finally:
            with suppress(OSError):
                aside.unlink()
    except OSError as error:
        raise UsageError(f"cannot write {path}: {_reason(error)}", mend="name a file that can be written") from error


def _identify(prepared: Prepared, report: Report, progress: Progress) -> None:
    """Say what the run is done with, before it is done."""
    report.kernel = f"{prepared.kernel.name} {prepared.kernel.release}"
    report.qemu = f"{prepared.qemu.version} {prepared.qemu.key}"
    progress.line(f"kernel         {report.kernel}")
    progress.line(f"qemu           {report.qemu}")


def _identify_modules(report: Report, progress: Progress, modules: Modules) -> None:
    report.driver = modules.driver.hash
    progress.line(f"hv_azure_blob  {modules.driver.hash}")
    progress.line(f"hv_vmbus       {modules.vmbus.hash} (patched)")


@contextmanager
def _judged(running: Rig, report: Report, progress: Progress, tolerated: Sequence[str] = ()) -> Iterator[None]:
    """What fails in here is the driver's or the host's doing, and what the kernel says of it is part of the report.

    The driver is judged in either case: a request that fails leaves nothing behind either.
    """
    log = len(running.machine.guest.dmesg())
    failure: CheckFailed | None = None
    try:
        try:
            yield
        except CheckFailed as error:
            failure = error
        except (OSError, HostError, BlobServiceError, ValueError) as error:
            said = "\n".join(str(message) for message in running.machine.guest.dmesg(log))
            failure = CheckFailed(f"the device failed: {error}", detail=said)
        try:
            _settle(running, progress)
            running.judge.verdict(tolerated)
            with progress.stage("judge"):
                running.judge.finish()
        except CheckFailed as error:
            if failure is None:
                raise
            failure.detail += f"\n{error.message}"
        if failure:
            raise failure
    finally:
        with suppress(HarnessError):  # a guest that died has said so already
            report.kernel_warnings = running.warnings()


@contextmanager
def _played(running: Rig, scenario: Scenario, report: Report, progress: Progress) -> Iterator[None]:
    """Let the host behave as the scenario says, and say how often it did."""
    if scenario.summary:
        progress.line(f"scenario       {scenario.summary}")
    with running.vsp.behaving(*scenario.behaviours) as host:
        try:
            yield
        finally:
            report.host = dict(host.did)
            if report.host:
                progress.line("host           " + ", ".join(f"{name} {count}" for name, count in report.host.items()))


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    while True:
        try:
            piece = source.read(CHUNK_BYTES)
        except OSError as error:
            raise UsageError(f"cannot read {source.name}: {_reason(error)}", mend="name another file") from error
        if not piece:
            return
        yield piece


def _move(running: Rig, source: BinaryIO, backend: BackendChoice, report: Report, progress: Progress) -> None:
    blob = f"{backend.container}/{_BLOB}"
    kind = running.machine.guest.module("pyharness.guest.transfer").Transfer
    transfer = kind(running.node, blob, backend.host, backend.sas)
    with closing(transfer):
        _transfer(transfer, source, report, progress)


def _transfer(transfer: Any, source: BinaryIO, report: Report, progress: Progress) -> None:
    size = os.fstat(source.fileno()).st_size
    digest = hashlib.sha256()
    with progress.stage("upload"):
        for piece in _pieces(source):
            digest.update(piece)
            transfer.upload(piece)
            report.bytes += len(piece)
            progress.step(f"upload {report.bytes / _MIB:.0f} of {size / _MIB:.0f} MiB")
        stored = transfer.commit()
    _rate(progress, "uploaded", report.bytes, transfer.upload_seconds)
    if stored != report.bytes:
        raise CheckFailed(f"{report.bytes} bytes were uploaded, the blob has {stored}")
    with progress.stage("download"):
        done, total = 0, None
        while done != total:
            done, total = transfer.download()
            progress.step(f"download {done / _MIB:.0f} of {total / _MIB:.0f} MiB")
    _rate(progress, "downloaded", done, transfer.download_seconds)
    report.sha256_match = transfer.sha256() == digest.hexdigest()
    if not report.sha256_match:
        raise CheckFailed(f"the data came back changed: SHA-256 {transfer.sha256()}, sent {digest.hexdigest()}")
    transfer.delete()


def _rate(progress: Progress, verb: str, count: int, seconds: float) -> None:
    rate = f", {count / _MIB / seconds:.0f} MiB/s" if count else ""
    progress.line(f"  {verb} {count / _MIB:.1f} MiB through the ioctl in {seconds:.3f} s of guest time{rate}")


def _settle(running: Rig, progress: Progress) -> None:
    """Nothing may be pending, and both modules must go."""
    pending = running.pending_requests()
    progress.line(f"pending        {len(pending)} requests")
    if pending:
        raise CheckFailed(f"{len(pending)} requests are pending after the last answer", detail="\n".join(pending))
    with progress.stage("unload"):
        running.unload()
