# SPDX-License-Identifier: GPL-2.0-only
"""The gate without a compiler: the repository passes, and each planted fault is named with its place."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.progress import Progress
from pyharness.series.gate import PROBE, attempt, examine, findings
from pyharness.series.make import Mail, Series, make
from pyharness.series.plan import DRIVER
from pyharness.series.target import Target
from tests.series.conftest import change

SOURCE = "kernel/hv_azure_blob.c"
HEADER = "uapi/hv_azure_blob.h"
PLAN = "kernel/series/driver.toml"
FIRST = "kernel/patches/0001-Drivers-hv-vmbus-Ignore-the-Azure-Blob-device-s-VPCI.patch"

HELP = re.search(r"\thelp\n(?:\t  .*\n|\n)*", (repository.ROOT / PLAN).read_text())
assert HELP


def test_repository_passes() -> None:
    assert findings(repository.ROOT, Cache.open(), Progress(quiet=True)) == []


@dataclass(frozen=True)
class Fault:
    """Text of a file, what takes its place, and what the gate calls that; `at_line` when it must name the line."""

    file: str
    old: str
    new: str
    rule: str
    at_line: bool = False


FAULTS = (
    Fault(SOURCE, "kref_init(&dev->kref);", "kref_init(&dev->kref); ", "TRAILING_WHITESPACE", at_line=True),
    Fault(SOURCE, "module_init(az_blob_init);", f"/* {'x' * 100} */", "LONG_LINE_COMMENT", at_line=True),
    Fault(SOURCE, ".remove = AZ_BLOB_REMOVE,", ".remove = REMOVE,", "rewrite"),
    Fault(HEADER, "\t__u32 pad;", "\t__u32 pad ;", "SPACING", at_line=True),
    Fault(FIRST, "+\tif (is_hvsock_offer(offer))", "+\tif(is_hvsock_offer(offer))", "SPACING"),
    Fault(FIRST, "Drop that one offer, recognised by its type and its instance.", "x " * 45, "COMMIT_LOG_LONG_LINE"),
    Fault(FIRST, " static bool vmbus_is_valid_offer(", " static bool vmbus_is_sound_offer(", "applies"),
    Fault(PLAN, HELP[0], "", "CONFIG_DESCRIPTION"),
    Fault(PLAN, "^Hyper-V/Azure CORE AND DRIVERS$", "^HYPERVISOR VIRTUAL CONSOLE DRIVER$", "MAINTAINERS_ORDER"),
    Fault(PLAN, "S:\tMaintained\nF:\tdrivers/hv", "F:\tCREDITS\nS:\tMaintained\nF:\tdrivers/hv", "MAINTAINERS_ORDER"),
    Fault(PLAN, "F:\tinclude/uapi/linux/hv_azure_blob.h\n", "", "MAINTAINERS"),
    Fault(PLAN, "^endmenu$", "^endmenu of nothing$", "insert"),
)


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{Path(fault.file).name}-{fault.rule}" for fault in FAULTS])
def test_planted_fault_is_named(fault: Fault, copy: Path, target: Target, checkpatch: Path) -> None:
    number = change(copy / fault.file, fault.old, fault.new)
    found = attempt(DRIVER, target, copy, checkpatch).findings
    assert (fault.file, number if fault.at_line else 0, fault.rule) in {(one.file, one.line, one.rule) for one in found}
    assert {one.file for one in found} == {fault.file}


@pytest.fixture
def series(target: Target) -> Series:
    return make(DRIVER, target, PROBE, repository.ROOT)


def test_missing_sign_off(series: Series, checkpatch: Path) -> None:
    mail = series.patches[2]
    unsigned = Mail(mail.file, mail.text.replace(f"Signed-off-by: {PROBE.author}\n", ""))
    found = examine(replace(series, patches=(*series.patches[:2], unsigned)), checkpatch)
    assert [(one.file, one.rule) for one in found] == [(PLAN, "MISSING_SIGN_OFF")]


def test_mail_that_git_does_not_take(series: Series, checkpatch: Path) -> None:
    mail = series.patches[0]
    torn = Mail(
        mail.file, mail.text.replace(" static bool vmbus_is_valid_offer(", " static bool vmbus_is_sound_offer(")
    )
    found = examine(replace(series, patches=(torn, *series.patches[1:])), checkpatch)
    assert [(one.file, one.rule) for one in found] == [(FIRST, "applies")]
    assert found[0].message == (
        f"git am does not take {mail.file}: error: patch failed: drivers/hv/channel_mgmt.c:1010"
    )


def test_mail_that_makes_something_else(series: Series, checkpatch: Path) -> None:
    mail = series.patches[1]
    other = Mail(mail.file, mail.text.replace('+MODULE_DESCRIPTION("Azure', '+MODULE_DESCRIPTION("Other'))
    found = examine(replace(series, patches=(series.patches[0], other, series.patches[2])), checkpatch)
    assert [str(one) for one in found] == [
        f"{PLAN}: git am makes another drivers/hv/hv_azure_blob.c than the sources [applies]"
    ]
