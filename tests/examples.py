# SPDX-License-Identifier: GPL-2.0-only
"""The examples of the documentation, to be run."""

from __future__ import annotations

import re

from pyharness import repository

_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def examples(page: str, having: str, *without: str) -> list[str]:
    """The Python blocks of a page in docs that have the one word and not the others."""
    blocks = _PYTHON.findall((repository.ROOT / "docs" / page).read_text())
    chosen = [block for block in blocks if having in block and not any(word in block for word in without)]
    assert chosen, f"{page} has no such example"
    return chosen
