# SPDX-License-Identifier: GPL-2.0-only
"""The comparison of the ABI's sources: faults planted into one of them, each to be told by place, name and values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyharness import abi, cli, repository
from pyharness.abi.compare import HOLE, LAYOUT, UNRECORDED
from pyharness.abi.sources import CLIENT, DRIVER, FRAMES, QEMU, UAPI, WIRE
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import DEFAULT_KERNEL, Kernel, ensure_kernel
from pyharness.checks.finding import Finding
from pyharness.errors import CheckFailed, Exit
from pyharness.progress import Progress
from tests.planted.faults import Change, plant

PARTS = ("kernel", "uapi", "qemu/src/include", "pyharness/client", "pyharness/vsp")
ALL_BUT_CTYPES = "in the header (64-bit), the header (32-bit), the module's BTF and uapi/abi.json"
ALL_BUT_RECORD = "in the header (64-bit), the header (32-bit), the module's BTF and the ctypes mirror"

# `pad` gives its bytes to `data_valid`, wherever they are: the size of the struct stays.
WIDENED = (
    Change("\t__u32 data_valid;\n\t__u32 pad;\n", "\t__aligned_u64 data_valid;\n", Path(UAPI)),
    Change(
        '("data_valid", ctypes.c_uint32),\n        ("pad", ctypes.c_uint32)',
        '("data_valid", ctypes.c_uint64)',
        Path(CLIENT),
    ),
    Change("args.pad || ", "", Path(DRIVER)),
)


@dataclass(frozen=True)
class Fault:
    """Changes, and a finding that they must lead to: its file, the text of its line, part of its message, its rule."""

    name: str
    changes: tuple[Change, ...]
    file: str
    line: str
    said: str
    rule: str = LAYOUT
    blames_others: bool = False
    """Not only `file` is to be mended, for the fault shows in others too."""


FAULTS = (
    Fault(
        "offsets in ctypes only",
        (
            Change(
                '("response_len", ctypes.c_uint32),\n        ("data_len", ctypes.c_uint32),',
                '("data_len", ctypes.c_uint32),\n        ("response_len", ctypes.c_uint32),',
                Path(CLIENT),
            ),
        ),
        CLIENT,
        '("data_len", ctypes.c_uint32),',
        f"az_blob_request_sync.data_len: offset 28 {ALL_BUT_CTYPES}, 24 in the ctypes mirror",
    ),
    Fault(
        "size in ctypes only, with which the client refuses to load",
        (Change('("data_len", ctypes.c_uint32)', '("data_len", ctypes.c_uint64)', Path(CLIENT)),),
        CLIENT,
        '("data_len", ctypes.c_uint64),',
        f"az_blob_request_sync.data_len: type u32 {ALL_BUT_CTYPES}, u64 in the ctypes mirror",
    ),
    Fault(
        "constant in ctypes only",
        (Change("MAX_PAGES = 8192", "MAX_PAGES = 4096", Path(CLIENT)),),
        CLIENT,
        "MAX_PAGES = 4096",
        "AZURE_BLOB_MAX_PAGES: value 8192 in the header (64-bit), the header (32-bit) and uapi/abi.json, 4096 in the",
    ),
    Fault(
        "ioctl's letter in ctypes only",
        (Change('_iowr("R", 0xF0', '_iowr("S", 0xF0', Path(CLIENT)),),
        CLIENT,
        'AZURE_BLOB_IOCTL = _iowr("S", 0xF0, ctypes.sizeof(AzBlobRequestSync))',
        "uapi/abi.json, 0xc04853f0 in the ctypes mirror",
    ),
    Fault(
        "ioctl's letter in the header only",
        (Change("_IOWR('R'", "_IOWR('S'", Path(UAPI)),),
        UAPI,
        "#define AZURE_BLOB_IOCTL\t_IOWR('S', 0xf0, struct az_blob_request_sync)",
        "AZURE_BLOB_IOCTL: value 0xc04853f0 in the header (64-bit) and the header (32-bit), 0xc04852f0 in the ctypes",
    ),
    Fault(
        "implicit hole in the header",
        (Change("\t__u32 pad;\n", "", Path(UAPI)),),
        UAPI,
        "\t__aligned_u64 request_buffer;",
        "az_blob_request_sync.request_buffer: 4 bytes of implicit padding before it in the header (64-bit) and",
        HOLE,
        blames_others=True,
    ),
    Fault(
        "implicit hole at the end of the struct",
        (
            Change(
                "\tstruct az_blob_response response;\n",
                "\tstruct az_blob_response response;\n\t__u32 more;\n",
                Path(UAPI),
            ),
        ),
        UAPI,
        "struct az_blob_request_sync {",
        "az_blob_request_sync: 4 bytes of implicit padding at its end in the header (64-bit)",
        HOLE,
        blames_others=True,
    ),
    Fault(
        "alignment that 32-bit programs do not keep",
        (
            Change("\t__aligned_u64 request_buffer;", "\t__u64 request_buffer;", Path(UAPI)),
            Change("\t__aligned_u64 response_buffer;", "\t__u64 response_buffer;", Path(UAPI)),
            Change("\t__aligned_u64 data_buffer;", "\t__u64 data_buffer;", Path(UAPI)),
        ),
        UAPI,
        "struct az_blob_request_sync {",
        "az_blob_request_sync: alignment 8 in the header (64-bit), the ctypes mirror and uapi/abi.json, "
        "4 in the header (32-bit)",
    ),
    Fault(
        "field widened everywhere but in the record",
        WIDENED,
        UAPI,
        "\t__aligned_u64 data_valid;",
        f"az_blob_request_sync.data_valid: type u64 {ALL_BUT_RECORD}, u32 in uapi/abi.json",
        UNRECORDED,
    ),
    Fault(
        "struct that Python does not know",
        (
            Change(
                "/**\n * AZURE_BLOB_IOCTL -",
                "struct az_blob_news {\n\t__u32 what;\n};\n\n/**\n * AZURE_BLOB_IOCTL -",
                Path(UAPI),
            ),
        ),
        UAPI,
        "struct az_blob_news {",
        "az_blob_news: present in the header (64-bit) and the header (32-bit), missing in the module's BTF, the ctypes",
        blames_others=True,
    ),
    Fault(
        "header that does not compile",
        (Change("\t__u32 pad;\n", "\t__u23 pad;\n", Path(UAPI)),),
        UAPI,
        "\t__u23 pad;",
        "unknown type name",
        "abi-build",
        blames_others=True,
    ),
    Fault(
        "wire struct in Python only",
        (Change('"I data_offset",\n    "I data_len",', '"I data_len",\n    "I data_offset",', Path(WIRE)),),
        WIRE,
        '    "I data_len",',
        "az_blob_wire_request.data_len: offset 12 in the driver and uapi/abi.json, 8 in the Python VSP",
    ),
    Fault(
        "wire struct in the driver only",
        (Change("__le32 data_offset;\n\t__le32 data_len;", "__le32 data_len;\n\t__le32 data_offset;"),),
        DRIVER,
        "\t__le32 data_len;",
        "az_blob_wire_request.data_len: offset 8 in the driver, 12 in the Python VSP and uapi/abi.json",
    ),
    Fault(
        "wire struct's size in the driver, which asserts it",
        (Change("\t__le32 timeout_ms;", "\t__le64 timeout_ms;"),),
        DRIVER,
        "static_assert(sizeof(struct az_blob_wire_request) == 56);",
        "sizeof(struct az_blob_wire_request) == 56",
        "abi-build",
    ),
    Fault(
        "wire constant in the driver only",
        (Change("AZ_BLOB_WIRE_USER_REQUEST\t0x100", "AZ_BLOB_WIRE_USER_REQUEST\t0x103"),),
        DRIVER,
        "#define AZ_BLOB_WIRE_USER_REQUEST\t0x103",
        "AZ_BLOB_WIRE_USER_REQUEST: value 259 in the driver, 256 in the Python VSP and uapi/abi.json",
    ),
    Fault(
        "wire struct in QEMU only",
        (
            Change(
                "    uint32_t error;\n    uint32_t response_len;",
                "    uint32_t response_len;\n    uint32_t error;",
                Path(QEMU),
            ),
        ),
        QEMU,
        "    uint32_t error;",
        "az_blob_wire_completion.status: offset 4 in the driver, the Python VSP and uapi/abi.json, 8 in QEMU",
    ),
    Fault(
        "frame in QEMU only",
        (
            Change(
                "    uint32_t fd_index;\n    uint32_t flags;", "    uint32_t flags;\n    uint32_t fd_index;", Path(QEMU)
            ),
        ),
        QEMU,
        "    uint32_t flags;",
        "AzureBlobRegion.flags: offset 24 in QEMU, 28 in the Python backend and uapi/abi.json",
    ),
    Fault(
        "frame in Python only",
        (Change('"Q fd_offset", "I fd_index", "I flags"', '"Q fd_offset", "I flags", "I fd_index"', Path(FRAMES)),),
        FRAMES,
        '_REGION = Layout("AzureBlobRegion", "Q gpa", "Q size", "Q fd_offset", "I flags", "I fd_index")',
        "AzureBlobRegion.flags: offset 28 in QEMU and uapi/abi.json, 24 in the Python backend",
    ),
    Fault(
        "frame type that Python does not know",
        (
            Change(
                "AZURE_BLOB_FRAME_PACKET = 102,",
                "AZURE_BLOB_FRAME_PACKET = 102,\n    AZURE_BLOB_FRAME_NEWS = 103,",
                Path(QEMU),
            ),
        ),
        QEMU,
        "    AZURE_BLOB_FRAME_NEWS = 103,",
        "AZURE_BLOB_FRAME_NEWS: present in QEMU, missing in the Python backend and uapi/abi.json",
    ),
    Fault(
        "module of Python that does not load",
        (Change("MAX_FDS = 16", "MAX_FDS = sixteen", Path(FRAMES)),),
        FRAMES,
        "",
        "does not load: NameError: name 'sixteen' is not defined",
        "abi-load",
    ),
)


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return ensure_kernel(DEFAULT_KERNEL, Cache.open(), Progress(quiet=True))


def findings(root: Path, kernel: Kernel) -> list[Finding]:
    return abi.findings(root, kernel, Cache.open(), Progress(quiet=True))


def test_nothing_is_wrong_with_the_tree(kernel: Kernel) -> None:
    assert findings(repository.ROOT, kernel) == []


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_fault_is_told_by_place_and_name(tmp_path: Path, kernel: Kernel, fault: Fault) -> None:
    root = plant(fault.changes, tmp_path / "tree", PARTS)
    found = findings(root, kernel)
    told = [one for one in found if fault.said in one.message]
    assert len(told) == 1, found
    lines = ["", *(root / fault.file).read_text().splitlines()]
    assert (told[0].file, lines[told[0].line].strip(), told[0].rule) == (fault.file, fault.line.strip(), fault.rule)
    if not fault.blames_others:
        assert {one.file for one in found} == {fault.file}


def test_driver_that_is_built_with_another_header_shows_in_its_btf(tmp_path: Path, kernel: Kernel) -> None:
    root = plant((), tmp_path / "tree", PARTS)
    text = (root / UAPI).read_text()
    swapped = text.replace("\t__u32 data_len;\n\t__u32 data_valid;\n", "\t__u32 data_valid;\n\t__u32 data_len;\n")
    assert swapped != text
    (root / "kernel" / Path(UAPI).name).write_text(swapped)
    line = (root / DRIVER).read_text().splitlines().index('#include "hv_azure_blob.h"') + 1
    others = "the header (64-bit), the header (32-bit), the ctypes mirror and uapi/abi.json"
    assert sorted(findings(root, kernel)) == [
        Finding(
            DRIVER,
            line,
            f"az_blob_request_sync.{field}: offset {right} in {others}, {wrong} in the module's BTF",
            LAYOUT,
        )
        for field, right, wrong in (("data_len", 28, 32), ("data_valid", 32, 28))
    ]


def test_incompatible_change_is_recorded_only_with_a_new_number(tmp_path: Path, kernel: Kernel) -> None:
    root = plant(WIDENED, tmp_path / "tree", PARTS)
    before = (root / "uapi/abi.json").read_text()
    with pytest.raises(CheckFailed, match=r"^az_blob_request_sync\.\w+: .*: incompatible, needs a new ioctl number$"):
        abi.examine(root, kernel, Cache.open(), Progress(quiet=True)).record()
    assert (root / "uapi/abi.json").read_text() == before
    for file, old, new in (
        (UAPI, "_IOWR('R', 0xf0", "_IOWR('R', 0xf1"),
        (CLIENT, '_iowr("R", 0xF0', '_iowr("R", 0xF1'),
    ):
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new))
    changed = abi.examine(root, kernel, Cache.open(), Progress(quiet=True)).record()
    assert "az_blob_request_sync.data_valid: field's type changed, u32 to u64" in map(str, changed)
    assert findings(root, kernel) == []


def test_sources_that_disagree_are_not_recorded(tmp_path: Path, kernel: Kernel) -> None:
    root = plant((Change("MAX_PAGES = 8192", "MAX_PAGES = 4096", Path(CLIENT)),), tmp_path / "tree", PARTS)
    examined = abi.examine(root, kernel, Cache.open(), Progress(quiet=True))
    with pytest.raises(CheckFailed, match="do not agree") as error:
        examined.record()
    assert "AZURE_BLOB_MAX_PAGES" in error.value.detail


def test_command_prints_and_records(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["abi"]) == Exit.OK
    assert capsys.readouterr().out.endswith("\nall sources agree, and uapi/abi.json with them\n")
    monkeypatch.setattr(repository, "ROOT", plant(WIDENED, tmp_path / "tree", PARTS))
    assert cli.main(["abi", "--json"]) == Exit.FAILED
    printed = json.loads(capsys.readouterr().out)
    assert printed["abi"]["user"]["structs"]["az_blob_request_sync"]["fields"]["data_valid"]["type"] == "u64"
    assert {one["rule"] for one in printed["findings"]} == {UNRECORDED}
    assert cli.main(["abi", "--record"]) == Exit.FAILED
    told = capsys.readouterr().err
    assert "more changes: incompatible, needs a new ioctl number\n  mend: " in told
    assert "Traceback" not in told


def test_lost_record_is_told_and_made_again(tmp_path: Path, kernel: Kernel) -> None:
    root = plant((), tmp_path / "tree", PARTS)
    recorded = (root / "uapi/abi.json").read_text()
    (root / "uapi/abi.json").unlink()
    examined = abi.examine(root, kernel, Cache.open(), Progress(quiet=True))
    assert [one.message for one in examined.findings] == ["missing; `pyharness abi --record` makes it"]
    examined.record()
    assert (root / "uapi/abi.json").read_text() == recorded


def test_damaged_record_is_told(tmp_path: Path, kernel: Kernel) -> None:
    root = plant((), tmp_path / "tree", PARTS)
    (root / "uapi/abi.json").write_text('{"user": {}}')
    with pytest.raises(CheckFailed, match=r"uapi/abi\.json is no record of the ABI"):
        findings(root, kernel)
