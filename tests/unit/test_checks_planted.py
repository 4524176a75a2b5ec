# SPDX-License-Identifier: GPL-2.0-only
"""Each check finds what is planted in a copy of the tree, at the right line, and passes the tree as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.checks import CHECKS
from pyharness.checks.check import Check
from pyharness.checks.context import Artifacts, Context, list_files
from pyharness.checks.finding import Finding
from pyharness.checks.run import Verdict, run_checks
from pyharness.checks.tools import Runner
from pyharness.progress import Progress
from tests.unit.copied_tree import copied_tree

DRIVER = "kernel/hv_azure_blob.c"
PROVOKER = "kernel/provoke/hv_provoke.c"
HEADER = "uapi/hv_azure_blob.h"
FREEING_PATCH = "kernel/patches/0003-Drivers-hv-vmbus-Free-the-per-CPU-contexts.patch"
DEVICE = "qemu/src/hw/hyperv/hv-azure-blob.c"
QEMU_PATCH = "qemu/patches/0005-tcg-let-another-cpu-run-at-a-pause.patch"
MODULE = "pyharness/repository.py"
PLAN = "kernel/series/driver.toml"
MIRROR = "pyharness/client/abi.py"
WORKFLOW = ".github/workflows/ci.yml"
HOOKS = ".pre-commit-config.yaml"

# Split so that the checks do not take these for faults and tags of this file.
MISSPELT = "re" + "cieves"
TAG = "SPDX-License-" + "Identifier: "


@dataclass(frozen=True)
class Fault:
    """`sound` is replaced by `planted` in a file, which is made or added to when `sound` is empty.

    The finding must be at the line that `at` is a part of, at the file as a whole when `at` is empty, and say `says`.
    """

    file: str
    sound: str
    planted: str
    at: str
    says: str


# What is planted for a check at once, in one copy of the tree.
FAULTS: tuple[tuple[str, tuple[Fault, ...]], ...] = (
    (
        "checkpatch",
        (
            Fault(
                DRIVER,
                "\treturn ret;\n",
                "\treturn ret; \n",
                "\treturn ret; ",
                "trailing whitespace [TRAILING_WHITESPACE]",
            ),
            Fault(DRIVER, "if (ret)\n", "if(ret)\n", "if(ret)", "[SPACING]"),
            Fault(
                DRIVER,
                "static DEFINE_IDA(az_blob_ida);\n",
                f"static int az_blob_planted({', '.join(f'int argument_{n}' for n in range(8))});\n",
                "az_blob_planted(",
                "exceeds 100 columns [LONG_LINE]",
            ),
            Fault(HEADER, "the host reads it.", f"the host {MISSPELT} it.", MISSPELT, "[TYPO_SPELLING]"),
            Fault(
                FREEING_PATCH, "cpu_context = NULL", "cpu_context=NULL", "+\thv_context.cpu_context=NULL", "[SPACING]"
            ),
        ),
    ),
    (
        "abi",
        (
            Fault(
                MIRROR,
                '("timeout", ctypes.c_uint32)',
                '("timeout", ctypes.c_uint16)',
                '("timeout", ctypes.c_uint16)',
                "az_blob_request_sync.timeout: type u32 in",
            ),
        ),
    ),
    (
        "series",
        (
            Fault(
                PLAN,
                "^Hyper-V/Azure CORE AND DRIVERS$",
                "^HYPERVISOR VIRTUAL CONSOLE DRIVER$",
                "",
                "[MAINTAINERS_ORDER]",
            ),
        ),
    ),
    (
        "kernel-doc",
        (
            Fault(HEADER, " * @status: the", " * @state: the", "struct az_blob_response {", "'status' not described"),
            Fault(DRIVER, " * @misc: the node.\n", "", "struct az_blob_device {", "'misc' not described"),
        ),
    ),
    (
        "qemu-checkpatch",
        (
            Fault(DEVICE, "    if (", "    if(", "    if(", "space required before the open parenthesis"),
            Fault(QEMU_PATCH, "+    sched_yield", "+\tsched_yield", "+\t", "code indent should never use tabs"),
        ),
    ),
    ("codespell", (Fault("docs/architecture.md", "receives", MISSPELT, MISSPELT, f"{MISSPELT} ==> receives"),)),
    (
        "shellcheck",
        (
            Fault("scripts/setup", "set -eu\n", "set -eu\nplanted=1\n", "planted=1", "[SC2034]"),
            Fault("scripts/planted", "", f"#!/bin/bash\n# {TAG}GPL-2.0-only\ncat $1\n", "cat $1", "[SC2086]"),
        ),
    ),
    ("ruff", (Fault(MODULE, "from pathlib", "import os\nfrom pathlib", "import os", "imported but unused [F401]"),)),
    ("ruff-format", (Fault(MODULE, "", "X = { 1 :2 }\n", "X = { 1", "[format]"),)),
    ("mypy", (Fault(MODULE, "", "X: int = 'word'\n", "X: int", "[assignment]"),)),
    (
        "spdx",
        (
            Fault(HEADER, " WITH Linux-syscall-note", "", TAG, "must have GPL-2.0-only WITH Linux-syscall-note"),
            Fault(DRIVER, "GPL-2.0-only", "GPL-2.0-or-later", TAG, "has GPL-2.0-or-later, must have GPL-2.0-only"),
            Fault(DEVICE, f"{TAG}GPL", "License: GPL", "", "has no tag, must have GPL-2.0-or-later"),
        ),
    ),
    (
        "syscall-note",
        (
            Fault(HEADER, " WITH Linux-syscall-note", "", TAG, "must have the Linux-syscall-note"),
            Fault(DRIVER, "GPL-2.0-only", "GPL-2.0-only WITH Linux-syscall-note", TAG, "alone"),
        ),
    ),
    (
        "module-license",
        (
            Fault(DRIVER, '"GPL"', '"Dual BSD/GPL"', "MODULE_LICENSE(", "GPL-2.0-only asks for GPL"),
            Fault(PROVOKER, 'MODULE_LICENSE("GPL");\n', "", "", "no MODULE_LICENSE"),
        ),
    ),
    (
        "spdxcheck",
        (
            Fault(DRIVER, "GPL-2.0-only", "GPL-2.0-solely", TAG, "Invalid License ID: GPL-2.0-solely"),
            Fault(HEADER, "syscall-note", "syscall-notes", TAG, "Invalid Exception ID: Linux-syscall-notes"),
            Fault(PROVOKER, f"// {TAG}GPL-2.0-only\n", "\n", "", "has no SPDX tag"),
        ),
    ),
    (
        "reuse",
        (
            Fault(DRIVER, "GPL-2.0-only", "GPL-2.0-only OR BSD-3-Clause", TAG, "missing license 'BSD-3-Clause'"),
            Fault("qemu/planted.c", "", "int planted;\n", "", "no license identifier"),
        ),
    ),
    (
        "sparse",
        (
            Fault(
                DRIVER,
                "/* Requests: pages */\n",
                "static int __maybe_unused planted_reader(int __user *place)\n{\n\treturn *place;\n}\n\n"
                "static u32 __maybe_unused planted_order(__le32 little)\n{\n\treturn ~little;\n}\n",
                "return *place;",
                "dereference of noderef expression",
            ),
            Fault(DRIVER, "", "", "return ~little;", "different base types"),
            Fault(FREEING_PATCH, "cpu_context = NULL", "cpu_context = 0", "cpu_context = 0", "plain integer as NULL"),
        ),
    ),
    (
        "warnings",
        (
            Fault(DRIVER, "\tint kind, ret;\n", "\tint kind, ret, spare;\n", "spare", "[unused-variable]"),
            Fault(
                HEADER,
                "#define AZURE_BLOB_MAX",
                "static int lone;\n#define AZURE_BLOB_MAX",
                "lone",
                "[unused-variable]",
            ),
            Fault(PROVOKER, "MODULE_LICENSE", "static int lone;\nMODULE_LICENSE", "lone", "[unused-variable]"),
            Fault(
                FREEING_PATCH,
                "+\tfree_percpu(",
                "+\tint spare; free_percpu(",
                "int spare;",
                "[Wunused-variable]",
            ),
        ),
    ),
    (
        "analyzer",
        (
            Fault(
                DRIVER,
                "\tif (!len)\n\t\treturn 0;\n",
                "\tint *nowhere = NULL;\n\n\tif (!len)\n\t\treturn *nowhere;\n",
                "return *nowhere;",
                "[Wanalyzer-null-dereference]",
            ),
        ),
    ),
    (
        "coccinelle",
        (
            Fault(
                DRIVER,
                "/* Requests: pages */\n",
                "static void __maybe_unused planted(struct az_blob_buffer *buf)\n{\n"
                "\tkfree(buf);\n\tbuf->len = 0;\n}\n",
                "buf->len = 0;",
                "reference preceded by free",
            ),
            Fault(
                DRIVER, "\tkvfree(req->mpb);", "\tif (req->mpb)\n\t\tkvfree(req->mpb);", "\t\tkvfree(", "[ifnullfree]"
            ),
        ),
    ),
    ("uapi-header", (Fault(HEADER, "#include <linux/types.h>\n", "", "__u32 status;", "unknown type name"),)),
    ("uapi-header", (Fault(HEADER, "#include <linux/ioctl.h>\n", "", "#define AZURE_BLOB_IOCTL", "_IOWR"),)),
    (
        "uapi-header",
        (Fault(HEADER, "\t__u32 status;", "\t__u32 status;\t// NTSTATUS", "// NTSTATUS", "C++ style comments"),),
    ),
    ("uapi-header", (Fault(HEADER, "\t__u32 status;", "\t__u32 class;", "__u32 class;", "g++"),)),
    ("uapi-header", (Fault(HEADER, "#ifndef", "#ifdef CONFIG_PLANTED\n#endif\n#ifndef", "", "leak CONFIG_PLANTED"),)),
    ("uapi-header", (Fault(HEADER, " WITH Linux-syscall-note", "", "", "missing"),)),
    (
        "uapi-header",
        (
            Fault(
                HEADER, "#ifndef _UAPI_LINUX_HV_AZURE_BLOB_H\n", "#if 1\n", "struct az_blob_response {", "redefinition"
            ),
        ),
    ),
    ("uapi-padding", (Fault(HEADER, "\t__u32 pad;\n", "", "__aligned_u64 request_buffer;", "[Wpadded]"),)),
    ("workflows", (Fault(WORKFLOW, "    timeout-minutes: 45\n", "", "  check:", "timeout"),)),
    ("workflows", (Fault(WORKFLOW, "runs-on:", "runs-at:", "  check:", "'runs-on' is a required property"),)),
    (
        "pre-commit",
        (Fault(HOOKS, "language: system", "idiom: system", "id: python", "Missing required key: language"),),
    ),
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the tree that git knows as one."""
    return copied_tree(tmp_path / "copy")


