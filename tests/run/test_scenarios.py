# SPDX-License-Identifier: GPL-2.0-only
"""The example scenarios as a user runs them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from pyharness import repository
from pyharness.errors import Exit
from pyharness.report.subjects import Subject
from tests.run.test_run import ONE_KERNEL, Run, report_of

SCENARIOS = repository.ROOT / "docs" / "scenarios"

pytestmark = [pytest.mark.usefixtures("prepared"), ONE_KERNEL]


class Outcome(NamedTuple):
    """What a run comes to: its exit code, what it says, and what the host did."""

    status: Exit
    said: str
    host: dict[str, int]


EXPECTED = {
    "slow-host": Outcome(Exit.OK, "no kernel warning", {"delay": 7}),
    "erroring-host": Outcome(Exit.FAILED, "the host answered with status 0xc00000b5", {"fail": 1}),
    "hostile-host": Outcome(
        Exit.OK, "all tolerated", {"unsolicited": 7, "duplicate": 5, "wrong_type": 5, "wrong_id": 3}
    ),
    "restarting-host": Outcome(Exit.FAILED, "the host answered with status 0xc000020c", {"disconnect": 1}),
    "refusing-host": Outcome(Exit.FAILED, "the driver has not taken the device", {}),
}


def test_every_example_is_run() -> None:
    assert {path.stem for path in SCENARIOS.glob("*.toml")} == {*EXPECTED}


@pytest.mark.parametrize("name", EXPECTED)
def test_example(tmp_path: Path, name: str, subject: Subject) -> None:
    expected, path = EXPECTED[name], tmp_path / "run.json"
    run = Run(("--scenario", str(SCENARIOS / f"{name}.toml"), "--json", str(path), *subject.arguments))
    assert run.finish() == expected.status, run.output
    assert expected.said in run.output.splitlines()[-1]
    assert "Traceback" not in run.output
    report = report_of(path)
    assert report["host"] == expected.host
    assert report["scenario"] == str(SCENARIOS / f"{name}.toml")
    assert report["sha256_match"] is (expected.status is Exit.OK)
    if name != "refusing-host":
        assert "judge: " in run.output, "the driver is judged whatever becomes of the file"
    run.wait_until_gone()
