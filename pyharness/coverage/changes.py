# SPDX-License-Identifier: GPL-2.0-only
"""Which lines of a patched file the patches made."""

from __future__ import annotations

import difflib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pyharness.artifacts.patches import touched_by
from pyharness.artifacts.run import run


def changed_lines(patches: Sequence[Path], tree: Path, name: str) -> set[int]:
    """The numbers of those lines of the file `name` in `tree` that `patches`, applied there in this order, made.

    They are found by taking the patches back, since the line numbers in a patch are those of another kernel.
    """
    with tempfile.TemporaryDirectory() as temporary:
        original = Path(temporary)
        for path in {*touched_by(patches), name}:
            (original / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tree / path, original / path)
        for patch in reversed(patches):
            run(["patch", "-p1", "--reverse", "--batch", "--no-backup-if-mismatch", "-i", patch], cwd=original)
        before, after = ((root / name).read_text().splitlines() for root in (original, tree))
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    kept = {number + 1 for block in blocks for number in range(block.b, block.b + block.size)}
    return set(range(1, len(after) + 1)) - kept
