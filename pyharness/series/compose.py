# SPDX-License-Identifier: GPL-2.0-only
"""The files of a tree after each patch of a series, from the sources that the build outside of the tree uses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pyharness.artifacts.patches import apply_patches, is_applied, touched_by
from pyharness.checks.finding import Finding
from pyharness.errors import CheckFailed
from pyharness.series.plan import Insert, PatchPlan, Plan
from pyharness.series.target import Target


class DoesNotFit(CheckFailed):
    """The repository's sources do not make a series for a tree; `finding` names the place."""

    def __init__(self, finding: Finding, *, mend: str, detail: str = "") -> None:
        super().__init__(f"{finding.file}: {finding.message}", mend=mend, detail=detail)
        self.finding = finding


@dataclass(frozen=True)
class Composed:
    """A patch of the series: what the files that it touches hold after it.

    Of those that are ours, `sources` has the path in the repository, and `originals` what it holds there.
    """

    plan: PatchPlan
    files: Mapping[str, str]
    sources: Mapping[str, str]
    originals: Mapping[str, str]


def touched_files(plan: Plan) -> list[str]:
    """The files of the tree that the series touches, those that it adds included."""
    names: set[str] = set()
    for patch in plan.patches:
        names |= {*(patch.files or {}), *(insert.file for insert in patch.inserts)}
        names |= set(touched_by([patch.diff])) if patch.diff else set()
        names |= {patch.compat.file} if patch.compat else set()
    return sorted(names)


def compose(plan: Plan, target: Target, author: str, root: Path, stage: Path) -> list[Composed]:
    """The patches in their order; what the tree has already is left out. `stage` is an empty directory to work in.

    Raises DoesNotFit when a patch or a file does not fit the tree.
    """
    for name in touched_files(plan):
        if (text := target.read(name)) is not None:
            _write(stage / name, text)
    words = {"{author}": author, "{vmbus}": target.vmbus_option}
    composed = []
    for patch in plan.patches:
        if patch.diff and not patch.files and is_applied(patch.diff, stage):
            continue
        sources = _sources(patch, target)
        for name, source in sources.items():
            if (stage / name).exists():
                finding = Finding(source, 0, f"{target.name} has {name} already", "exists")
                raise DoesNotFit(finding, mend="take a tree without the driver")
        changed: dict[str, str] = {}
        if patch.diff:
            _apply(patch.diff, stage, target, root)
            changed |= {name: (stage / name).read_text() for name in touched_by([patch.diff])}
        originals = {name: (root / source).read_text() for name, source in sources.items()}
        for name, text in originals.items():
            changed[name] = _rewritten(patch, name, sources[name], text, with_compat=_has_compat(patch, sources))
        for insert in patch.inserts:
            file = stage / insert.file
            before = changed.get(insert.file) or (file.read_text() if file.exists() else "")
            changed[insert.file] = _inserted(insert, before, words, patch.origin, target)
        for name, text in changed.items():
            _write(stage / name, text)
        composed.append(Composed(patch, changed, sources, originals))
    if not composed:
        raise DoesNotFit(
            Finding(plan.origin, 0, f"{target.name} has all of it already", "applied"), mend="take another"
        )
    return composed


def _apply(diff: Path, stage: Path, target: Target, root: Path) -> None:
    try:
        apply_patches([diff], stage, target.name)
    except CheckFailed as error:
        files = re.findall(r"^(?:checking|patching) file (\S+)", error.detail, re.M)
        where = files[-1] if files else touched_by([diff])[0]
        finding = Finding(str(diff.relative_to(root)), 0, f"does not apply to {where} of {target.name}", "applies")
        raise DoesNotFit(finding, mend="rebase the patch", detail=error.detail) from error


def _sources(patch: PatchPlan, target: Target) -> dict[str, str]:
    sources = dict(patch.files or {})
    if patch.compat and not all(re.search(has, target.read(file) or "") for file, has in patch.compat.unless):
        sources[patch.compat.file] = patch.compat.source
    return sources


def _has_compat(patch: PatchPlan, sources: Mapping[str, str]) -> bool:
    return patch.compat is not None and patch.compat.file in sources


def _rewritten(patch: PatchPlan, name: str, source: str, text: str, with_compat: bool) -> str:
    for rewrite in patch.rewrites:
        if rewrite.file != name or (rewrite.without_compat and with_compat):
            continue
        if (count := text.count(rewrite.old)) != 1:
            finding = Finding(source, 0, f"has {rewrite.old!r} {count} times, not once", "rewrite")
            raise DoesNotFit(finding, mend=f"correct what {patch.origin} rewrites")
        text = text.replace(rewrite.old, rewrite.new)
    return text


def _inserted(insert: Insert, text: str, words: Mapping[str, str], origin: str, target: Target) -> str:
    lines = text.splitlines(keepends=True)
    marks = [number for number, line in enumerate(lines) if re.search(insert.before or insert.after, line)]
    if not marks:
        message = f"{insert.file} of {target.name} has no line that matches {insert.before or insert.after}"
        raise DoesNotFit(Finding(origin, 0, message, "insert"), mend="name a line that the tree has")
    new = insert.text
    for word, value in words.items():
        new = new.replace(word, value)
    at = marks[-1] if insert.before else marks[-1] + 1
    return "".join([*lines[:at], new, *lines[at:]])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
