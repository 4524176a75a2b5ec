# SPDX-License-Identifier: GPL-2.0-only
"""Where in the source the stacks of a splat are: `symbol+0x1c/0x40 [module]` as file and line, with inlined functions.

The symbols are looked up by binutils' readelf, the lines by its addr2line, each once per file and splat.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

from pyharness.artifacts.kernels import Kernel
from pyharness.machine.crash import message_of

_MAX_FRAMES = 16
_TOOL_TIMEOUT_S = 20.0

_SYMBOL = r"(?P<symbol>[A-Za-z_][\w.$]*)\+0x(?P<offset>[0-9a-f]+)/0x(?P<size>[0-9a-f]+)(?: \[(?P<module>\w+)[^\]]*\])?"
_FRAME = re.compile(rf" *(?:\[<[0-9a-f]+>\] )?{_SYMBOL} *$")
_FAULT = re.compile(rf"RIP: 0010:{_SYMBOL}")
# Frames that the kernel doubts, the names of stacks, registers.
_NO_TITLE = re.compile(r" *((\[<[0-9a-f]+>\] )?\? |</?[#A-Za-z_ ]+>$|(RIP|RSP|R..|Code|ORIG_RAX): )")
_CALL_TRACE = "Call Trace"

# Since Linux 6.13 modules are compiled in place. Binutils joins a relative directory of compilation with itself.
_DOUBLED = re.compile(r"^([^/].*/)\1")

_SECTION = re.compile(r" *\[ *(\d+)\] (\S+) ")
_ENTRY = re.compile(
    r" *\d+: (?P<value>[0-9a-f]+) +(?P<size>\w+) (FUNC|NOTYPE) +\S+ +\S+ +(?P<section>\d+) (?P<name>\S+)"
)

# How a report comes about, above the code that it is about; and how each system call or thread begins, below.
_REPORTING = re.compile(
    r"dump_stack|print_\w*(report|bug|usage|address)|_*(kasan|asan|kfence|ubsan|kmemleak)_|check_(region|slab)|_*warn|"
    r"report_bug|handle_bug|(asm_)?exc_|_*might_(resched|sleep)|_*schedule_bug|save_stack|stack_trace|stack_depot|set_track|"
    r"_*lock_acquire|check_(noncircular|prev|wait)|mark_lock|mark_usage|validate_chain|lockdep_|valid_state|die|"
    r"no_context|page_fault_oops|do_user_addr|watchdog|_*hrtimer|sysvec|asm_sysvec|nmi_|rcu_sched_clock|update_process|"
    r"tick_|kfree_debug|debug_(print|check|object)|_*debug_"
)
_BEGINNING = re.compile(
    r"ksys_|__(x64|ia32)_sys_|(x64|ia32)_sys_|do_(syscall|int80|fast_syscall)_|entry_|ret_from_fork"
)


@dataclass(frozen=True)
class Frame:
    """One line of a stack. An address of return lies behind its call; where a fault happened is `exact`."""

    symbol: str
    offset: int
    size: int
    module: str = ""
    exact: bool = False

    def __str__(self) -> str:
        return f"{self.symbol}+{self.offset:#x}/{self.size:#x}" + (f" [{self.module}]" if self.module else "")


@dataclass(frozen=True)
class Location:
    """A function and where in its file; of the inlined ones each has its own."""

    function: str
    file: str
    line: int


@dataclass
class Stack:
    """One stack of a splat, under the title that the kernel gives it."""

    title: str
    frames: list[Frame]


def stacks_in(lines: Iterable[str]) -> list[Stack]:
    """The stacks of a splat, without the frames that the kernel itself doubts."""
    stacks: list[Stack] = []
    open_stack: Stack | None = None
    title, fault = "", None
    for line in lines:
        # /dev/kmsg writes a line feed within a message like that.
        message = (message_of(line) or line).removeprefix(r"\x0a")
        if found := _FAULT.match(message):
            fault = _frame(found, exact=True)
            if open_stack:  # what an interrupt has interrupted
                open_stack.frames.append(fault)
                fault = None
        elif found := _FRAME.match(message):
            if open_stack is None:
                open_stack = Stack(title.strip().rstrip(":"), [])
                stacks.append(open_stack)
                if fault and open_stack.title == _CALL_TRACE:
                    open_stack.frames.append(fault)
                    fault = None
            open_stack.frames.append(_frame(found))
        elif not _NO_TITLE.match(message):
            title, open_stack = message, None
    return stacks


def mentions_in(lines: Iterable[str]) -> list[Stack]:
    """What a splat without stacks says of the code, such as where a lock was taken."""
    found = [_frame(match) for line in lines for match in re.finditer(_SYMBOL, line)]
    return [Stack("Mentioned", list(dict.fromkeys(found)))] if found else []


def _frame(found: re.Match[str], *, exact: bool = False) -> Frame:
    return Frame(found["symbol"], int(found["offset"], 16), int(found["size"], 16), found["module"] or "", exact)


def essence(frames: Sequence[Frame]) -> list[Frame]:
    """The frames between how the report came about and how the system call or thread began."""

    def reports(frame: Frame) -> bool:
        return not frame.exact and bool(_REPORTING.match(frame.symbol))

    kept = list(dropwhile(reports, frames)) or list(frames)
    end = next((index for index, frame in enumerate(kept) if _BEGINNING.match(frame.symbol)), len(kept))
    return (kept[:end] or kept)[:_MAX_FRAMES]


class Symbolizer:
    """Finds the source of frames in the images that have DWARF; a frame of any other image has none."""

    def __init__(self, kernel: Kernel, modules: Mapping[str, Path]) -> None:
        """`modules`: the file that was loaded for each module, beside which its debug file is."""
        self.kernel = kernel
        self._images = {name: path.with_suffix(".debug.ko") for name, path in modules.items()}
        if kernel.vmlinux:
            self._images[""] = kernel.vmlinux

    def locate(self, frames: Iterable[Frame]) -> dict[Frame, list[Location]]:
        """Each frame's locations, the innermost inlined function first."""
        by_image: dict[Path, list[Frame]] = defaultdict(list)
        for frame in dict.fromkeys(frames):
            image = self._images.get(frame.module)
            if image and image.exists():
                by_image[image].append(frame)
        located: dict[Frame, list[Location]] = {}
        for image, wanted in by_image.items():
            with suppress(OSError, subprocess.SubprocessError):  # without the tools a stack stays as it is
                located |= self._locate_in(image, wanted)
        return located

    def _locate_in(self, image: Path, frames: Sequence[Frame]) -> dict[Frame, list[Location]]:
        located: dict[Frame, list[Location]] = {}
        for section, addresses in _addresses(image, frames).items():
            found = _lines(image, section, sorted(set(addresses.values())))
            for frame, address in addresses.items():
                places = [Location(name, self._source(file), line) for name, file, line in found.get(address, ())]
                # Assembler's names are those of a directory that is gone.
                if places and places[-1].line and not places[-1].file.startswith("/"):
                    located[frame] = places
        return located

    def _source(self, file: str) -> str:
        """A path as the repository or the kernel's source has it; the headers' directory is what compiled modules."""
        path = Path(os.path.normpath(_DOUBLED.sub(r"\1", file)))
        for top, depth in ((self.kernel.headers, 0), (self.kernel.headers.parent, 1)):
            if path.is_relative_to(top):
                path = Path(*path.relative_to(top).parts[depth:])
        return path.as_posix()


