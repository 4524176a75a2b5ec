# SPDX-License-Identifier: GPL-2.0-only
"""Stacks of real splats are found, and decoded by the DWARF of what was compiled here."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pyharness.artifacts.kernels import Kernel
from pyharness.artifacts.modules import path_mapping
from pyharness.machine.backtrace import Frame, Location, Symbolizer, decode, essence, stacks_in

SPLATS = Path(__file__).parent / "splats"

SOURCE = """\
static volatile int sink;
void caller(int value);
int outer(void);

static inline __attribute__((always_inline)) void inlined(int value)
{
	sink = value;
	caller(value);
}

__attribute__((section(".init.text"))) int setup(void)
{
	caller(1);
	return sink;
}

int outer(void)
{
	inlined(2);
	return sink;
}
"""


def stacks_of(name: str) -> list[tuple[str, list[str]]]:
    lines = (SPLATS / f"{name}.log").read_text().splitlines()
    return [(stack.title, [frame.symbol for frame in essence(stack.frames)]) for stack in stacks_in(lines)]


def test_a_kasan_report_has_three_stacks() -> None:
    stacks = stacks_of("use-after-free-debug-6.12")
    titles = [re.sub(r"\d+", "N", title) for title, _ in stacks]
    assert titles == ["Call Trace", "Allocated by task N", "Freed by task N"]
    assert stacks[0][1] == ["use_after_free", "fault_write", "full_proxy_write", "vfs_write"]
    assert [symbols[:2] for _, symbols in stacks[1:]] == [
        ["__kmalloc_cache_noprof", "use_after_free"],
        ["kfree", "use_after_free"],
    ]


def test_a_lock_inversion_has_the_stack_of_each_side() -> None:
    titles = [title for title, _ in stacks_of("lock-inversion-debug-6.12")]
    assert titles == ["-> #1 (second_lock){+.+.}-{3:3}", "-> #0 (first_lock){+.+.}-{3:3}", "Call Trace"]


@pytest.mark.parametrize("kernel", ["debian-6.1", "debian-6.12", "debug-6.12"], ids="of {}".format)
def test_where_an_oops_happened_comes_first(kernel: str) -> None:
    ((title, symbols), *_) = stacks_of(f"null-dereference-{kernel}")
    assert title == "Call Trace" and symbols[:2] == ["null_dereference", "fault_write"]
    (stack, *_) = stacks_in((SPLATS / f"null-dereference-{kernel}.log").read_text().splitlines())
    assert [frame.exact for frame in stack.frames][:2] == [True, False]


def test_a_stack_goes_on_across_an_interrupt() -> None:
    (_, symbols) = stacks_of("irq-unsafe-lock-debug-6.12")[-1]
    assert symbols.index("take_context_lock") < symbols.index("irq_work_run") < symbols.index("irq_unsafe_lock")


@pytest.mark.parametrize("name", ["innocent-debian-6.12", "boot-debian-6.12"])
def test_no_frame_is_taken_from_a_user_of_the_console(name: str) -> None:
    for stack in stacks_in((SPLATS / f"{name}.log").read_text().splitlines()):
        assert all(frame.size for frame in stack.frames)


def test_a_stack_of_reporting_functions_alone_is_kept() -> None:
    frames = [Frame("dump_stack_lvl", 1, 2), Frame("print_report", 1, 2)]
    assert essence(frames) == frames


@pytest.fixture(scope="module", params=["compiled-in-the-headers", "compiled-in-place"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module as the kernel's build makes one: relocatable, a section for what runs once, paths mapped away.

    Linux 6.13 and later compile a module where its sources are, by relative paths.
    """
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed; install the Debian package gcc")
    top = tmp_path_factory.mktemp("module")
    headers = top / "headers" / "linux-headers-amd64"
    headers.mkdir(parents=True)
    source = top / "sources" / "kernel" / "demo.c"
    source.parent.mkdir(parents=True)
    source.write_text(SOURCE)
    flags = ["-g", "-O2", "-fno-optimize-sibling-calls", "-mcmodel=kernel", "-fno-pie"]
    command: list[str | Path] = ["gcc", *flags, path_mapping(top / "sources"), "-c", "-o", top / "demo.debug.ko"]
    if request.param == "compiled-in-place":
        subprocess.run([*command, source.name], cwd=source.parent, check=True)
    else:
        subprocess.run([*command, source], cwd=headers, check=True)
    return top


