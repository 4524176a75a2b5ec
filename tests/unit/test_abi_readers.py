# SPDX-License-Identifier: GPL-2.0-only
"""The readers of DWARF and BTF: the same structs from both, and what no ABI can be made of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyharness.abi import btf, dwarf
from pyharness.abi.header import compile_header
from pyharness.abi.model import Field, Ioctl, Struct
from pyharness.artifacts.run import run
from pyharness.errors import CheckFailed, HarnessError

SOURCE = """\
typedef unsigned int u32;
enum mode { ON = 1 };
struct inner { u32 a; };
struct all_kinds {
	const signed char small;
	_Bool is;
	short pair[2];
	u32 square[3][4];
	struct inner inner;
	struct inner inners[2];
	enum mode mode;
	volatile unsigned long long *where;
	unsigned char rest[];
};
struct all_kinds kept;
"""
EXPECTED = Struct(
    "all_kinds",
    80,
    None,
    (
        Field("small", 0, 1, "s8"),
        Field("is", 1, 1, "u8"),
        Field("pair", 2, 4, "s16", 2),
        Field("square", 8, 48, "u32", 12),
        Field("inner", 56, 4, "struct inner"),
        Field("inners", 60, 8, "struct inner", 2),
        Field("mode", 68, 4, "enumeration mode"),
        Field("where", 72, 8, "pointer"),
    ),
)

Reader = Callable[[Path], dict[str, Struct]]
READERS: dict[str, Reader] = {
    "DWARF": dwarf.structs_of,
    "BTF": lambda path: btf.structs_of(btf.of_module(path), ("all_kinds", "inner", "packed")),
}


def compiled(directory: Path, source: str) -> Path:
    (directory / "kinds.c").write_text(source)
    run(["gcc", "-c", "-g", directory / "kinds.c", "-o", directory / "kinds.o"])
    return directory / "kinds.o"


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_every_kind_of_field(tmp_path: Path, reader: Reader) -> None:
    source = SOURCE.replace("short pair[2];", "short pair[2] __attribute__((aligned(2)));")
    found = reader(compiled(tmp_path, source))
    assert found == {"all_kinds": EXPECTED, "inner": Struct("inner", 4, None, (Field("a", 0, 4, "u32"),))}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_bit_field_is_refused(tmp_path: Path, reader: Reader) -> None:
    target = compiled(tmp_path, "struct packed { unsigned int low : 3; unsigned int high : 29; } kept;\n")
    with pytest.raises(CheckFailed, match=r"^packed\.low is a bit-field"):
        reader(target)


def test_missing_pahole_is_told_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = compiled(tmp_path, SOURCE)
    setpriv = shutil.which("setpriv")
    assert setpriv
    (tmp_path / "setpriv").symlink_to(setpriv)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HarnessError, match=r"^pahole is not installed$") as error:
        btf.of_module(target)
    assert "Debian package pahole" in error.value.mend


def test_what_is_no_btf_is_told() -> None:
    with pytest.raises(HarnessError, match="not BTF"):
        btf.structs_of(b"BTF", ())


def test_constants_and_ioctls_of_a_header(tmp_path: Path) -> None:
    header = tmp_path / "h.h"
    header.write_text(
        "#ifndef H_H\n#define H_H\n#include <linux/ioctl.h>\n"
        "#define LIMIT (1 << 3) /* #define NOT 1 */\n"
        "#define LONG \\\n\t(LIMIT + 1)\n"
        "#define FUNCTION(x) (x)\n"
        "#define MARKED __attribute__((packed))\n"
        "enum { FIRST = 5, SECOND };\n"
        "struct MARKED s { char c; int i; };\n"
        "#define PLAIN _IO('q', 1)\n"
        "#define GET _IOR('q', 2, struct s)\n"
        "#define SET _IOW('q', 3, int)\n"
        "#endif\n"
    )
    for bits in (64, 32):
        found = compile_header(header, bits)
        assert found.constants == {"LIMIT": 8, "LONG": 9, "FIRST": 5, "SECOND": 6}
        assert found.ioctls == {
            "PLAIN": Ioctl(0x7101),
            "GET": Ioctl(0x80057102, "s"),
            "SET": Ioctl(0x40047103, "int"),
        }
        assert found.structs == {"s": Struct("s", 5, 1, (Field("c", 0, 1, "s8"), Field("i", 1, 4, "s32")))}
