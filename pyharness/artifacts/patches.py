# SPDX-License-Identifier: GPL-2.0-only
"""Lay our files and patches over a source tree that is not ours."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyharness.artifacts.cache import files_below
from pyharness.artifacts.run import CommandFailed, run
from pyharness.errors import CheckFailed, HarnessError


def apply_patches(patches: Sequence[Path], tree: Path, what: str, failure: type[HarnessError] = CheckFailed) -> None:
    """Apply patches to a tree, exactly. Raises `failure` with patch's own words when one does not fit."""
    for patch in patches:
        try:
            run(["patch", "-p1", "--fuzz=0", "--batch", "--forward", "--no-backup-if-mismatch", "-i", patch], cwd=tree)
        except CommandFailed as error:
            raise failure(
                f"{patch.name} does not apply to {what}",
                mend="rebase the patch",
                detail="\n".join(error.output),
            ) from error


def touched_by(patches: Sequence[Path]) -> list[str]:
    """The files that patches change, relative to the tree's root."""
    return sorted({name for patch in patches for name in re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(), re.M)})


def is_applied(patch: Path, tree: Path) -> bool:
    """Whether the tree has the patch already: it could be taken back, exactly."""
    try:
        run(["patch", "-p1", "--fuzz=0", "--force", "--reverse", "--dry-run", "-i", patch], cwd=tree)
    except CommandFailed:
        return False
    return True


def lay_over(tree: Path, state: Path, own: Mapping[str, Path], patches: Sequence[Path]) -> None:
    """Make `tree` its pristine self plus `own` files plus `patches`, touching only files whose content changes.

    Untouched files keep their time stamps, so that a build in the tree compiles only what an edit concerns. `state`
    keeps the originals of what was changed, and a list of it.
    """
    originals, stage, listing = state / "originals", state / "stage", state / "overlay.json"
    if stage.exists():
        shutil.rmtree(stage)
    stage.mkdir()
    before = set(json.loads(listing.read_text())) if listing.exists() else set()
    patched = {name for patch in patches for name in re.findall(r"^(?:---|\+\+\+) [ab]/(\S+)", patch.read_text(), re.M)}
    for name in patched | own.keys():
        kept = originals / name
        if name not in before and (tree / name).exists() and not kept.exists():
            _replace(kept, (tree / name).read_bytes())
        if name in patched and kept.exists():
            _replace(stage / name, kept.read_bytes())
        if name in own:
            _replace(stage / name, own[name].read_bytes())
    apply_patches(patches, stage, "QEMU", HarnessError)
    staged = files_below(stage, base=stage)
    listing.write_text(json.dumps(sorted(before | staged.keys())))
    for name in before - staged.keys():
        if (originals / name).exists():
            _replace(tree / name, (originals / name).read_bytes())
        else:
            (tree / name).unlink(missing_ok=True)
    for name, path in staged.items():
        content = path.read_bytes()
        if not (tree / name).exists() or (tree / name).read_bytes() != content:
            _replace(tree / name, content)
    listing.write_text(json.dumps(sorted(staged)))
    shutil.rmtree(stage)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.new")
    aside.write_bytes(content)
    if path.exists():
        aside.chmod(path.stat().st_mode)
    aside.replace(path)
