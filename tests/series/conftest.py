# SPDX-License-Identifier: GPL-2.0-only
"""Trees, and a copy of the repository's sources to plant faults into."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import DEFAULT_KERNEL
from pyharness.progress import Progress
from pyharness.series.gate import checkpatch_of
from pyharness.series.target import Target, named_target


@pytest.fixture(scope="session")
def target() -> Target:
    return tree_of(DEFAULT_KERNEL)


@pytest.fixture(scope="session")
def checkpatch() -> Path:
    return checkpatch_of(Cache.open(), Progress(quiet=True))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("kernel", "uapi"):
        shutil.copytree(repository.ROOT / name, tmp_path / "copy" / name)
    return tmp_path / "copy"


def tree_of(name: str) -> Target:
    return named_target(name, Cache.open(), Progress(quiet=True))


def change(file: Path, old: str, new: str) -> int:
    """Replace text that is there once; returns the number of its first line."""
    text = file.read_text()
    assert text.count(old) == 1, f"{file} has {text.count(old)} times {old!r}"
    file.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1
