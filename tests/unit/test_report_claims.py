# SPDX-License-Identifier: GPL-2.0-only
"""What docs/review.md claims is proved by tests that exist, and a session in which one did not pass says so."""

from __future__ import annotations

import ast

import pytest

from pyharness import repository
from pyharness.errors import Exit
from pyharness.report.claims import DOCUMENT, claimed, unproved
from pyharness.report.recorder import Outcome, Result

CLAIMS = claimed(DOCUMENT.read_text())


def test_the_document_names_tests() -> None:
    assert len(CLAIMS) > 40


@pytest.mark.parametrize("test", CLAIMS)
def test_each_named_test_exists(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((repository.ROOT / file).read_text())
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_each_row_names_a_test() -> None:
    for line in DOCUMENT.read_text().partition("## Faults of hv_vmbus")[0].splitlines():
        if line.startswith("| ") and not line.startswith(("| asked |", "| fault |", "| what the host does |")):
            assert claimed(line), line


def result(nodeid: str, outcome: Outcome) -> Result:
    return Result(nodeid, outcome=outcome)


def test_a_test_that_passed_somewhere_proves() -> None:
    results = [
        result("tests/a.py::test_x[one-1]", Outcome.SKIPPED),
        result("tests/a.py::test_x[other-1]", Outcome.PASSED),
        result("tests/a.py::test_y", Outcome.PASSED),
    ]
    assert unproved(["tests/a.py::test_x", "tests/a.py::test_y"], results) is None


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.SKIPPED, Outcome.NOT_RUN])
def test_one_that_did_not_pass_is_named(outcome: Outcome) -> None:
    fault = unproved(["tests/a.py::test_x", "tests/a.py::test_z"], [result("tests/a.py::test_x[one]", outcome)])
    assert fault
    assert fault.exit_code == Exit.FAILED
    assert "2 tests that did not pass: tests/a.py::test_x" in fault.message
    assert "tests/a.py::test_z" in fault.detail


def test_names_are_found_once_each() -> None:
    text = "`tests/a.py::test_x`, `tests/a.py::test_x` and `tests/b/c.py::test_y`; not tests/a.py::test_w nor `test_v`"
    assert claimed(text) == ["tests/a.py::test_x", "tests/b/c.py::test_y"]