def _addresses(image: Path, frames: Sequence[Frame]) -> dict[str, dict[Frame, int]]:
    """Each frame's address, by section: in a module each section begins at zero."""
    wanted = {frame.symbol for frame in frames}
    sections: dict[str, str] = {}
    symbols: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for line in _output("readelf", "-SsW", str(image)):
        if header := _SECTION.match(line):
            sections[header[1]] = header[2]
        elif (symbol := _ENTRY.match(line)) and symbol["name"] in wanted:
            symbols[symbol["name"]].append((int(symbol["value"], 16), int(symbol["size"], 0), symbol["section"]))
    found: dict[str, dict[Frame, int]] = defaultdict(dict)
    for frame in frames:
        # The kernel counts a function to the next symbol, so the size is not quite the same.
        fitting = sorted(symbols[frame.symbol], key=lambda entry: abs(entry[1] - frame.size))
        if fitting:
            value, _size, section = fitting[0]
            found[sections.get(section, "")][frame] = value + frame.offset - (not frame.exact)
    return found


def _lines(image: Path, section: str, addresses: Sequence[int]) -> dict[int, list[tuple[str, str, int]]]:
    """Function, file and line of each address, the innermost inlined function first."""
    relative = ["-j", section] if image.suffix == ".ko" else []
    found: dict[int, list[tuple[str, str, int]]] = {}
    lines = _output("addr2line", "-a", "-f", "-i", *relative, "-e", str(image), *map(hex, addresses))
    here: list[tuple[str, str, int]] = []
    for line in lines:
        if line.startswith("0x"):
            here = found.setdefault(int(line, 16), [])
            continue
        file, _, number = next(lines, "").partition(" (discriminator")[0].rpartition(":")
        here.append((line, file, int(number) if number.isdecimal() else 0))
    return found


def _output(*command: str) -> Iterator[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TOOL_TIMEOUT_S)
    return iter(done.stdout.splitlines())


def decode(lines: Iterable[str], symbolizer: Symbolizer) -> str:
    """The stacks of a splat, a line for each function, the innermost first; empty when it has none."""
    lines = list(lines)
    stacks = [Stack(stack.title, essence(stack.frames)) for stack in stacks_in(lines)] or mentions_in(lines)
    located = symbolizer.locate(frame for stack in stacks for frame in stack.frames)
    return "\n".join(line for stack in stacks for line in _shown(stack, located))


def _shown(stack: Stack, located: Mapping[Frame, list[Location]]) -> Iterator[str]:
    if stack.title:
        yield f"{stack.title}:"
    for frame in stack.frames:
        places = located.get(frame)
        if not places:
            yield f"    {frame}"
            continue
        for place in places[:-1]:
            yield f"    {place.file}:{place.line}  {place.function} (inlined)"
        own = places[-1]
        yield f"    {own.file}:{own.line}  {own.function}" + (f" [{frame.module}]" if frame.module else "")
