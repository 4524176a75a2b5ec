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
_SMALL = 4
_LOAD_TIMEOUT_S = 600
_KEPT_BY_VMBUS = ("vmbus_alloc_ring", "hv_ringbuffer_init", "request_arr_init")


@pytest.fixture
def inject(lab: Lab) -> Any:
    return lab.injector()


def names(errnos: Sequence[int]) -> set[str]:
    return {errno.errorcode[number] for number in errnos if number}


def test_open(inject: Any, node: str) -> None:
    assert names(inject.fail_open(node)) == {"ENOMEM", "EFAULT"}


@pytest.mark.parametrize(
    ("data_pages", "out_pages", "in_pages", "touched"),
    [
        pytest.param(0, 0, 0, True, id="without data"),
        pytest.param(4, 4, 2, True, id="small upload"),
        pytest.param(4, 0, 4, True, id="small download"),
        pytest.param(4, 0, 4, False, id="small download into new pages"),
        pytest.param(40, 0, 3, False, id="large download into new pages"),
        pytest.param(4000, 7, 3, True, id="large upload"),
    ],
)
def test_ioctl(inject: Any, node: str, data_pages: int, out_pages: int, in_pages: int, touched: bool) -> None:
    errnos = list(inject.fail_ioctl(node, data_pages, out_pages, in_pages, touched=touched))
    # Where there is another way to get the memory (kvmalloc), one failure shows in no errno.
    assert {"EFAULT"} <= names(errnos) <= {"ENOMEM", "EFAULT"}
    assert "ENOMEM" in names(errnos) or data_pages > _SMALL


def test_probe(lab: Lab, inject: Any) -> None:
    assert names(inject.fail_bind(str(FIRST))) == {"ENOMEM", "EFAULT"}


def test_remove(lab_for_once: Lab) -> None:
    lab = lab_for_once
    inject = lab.injector()
    # VMBus keeps a ring that it cannot get back from the host, and no driver can mend that.
    lab.tolerated_reports += _KEPT_BY_VMBUS
    assert names(inject.fail_unbind(str(FIRST))) <= {"ENOMEM", "EFAULT"}
    assert any("Close failed: teardown gpadl return -12" in message.text for message in lab.guest.dmesg())


def test_module_load(lab: Lab, inject: Any) -> None:
    path = f"{GUEST_DIRECTORY}/{lab.modules.driver.path.name}"
    lab.guest.push(lab.modules.driver.path, path)
    errnos = lab.guest.spawn(inject.fail_load, path, _DEVICES).result(_LOAD_TIMEOUT_S)
    assert "ENOMEM" in names(errnos)
