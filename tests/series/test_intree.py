# SPDX-License-Identifier: GPL-2.0-only
"""The series in a kernel's tree: it builds there after each patch, and what was built there boots."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.errors import HarnessError
from pyharness.progress import Progress
from pyharness.report.subjects import Subject
from pyharness.series.gate import PROBE
from pyharness.series.intree import DoesNotBuild, build_in_tree
from pyharness.series.make import make
from pyharness.series.plan import DRIVER, FIXES
from pyharness.series.target import Target, source_of
from tests.series.conftest import change

pytestmark = pytest.mark.default_kernel_only("`pyharness series --check` does it on the others")

SOURCE = "kernel/hv_azure_blob.c"
# What there is time for: the whole ioctl contract, and the life of a device.
TESTS = ("tests/driver/test_errno.py", "tests/driver/test_lifetime.py")


def build(subject: Subject, target: Target, root: Path, *names: str) -> Path:
    cache, progress = Cache.open(), Progress(quiet=True)
    kernel = subject.prepared.kernel
    all_series = [make(name, target, PROBE, root) for name in names]
    return build_in_tree(kernel, source_of(kernel.name, cache, progress), all_series, cache, progress)


def test_what_is_built_in_the_tree_passes_the_drivers_tests(subject: Subject, target: Target) -> None:
    given = ["--modules", str(build(subject, target, repository.ROOT, DRIVER, FIXES))]
    command = [sys.executable, "-m", "pyharness", "test", *subject.arguments, *given, "-j1", "--", "-q", *TESTS]
    done = subprocess.run(command, cwd=repository.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.parametrize(
    ("file", "old", "new", "at_line", "said"),
    [
        (SOURCE, "\tkref_init(&dev->kref);\n", "\tint unused;\n\n\tkref_init(&dev->kref);\n", True, "unused variable"),
        (
            "kernel/series/driver.toml",
            "depends on {vmbus} && X86_64 && NET",
            "depends on X86_64",
            False,
            "=m, HV_AZURE_BLOB=y gives HV_AZURE_BLOB=y, not m",
        ),
    ],
    ids=["warning", "Kconfig"],
)
def test_planted_fault_is_named(
    file: str, old: str, new: str, at_line: bool, said: str, subject: Subject, target: Target, copy: Path
) -> None:
    number = change(copy / file, old, new)
    with pytest.raises(DoesNotBuild) as raised:
        build(subject, target, copy, DRIVER)
    assert {(one.file, one.line) for one in raised.value.findings} == {(file, number if at_line else 0)}
    assert said in raised.value.findings[0].message


def test_a_source_of_another_version(subject: Subject, target: Target) -> None:
    cache, progress = Cache.open(), Progress(quiet=True)
    other = source_of("debian-6.1", cache, progress)
    all_series = [make(DRIVER, target, PROBE, repository.ROOT)]
    with pytest.raises(HarnessError, match=r"but its source is 6\.1"):
        build_in_tree(subject.prepared.kernel, other, all_series, cache, progress)
