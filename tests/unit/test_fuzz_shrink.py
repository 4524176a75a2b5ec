# SPDX-License-Identifier: GPL-2.0-only
"""What fails is made smaller."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyharness.fuzz.shrink import fewest, simplest


@settings(derandomize=True, database=None)
@given(st.integers(1, 60), st.sets(st.integers(0, 59), min_size=1, max_size=4))
def test_what_is_needed_is_left(length: int, wanted: set[int]) -> None:
    needed = {index % length for index in wanted}
    assert fewest(range(length), lambda items: needed <= set(items)) == tuple(sorted(needed))


def test_one_of_many_takes_few_attempts() -> None:
    attempts = 0

    def fails(items: Sequence[int]) -> bool:
        nonlocal attempts
        attempts += 1
        return 700 in items

    assert fewest(range(1024), fails) == (700,)
    assert attempts < 40


@pytest.mark.parametrize("count", [0, 1])
def test_what_cannot_be_smaller_is_not_tried(count: int) -> None:
    def fails(items: Sequence[int]) -> bool:
        raise AssertionError

    assert fewest(range(count), fails) == tuple(range(count))


def test_simplest() -> None:
    def simpler(number: int) -> Iterable[int]:
        return (number & ~(1 << bit) for bit in range(8) if number >> bit & 1)

    assert simplest(0xFF, simpler, lambda number: bool(number & 0x18)) in (0x08, 0x10)
    assert simplest(0xFF, simpler, lambda number: number & 0x18 == 0x18) == 0x18
