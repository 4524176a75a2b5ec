# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel has counted of the code that was compiled for coverage (Documentation/dev-tools/gcov.rst)."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/sys/kernel/debug/gcov")


def counters() -> tuple[tuple[str, bytes], ...]:
    """Every .gcda file's name and content, those of unloaded modules too; none on a kernel without gcov."""
    return tuple((path.name, path.read_bytes()) for path in sorted(_ROOT.rglob("*.gcda")))
