# SPDX-License-Identifier: GPL-2.0-only
"""A copy of the repository to plant faults in."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from pyharness import repository
from pyharness.checks.context import list_files


def copied_tree(root: Path) -> Path:
    """Copy all that git does not ignore to `root`, as a checkout of its own; returns `root`."""
    for file in list_files(repository.ROOT):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(repository.ROOT / file, root / file)
    subprocess.run(["git", "init", "-q", root], check=True)
    return root
