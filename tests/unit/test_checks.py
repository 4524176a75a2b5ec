# SPDX-License-Identifier: GPL-2.0-only
"""The checks find what is planted in a copy of the tree, and pass the tree as it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyharness import repository
from pyharness.artifacts.prepare import Prepared
from pyharness.checks import CHECKS, Result, Verdict

DRIVER = "kernel/hv_azure_blob.c"
HEADER = "uapi/hv_azure_blob.h"
SERIES = "kernel/patches/0001-Drivers-hv-vmbus-Ignore-the-Azure-Blob-device-s-VPCI.patch"

pytestmark = pytest.mark.default_kernel_only("one kernel's checkers are enough")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("kernel", "uapi", "qemu/src"):
        shutil.copytree(repository.ROOT / name, tmp_path / name)
    monkeypatch.setattr(repository, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def examine(prepared: Prepared) -> Callable[[str], Result]:
    checks = {check.name: check for check in CHECKS}
    return lambda name: checks[name].examine(prepared.kernel.source)


@pytest.mark.parametrize("name", ["checkpatch", "spdx"])
@pytest.mark.usefixtures("copy")
def test_the_tree_as_it_is_passes(name: str, examine: Callable[[str], Result]) -> None:
    assert examine(name) == Result(Verdict.PASS)


@pytest.mark.parametrize(
    ("check", "file", "sound", "planted", "found"),
    [
        ("checkpatch", DRIVER, "\treturn ret;\n", "\treturn ret; \n", "TRAILING_WHITESPACE"),
        ("checkpatch", DRIVER, "if (ret)\n", "if(ret)\n", "SPACING"),
        ("checkpatch", SERIES, "+\tif (is_hvsock_offer(offer))", "+\tif(is_hvsock_offer(offer))", "SPACING"),
        ("spdx", HEADER, " WITH Linux-syscall-note", "", HEADER),
        ("spdx", DRIVER, "GPL-2.0-only", "GPL-2.0-or-later", DRIVER),
        ("spdx", "qemu/src/hw/hyperv/hv-azure-blob.c", "SPDX-License-Identifier", "License", "has nothing"),
    ],
)
def test_a_planted_fault_is_found_by_name(
    copy: Path, examine: Callable[[str], Result], check: str, file: str, sound: str, planted: str, found: str
) -> None:
    text = (copy / file).read_text()
    assert sound in text
    (copy / file).write_text(text.replace(sound, planted, 1))
    result = examine(check)
    assert result.verdict is Verdict.FAIL
    assert found in result.detail
    assert Path(file).name in result.detail
