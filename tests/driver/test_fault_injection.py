# SPDX-License-Identifier: GPL-2.0-only
"""Each allocation and each user copy fails once: an errno each time, nothing is left behind, the next call works.

The judge looks for what is left behind, when a test has ended.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import pytest

from tests.driver.lab import FIRST, GUEST_DIRECTORY, Lab

pytestmark = pytest.mark.kernel_has("FAULT_INJECTION")

_DEVICES = 3


@pytest.fixture
def inject(lab: Lab) -> Any:
    return lab.injector()


def names(errnos: Sequence[int]) -> set[str]:
    return {errno.errorcode[number] for number in errnos if number}


def test_open(inject: Any, node: str) -> None:
    assert names(inject.fail_open(node)) == {"ENOMEM", "EFAULT"}


@pytest.mark.parametrize("touched", [True, False], ids=["touched", "untouched"])
@pytest.mark.parametrize(
    ("data_pages", "out_pages", "in_pages"),
    [(0, 0, 0), (4, 0, 4), (4, 4, 2), (200, 0, 3), (4000, 7, 3)],
    ids=["without data", "small download", "small upload", "large", "largest"],
)
def test_ioctl(inject: Any, node: str, data_pages: int, out_pages: int, in_pages: int, touched: bool) -> None:
    errnos = list(inject.fail_ioctl(node, data_pages, out_pages, in_pages, touched=touched))
    assert names(errnos) == {"ENOMEM", "EFAULT"}


def test_probe(lab: Lab, inject: Any) -> None:
    assert "ENOMEM" in names(inject.fail_bind(str(FIRST)))


def test_remove(inject: Any) -> None:
    assert names(inject.fail_unbind(str(FIRST)))


def test_module_load(lab: Lab, inject: Any) -> None:
    path = f"{GUEST_DIRECTORY}/{lab.modules.driver.path.name}"
    lab.guest.push(lab.modules.driver.path, path)
    assert "ENOMEM" in names(inject.fail_load(path, _DEVICES))
