# SPDX-License-Identifier: GPL-2.0-only
"""Making what fails smaller, as long as it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def fewest(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> tuple[T, ...]:
    """As few of `items`, in their order, as are needed for `fails`: without any one of them it does not (ddmin).

    The last ones are tried first, since what has just happened is the likeliest cause.
    """
    kept = tuple(items)
    size = len(kept)
    while size := size // 2 if size > 1 else 0:
        end = len(kept)
        while end > 0 and len(kept) > 1:
            start = max(0, end - size)
            # The piece itself, where it is the smaller part, then all but it.
            piece, rest = kept[start:end], kept[:start] + kept[end:]
            if size * 2 >= len(kept) and len(piece) < len(kept) and fails(piece):
                kept = piece
                end = len(kept)
            elif rest and fails(rest):
                kept = rest
                end = start
            else:
                end = start
    return kept


def simplest(item: T, simpler: Callable[[T], Iterable[T]], fails: Callable[[T], bool]) -> T:
    """`item`, with each simplification that leaves `fails` true; `simpler` lists those of one step."""
    while (found := next((other for other in simpler(item) if fails(other)), None)) is not None:
        item = found
    return item
