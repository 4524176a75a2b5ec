# SPDX-License-Identifier: GPL-2.0-only
"""The corpus of the ioctl fuzzer: a directory of programs, one a file, each of which reaches what no other does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyharness import repository
from pyharness.errors import UsageError
from pyharness.fuzz.program import Program, cost_of, from_json, to_json

IOCTL_CORPUS = repository.ROOT / "tests" / "fuzz" / "corpus" / "ioctl"


def read_programs(path: Path) -> tuple[Program, ...]:
    """The programs of a file. Raises UsageError."""
    try:
        return from_json(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read programs from {path}: {error}", mend="name a file that the fuzzer wrote"
        ) from error


def read_corpus(directory: Path) -> list[Program]:
    """All programs of the directory, in the order of their names; none when it does not exist. Raises UsageError."""
    return [program for path in sorted(directory.glob("*.json")) for program in read_programs(path)]


def name_of(programs: Sequence[Program]) -> str:
    """A name that tells these programs from others."""
    return hashlib.sha256(to_json(programs).encode()).hexdigest()[:12]


def add_to_corpus(directory: Path, program: Program) -> Path:
    """Write a program there."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name_of([program])}.json"
    path.write_text(to_json([program]))
    return path


def keep_in_corpus(directory: Path, programs: Sequence[Program]) -> None:
    """Remove all others from the directory."""
    names = {name_of([program]) for program in programs}
    for path in directory.glob("*.json"):
        if path.stem not in names:
            path.unlink()
    for program in programs:
        add_to_corpus(directory, program)


def covering(edges: Mapping[Program, frozenset[int]], given: frozenset[int] = frozenset()) -> list[Program]:
    """Few of these programs that reach together what all do, beyond what is `given`.

    Chosen is again and again what adds most for its cost.
    """
    missing = frozenset().union(*edges.values()) - given
    chosen = []
    while missing:
        best = max(edges, key=lambda program: len(edges[program] & missing) / cost_of(program))
        chosen.append(best)
        missing -= edges[best]
    return chosen