@pytest.fixture(scope="module")
def artifacts() -> Artifacts:
    """Those of the default kernel alone, which is enough to see that a fault is found."""
    artifacts = Artifacts(Cache.open(), Progress(quiet=True))
    artifacts.kernels = [artifacts.kernel]
    return artifacts


def checks_named(name: str) -> Check:
    return next(check for check in CHECKS if check.name == name)


def examine(name: str, root: Path, artifacts: Artifacts, work: Path) -> Sequence[Finding]:
    work.mkdir()
    return checks_named(name).examine(Context(root, list_files(root), artifacts, Runner(), work))


def plant(fault: Fault, root: Path) -> None:
    file = root / fault.file
    if not fault.sound:
        with file.open("a") as stream:
            stream.write(fault.planted)
        return
    text = file.read_text()
    assert fault.sound in text
    file.write_text(text.replace(fault.sound, fault.planted, 1))


def line_of(fault: Fault, root: Path) -> int:
    lines = (root / fault.file).read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if fault.at in line) if fault.at else 0


@pytest.mark.parametrize(("check", "faults"), FAULTS, ids=[f"{check}-{faults[0].says}" for check, faults in FAULTS])
def test_what_is_planted_is_found_at_its_line(
    check: str, faults: tuple[Fault, ...], copy: Path, artifacts: Artifacts, tmp_path: Path
) -> None:
    for fault in faults:
        plant(fault, copy)
    findings = examine(check, copy, artifacts, tmp_path / "work")
    for fault in faults:
        line = line_of(fault, copy)
        here = [str(found) for found in findings if (found.file, found.line) == (fault.file, line)]
        assert any(fault.says in found for found in here), f"{fault} is not at line {line} of {findings}"
    assert {found.file for found in findings} == {fault.file for fault in faults}


def test_something_is_planted_for_each_check() -> None:
    assert {check.name for check in CHECKS} == {check for check, _ in FAULTS}


def test_the_tree_as_it_is_passes_all_and_none_is_skipped() -> None:
    results = run_checks(CHECKS, repository.ROOT, Artifacts(Cache.open(), Progress(quiet=True)), jobs=2)
    assert [(result.check.name, result.findings, result.missing) for result in results] == [
        (check.name, (), ()) for check in CHECKS
    ]
    assert {result.verdict for result in results} == {Verdict.PASS}
