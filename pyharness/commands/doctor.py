# SPDX-License-Identifier: GPL-2.0-only
"""Say what this machine can do, what is missing, and how to get it. Changes nothing.

Exits 5 if something is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pyharness import repository
from pyharness.artifacts.cache import GIB, Cache
from pyharness.checks import CHECKS
from pyharness.checks.needs import Tool
from pyharness.errors import Exit, HarnessError
from pyharness.machine.accel import choose_accelerator

_DISK_NEEDED = 6 * GIB


@dataclass(frozen=True)
class Finding:
    """One fact about this machine; `mend` is set when something is missing."""

    name: str
    fact: str
    mend: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness doctor`."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def execute(args: argparse.Namespace) -> Exit:
    """Examine everything, then report."""
    findings = [examine() for examine in _EXAMINATIONS]
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{'MISSING' if finding.mend else 'ok':8} {finding.name:12} {finding.fact}")
            if finding.mend:
                print(f"{'':21} mend: {finding.mend}")
    return Exit.HARNESS if any(finding.mend for finding in findings) else Exit.OK


def _host() -> Finding:
    fact = f"{platform.machine()}, {os.cpu_count()} CPUs, {_os_name()}"
    if platform.machine() != "x86_64":
        return Finding("host", fact, "the guest is x86-64 and so are the packages: use an x86-64 machine")
    return Finding("host", fact)


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _python() -> Finding:
    return Finding("python", f"{platform.python_version()} at {sys.prefix}")


def _packages() -> Finding:
    listed = (repository.ROOT / "debian-packages.txt").read_text().splitlines()
    wanted = [word for line in listed for word in line.partition("#")[0].split()]
    if shutil.which("dpkg-query") is None:
        return Finding("packages", "this is not Debian: there is no dpkg", "use a Debian 12 or 13 machine or container")
    query = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}, ${Provides}\n"],
        capture_output=True,
        text=True,
        check=False,
    )
    # As in scripts/setup: what an installed package provides is there too.
    lines = [line.removeprefix("installed ") for line in query.stdout.splitlines() if line.startswith("installed ")]
    installed = {word.partition("(")[0].strip() for line in lines for word in line.split(",")}
    missing = [package for package in wanted if package not in installed]
    if missing:
        command = "apt-get install --no-install-recommends " + " ".join(missing)
        return Finding(
            "packages", f"{len(missing)} of {len(wanted)} Debian packages are missing", f"as root: {command}"
        )
    return Finding("packages", f"all {len(wanted)} Debian packages are installed")


def _checks() -> Finding:
    needs = sorted({need for check in CHECKS for need in check.needs}, key=lambda need: need.name)
    missing = [need for need in needs if need.missing]
    if not missing:
        return Finding("checks", "all tools are there: " + ", ".join(need.name for need in needs))
    packages = sorted(need.package for need in missing if isinstance(need, Tool))
    mends = [f"install the Debian packages {' '.join(packages)}"] if packages else []
    if len(packages) < len(missing):
        mends.append("run scripts/setup, for the virtual environment")
    return Finding(
        "checks", f"without {', '.join(need.name for need in missing)}, checks are skipped", "; ".join(mends)
    )


def _accelerator() -> Finding:
    accelerator = choose_accelerator()
    return Finding("accelerator", f"{accelerator.name}: {accelerator.reason}")


def _disk() -> Finding:
    root = Cache.open().root
    free = shutil.disk_usage(root).free
    fact = f"{free / GIB:.1f} GiB free at {root}"
    if free < _DISK_NEEDED:
        return Finding(
            "disk", fact, f"a first build needs {_DISK_NEEDED // GIB} GiB: free some, or set PYHARNESS_CACHE"
        )
    return Finding("disk", fact)


def _cache() -> Finding:
    entries = Cache.open().entries()
    size = sum(entry.size for entry in entries)
    kinds = ", ".join(sorted({entry.kind for entry in entries})) or "empty; `pyharness build` fills it"
    return Finding("cache", f"{len(entries)} entries, {size / GIB:.2f} GiB: {kinds}")


def _memory() -> Finding:
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    fact = f"{available / GIB:.1f} GiB available"
    if available < 2 * GIB:
        return Finding("memory", fact, "a guest and a build need 2 GiB: stop something, or use a larger machine")
    return Finding("memory", fact)


def _guarded(examine: Callable[[], Finding]) -> Callable[[], Finding]:
    """An examination that fails is a finding too."""

    def guarded() -> Finding:
        try:
            return examine()
        except HarnessError as error:
            return Finding(examine.__name__.strip("_"), error.message, error.mend or "see above")

    return guarded


_EXAMINATIONS = tuple(
    _guarded(examine) for examine in (_host, _python, _packages, _checks, _memory, _disk, _cache, _accelerator)
)
