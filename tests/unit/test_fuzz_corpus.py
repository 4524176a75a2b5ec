# SPDX-License-Identifier: GPL-2.0-only
"""The corpus: a directory of programs, of which those stay that are needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyharness.errors import UsageError
from pyharness.fuzz.corpus import (
    IOCTL_CORPUS,
    add_to_corpus,
    covering,
    keep_in_corpus,
    name_of,
    read_corpus,
    read_programs,
)
from pyharness.fuzz.program import Program, Step

FIRST: Program = (Step.of("ioctl"),)
SECOND: Program = (Step.of("ioctl", pad=1),)
THIRD: Program = (Step.of("rebind"),)


def test_the_repositorys_corpus_is_readable_and_named_by_content() -> None:
    paths = sorted(IOCTL_CORPUS.glob("*.json"))
    assert len(paths) >= 10
    for path in paths:
        (program,) = read_programs(path)
        assert path.stem == name_of([program])


def test_what_is_added_is_read(tmp_path: Path) -> None:
    directory = tmp_path / "corpus"
    assert read_corpus(directory) == []
    for program in (FIRST, SECOND, FIRST):
        add_to_corpus(directory, program)
    assert sorted(map(str, read_corpus(directory))) == sorted(map(str, (FIRST, SECOND)))


def test_what_is_not_kept_is_removed(tmp_path: Path) -> None:
    for program in (FIRST, SECOND):
        add_to_corpus(tmp_path, program)
    (tmp_path / "README").write_text("stays")
    keep_in_corpus(tmp_path, [SECOND, THIRD])
    assert set(read_corpus(tmp_path)) == {SECOND, THIRD}
    assert (tmp_path / "README").exists()


def test_covering_leaves_out_what_others_reach() -> None:
    edges = {FIRST: frozenset({1, 2}), SECOND: frozenset({2}), THIRD: frozenset({3})}
    assert set(covering(edges)) == {FIRST, THIRD}
    assert covering({FIRST: frozenset()}) == []
    assert covering(edges, given=frozenset({1, 2})) == [THIRD]


def test_covering_takes_the_cheaper_of_equals() -> None:
    assert covering({THIRD: frozenset({1}), FIRST: frozenset({1})}) == [FIRST]


@pytest.mark.parametrize("content", [None, "no JSON", "[[[]]]"])
def test_a_file_without_programs_is_a_usage_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"cannot read programs from .*file\.json"):
        read_programs(path)
