# SPDX-License-Identifier: GPL-2.0-only
"""What of the command line can be shown without a device."""

from __future__ import annotations

import pytest

from pyharness import cli
from pyharness.client.tool import bar_line, human, main

MIB = 1 << 20


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (MIB, "1.0 MiB"),
        (31 * MIB, "31.0 MiB"),
        (5 << 40, "5.0 TiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert human(count) == text


def test_bar() -> None:
    assert bar_line("b", 50 * MIB, 200 * MIB, 50 * MIB, 5.0) == (
        "b 50.0 MiB of 200.0 MiB [######..................]  25 % 10.0 MiB/s 0:15 left"
    )
    resumed = bar_line("b", 150 * MIB, 200 * MIB, 50 * MIB, 5.0)
    assert resumed.endswith(" 75 % 10.0 MiB/s 0:05 left"), "what was there before does not count as fast"
    assert bar_line("b", 5, None, 5, 0.0) == "b 5 B 0 B/s"
    assert bar_line("b", 0, 0, 0, 1.0) == "b 0 B 0 B/s"


@pytest.mark.parametrize(("words", "code"), [(["--device", "/nowhere", "ls"], 5), (["--container", "x", "ls"], 2)])
def test_exit_codes(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == code
    assert capsys.readouterr().err.startswith("blob: ")
    assert cli.main(["blob", *words]) == code