def symbolizer(compiled: Path) -> Symbolizer:
    kernel = Kernel(
        "test", "", "", "", "gcc", compiled, compiled / "headers" / "linux-headers-amd64", compiled, vmlinux=None
    )
    return Symbolizer(kernel, {"demo": compiled / "demo.ko", "gone": compiled / "gone.ko"})


def call_offset(compiled: Path, function: str) -> tuple[int, int]:
    """The offset behind the call in `function`, as a stack has it, and the function's size."""
    listing = subprocess.run(
        ["objdump", "-d", f"--disassemble={function}", compiled / "demo.debug.ko"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    base = int(re.search(rf"^([0-9a-f]+) <{function}>:$", listing, re.M)[1], 16)  # type: ignore[index]
    addresses = [(int(found[1], 16), found[2]) for found in re.finditer(r"^ *([0-9a-f]+):.*\t(\w+)", listing, re.M)]
    after = next(addresses[index + 1][0] for index, (_, name) in enumerate(addresses) if name == "call")
    return after - base, addresses[-1][0] + 1 - base


@pytest.mark.parametrize(
    ("function", "places"),
    [
        ("outer", [Location("inlined", "kernel/demo.c", 8), Location("outer", "kernel/demo.c", 19)]),
        ("setup", [Location("setup", "kernel/demo.c", 13)]),
    ],
)
def test_a_call_is_at_its_own_line(compiled: Path, function: str, places: list[Location]) -> None:
    """Not at the line of what follows it, which is where it returns to."""
    offset, size = call_offset(compiled, function)
    frame = Frame(function, offset, size, "demo")
    assert symbolizer(compiled).locate([frame]) == {frame: places}


def test_a_stack_is_shown_with_what_was_inlined(compiled: Path) -> None:
    offset, size = call_offset(compiled, "outer")
    lines = [
        "[    1.000000] Call Trace:",
        "[    1.000000]  <TASK>",
        "[    1.000000]  dump_stack_lvl+0x8e/0xa0",
        "[    1.000000]  ? noise+0x1/0x2",
        f"[    1.000000]  outer+{offset:#x}/{size:#x} [demo]",
        "[    1.000000]  vfs_write+0x1f/0x450",
        "[    1.000000]  lost+0x1/0x2 [gone]",
        "[    1.000000]  do_syscall_64+0x63/0x100",
        "[    1.000000]  </TASK>",
    ]
    assert decode(lines, symbolizer(compiled)).splitlines() == [
        "Call Trace:",
        "    kernel/demo.c:8  inlined (inlined)",
        "    kernel/demo.c:19  outer [demo]",
        "    vfs_write+0x1f/0x450",
        "    lost+0x1/0x2 [gone]",
    ]


def test_a_splat_without_a_stack_shows_what_it_mentions(compiled: Path) -> None:
    offset, size = call_offset(compiled, "setup")
    line = f"[    1.000000]  #0: (lock){{+.+.}}-{{3:3}}, at: setup+{offset:#x}/{size:#x} [demo]"
    assert decode([line], symbolizer(compiled)) == "Mentioned:\n    kernel/demo.c:13  setup [demo]"
    assert decode(["[    1.000000] kmemleak: 1 new suspected memory leaks"], symbolizer(compiled)) == ""


def test_an_image_that_nothing_can_be_told_of_leaves_the_stack_as_it_is(compiled: Path) -> None:
    broken = compiled / "broken.debug.ko"
    broken.write_text("no ELF file")
    kernel = replace(symbolizer(compiled).kernel, vmlinux=broken)
    assert decode(["[    1.000000]  vfs_write+0x1f/0x450"], Symbolizer(kernel, {})) == "    vfs_write+0x1f/0x450"
