# SPDX-License-Identifier: GPL-2.0-only
"""What a series is made of: kernel/series/NAME.toml, and the patches that it names."""

from __future__ import annotations

import email
import email.policy
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyharness.errors import HarnessError

DRIVER, FIXES = "driver", "fixes"


@dataclass(frozen=True)
class Rewrite:
    """Text of a file of ours that occurs in it once, and what takes its place in the tree."""

    file: str
    old: str
    new: str
    without_compat: bool
    """Only where the compat header is left out."""


@dataclass(frozen=True)
class Insert:
    """Lines that a file of the tree gets, before or after the last line that matches."""

    file: str
    text: str
    before: str
    after: str


@dataclass(frozen=True)
class Compat:
    """The compat header, for a tree in which a file lacks what a regular expression tells."""

    file: str
    source: str
    unless: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PatchPlan:
    """One patch. `origin` is what to blame for its text, relative to the repository's root."""

    origin: str
    subject: str
    message: str
    diff: Path | None = None
    files: Mapping[str, str] | None = None
    """By path in the tree, the path in the repository."""
    compat: Compat | None = None
    rewrites: tuple[Rewrite, ...] = ()
    inserts: tuple[Insert, ...] = ()


@dataclass(frozen=True)
class Plan:
    """One series. `changes` is the changelog: since which version, and what."""

    name: str
    origin: str
    version: int
    subject: str
    letter: str
    changes: tuple[tuple[int, str], ...]
    patches: tuple[PatchPlan, ...]


def load_plan(name: str, root: Path) -> Plan:
    """The series `name` of the repository at `root`, or of a copy of its kernel/ and uapi/.

    Raises HarnessError when its file is damaged.
    """
    origin = f"kernel/series/{name}.toml"
    table = _table(root, name)
    try:
        patches = [_patch(root, origin, row) for row in table.get("patch", [])]
        if name == FIXES:
            taken = [row["diff"] for row in _table(root, DRIVER)["patch"] if "diff" in row]
            diffs = sorted((root / "kernel/patches").glob("*.patch"))
            patches += [_of_diff(root, diff) for diff in diffs if diff.name.partition("-")[0] not in taken]
        return Plan(
            name=name,
            origin=origin,
            version=table["version"],
            subject=table["subject"],
            letter=table["letter"].strip("\n"),
            changes=tuple((row["since"], row["text"].strip("\n")) for row in table.get("changes", [])),
            patches=tuple(patches),
        )
    except (KeyError, TypeError) as error:
        raise HarnessError(f"{origin} lacks or misplaces {error}", mend="compare it with docs/series.md") from error


def _table(root: Path, name: str) -> dict[str, Any]:
    path = root / "kernel/series" / f"{name}.toml"
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise HarnessError(f"kernel/series/{name}.toml cannot be read: {error}", mend="correct it") from error


def _patch(root: Path, origin: str, row: dict[str, Any]) -> PatchPlan:
    diff = _diff(root, row["diff"]) if "diff" in row else None
    if diff and "subject" not in row:
        return _of_diff(root, diff)
    compat = row.get("compat")
    return PatchPlan(
        origin=origin,
        subject=row["subject"],
        message=row["message"].strip("\n"),
        diff=diff,
        files=row.get("files", {}),
        compat=Compat(compat["file"], compat["source"], tuple((need["file"], need["has"]) for need in compat["unless"]))
        if compat
        else None,
        rewrites=tuple(
            Rewrite(one["file"], one["old"], one["new"], one.get("without_compat", False))
            for one in row.get("rewrite", [])
        ),
        inserts=tuple(
            Insert(one["file"], one["text"].removeprefix("\n"), one.get("before", ""), one.get("after", ""))
            for one in row.get("insert", [])
        ),
    )


def _diff(root: Path, number: str) -> Path:
    found = sorted((root / "kernel/patches").glob(f"{number}-*.patch"))
    if len(found) != 1:
        raise HarnessError(
            f"kernel/patches has {len(found)} patches {number}, not one", mend="correct the name, or kernel/series"
        )
    return found[0]


def _of_diff(root: Path, diff: Path) -> PatchPlan:
    """A patch whose message is that of the file."""
    mail = email.message_from_string(diff.read_text(), policy=email.policy.default)
    message, _, _ = str(mail.get_payload()).partition("\n---\n")
    subject = re.sub(r"^\[PATCH[^]]*\] ", "", " ".join(str(mail["Subject"]).split()))
    return PatchPlan(str(diff.relative_to(root)), subject, message.strip("\n"), diff)
