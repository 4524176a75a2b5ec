# SPDX-License-Identifier: GPL-2.0-only
"""KCOV sees the driver from a program in the guest: by that a fuzzer can tell what a request reached."""

from __future__ import annotations

from typing import Any

import pytest

from pyharness.artifacts.modules import DRIVER
from tests.driver.lab import Lab
from tests.driver.test_errno import TCGETS

pytestmark = pytest.mark.kernel_has("KCOV")


def passed_through(lab: Lab, node: str, **fields: Any) -> list[str]:
    """The driver's function at each place that the caller of one ioctl passed."""
    kcov = lab.guest.module("pyharness.guest.kcov")
    return list(kcov.passed_through(DRIVER, lab.work.attempt_on, node, **fields))


def test_a_request_passes_through_the_driver(lab: Lab, node: str) -> None:
    functions = passed_through(lab, node)
    assert {"az_blob_open", "az_blob_ioctl", "az_blob_release"} <= set(functions), functions
    first, last = functions.index("az_blob_ioctl"), len(functions) - functions[::-1].index("az_blob_ioctl")
    assert functions.index("az_blob_open") < first < last <= functions.index("az_blob_release")


def test_what_is_refused_gets_less_far(lab: Lab, node: str) -> None:
    """Each check that a request passes adds places."""
    places = [
        len(passed_through(lab, node, **fields))
        for fields in ({"command": TCGETS}, {"pad": 1}, {"response_buffer": 0}, {})
    ]
    assert places == sorted(set(places)), places


def test_the_same_request_leaves_the_same_trace_until_it_waits(lab: Lab, node: str) -> None:
    assert passed_through(lab, node, pad=1) == passed_through(lab, node, pad=1)
