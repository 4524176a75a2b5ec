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
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.prepare import Prepared, prepare
from pyharness.client.blob import CHUNK_BYTES
from pyharness.commands import options
from pyharness.errors import CheckFailed, Exit, HarnessError, UsageError
from pyharness.machine.accel import Accelerator, choose_accelerator
from pyharness.progress import Progress
from pyharness.rig import NODE, Rig, rig

_MIB = 1 << 20
_VERDICTS = {
    Exit.FAILED: "fail",
    Exit.USAGE: "usage",
    Exit.GUEST_CRASH: "crash",
    Exit.TIMEOUT: "timeout",
    Exit.HARNESS: "error",
}


@dataclass
class Report:
    """What `--json` writes."""

    verdict: str = "incomplete"
    accelerator: str = ""
    kernel: str = ""
    qemu: str = ""
    driver: str = ""
    stages: list[dict[str, Any]] = field(default_factory=list)
    bytes: int = 0
    sha256_match: bool = False
    kernel_warnings: list[str] = field(default_factory=list)
    error: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness run`."""
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="the file to move (default: the kernel image that is booted)"
    )
    options.add_kernel(parser)
    options.add_qemu(parser)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result to PATH as JSON")


def execute(args: argparse.Namespace) -> Exit:
    """Run the main job; the report is written whatever becomes of it."""
    report, progress = Report(), Progress()
    if args.file:
        _examine(args.file)
    with _written(report, progress, args.json):
        accelerator = choose_accelerator()
        report.accelerator = accelerator.name
        progress.line(f"accelerator    {accelerator.name} ({accelerator.reason})")
        prepared = prepare(args.kernel, Cache.open(), progress, args.qemu)
        _identify(prepared, accelerator, report, progress)
        with rig(prepared, accelerator, progress) as running:
            _move(running, args.file or prepared.kernel.vmlinuz, report, progress)
            _settle(running, report, progress)
    return Exit.OK


def _examine(file: Path) -> None:
    mend = "name a file that you can read"
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise UsageError(f"cannot read {file}: not a regular file", mend=mend)
        file.open("rb").close()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {(error.strerror or str(error)).lower()}", mend=mend) from error


@contextmanager
def _written(report: Report, progress: Progress, path: Path | None) -> Iterator[None]:
    """Complete the report with the verdict, and write it, however the block ends."""
    try:
        if path:
            _write(path, report)
        yield
        report.verdict = "pass"
        progress.line(f"PASS           {report.bytes} bytes, SHA-256 equal, no kernel warning")
    except HarnessError as error:
        report.verdict = _VERDICTS[error.exit_code]
        report.error = error.message
        raise
    finally:
        report.stages = [asdict(stage) for stage in progress.stages]
        if path and path.parent.is_dir():
            _write(path, report)


def _write(path: Path, report: Report) -> None:
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.write_text(json.dumps(asdict(report), indent=2) + "\n")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot write {path}: {reason}", mend="name a file that can be written") from error


def _identify(prepared: Prepared, accelerator: Accelerator, report: Report, progress: Progress) -> None:
    """Say what the run is done with, before it is done."""
    modules = prepared.modules
    report.kernel = f"{prepared.kernel.name} {prepared.kernel.release}"
    report.qemu = f"{prepared.qemu.version} {prepared.qemu.key}"
    report.driver = modules.driver_hash
    progress.line(f"kernel         {report.kernel}")
    progress.line(f"qemu           {report.qemu}")
    progress.line(f"hv_azure_blob  {modules.driver_hash}")
    progress.line(f"hv_vmbus       {modules.vmbus_hash} (patched)")


def _move(running: Rig, file: Path, report: Report, progress: Progress) -> None:
    guest = running.machine.guest
    size = file.stat().st_size
    transfer = guest.module("pyharness.guest.transfer").Transfer(NODE, f"/run/{file.name}")
    digest = hashlib.sha256()
    with progress.stage("upload"), file.open("rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
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
        raise CheckFailed(f"{file} came back changed: SHA-256 {transfer.sha256()}, sent {digest.hexdigest()}")
    transfer.close()


def _rate(progress: Progress, verb: str, count: int, seconds: float) -> None:
    progress.line(f"  {verb} {count / _MIB:.1f} MiB through the ioctl in {seconds:.3f} s of guest time")


def _settle(running: Rig, report: Report, progress: Progress) -> None:
    """Nothing may be pending, both modules must go, and the kernel must not have complained."""
    pending = running.pending_requests()
    progress.line(f"pending        {len(pending)} requests")
    if pending:
        raise CheckFailed(f"{len(pending)} requests are pending after the last answer", detail="\n".join(pending))
    with progress.stage("unload"):
        running.unload()
    report.kernel_warnings = running.warnings()
    if report.kernel_warnings:
        count = len(report.kernel_warnings)
        raise CheckFailed(f"the guest's kernel gave {count} warnings", detail="\n".join(report.kernel_warnings))
