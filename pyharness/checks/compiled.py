# SPDX-License-Identifier: GPL-2.0-only
"""The checks that compile or parse the kernel code: warnings, sparse, gcc's analyzer, coccinelle."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from pyharness.artifacts.kernels import Kernel
from pyharness.artifacts.modules import lay_out_vmbus
from pyharness.checks.check import Check, Uses
from pyharness.checks.context import Context
from pyharness.checks.finding import Finding
from pyharness.checks.needs import GCC, MAKE, PATCH, SPARSE, SPATCH
from pyharness.checks.tools import Output

_DRIVER = "kernel"
_PROVOKER = "kernel/provoke"
_SOURCES = ("kernel/*.c", "kernel/*.h", "kernel/*Kbuild", "uapi/*.h")
_PATCHES = ("kernel/patches/*.patch", "kernel/vmbus/Kbuild")

# hv_provoke commits the faults that the harness must find, so what looks for faults has nothing to say of it.
_ANALYZED = ("kernel/hv_*.c", "kernel/hv_*.h", "uapi/*.h")


def _warnings(context: Context) -> list[Finding]:
    return _everywhere(context, "W=1", "KCFLAGS=-Werror")


def _sparse(context: Context) -> list[Finding]:
    return _everywhere(context, "C=2")


def _analyzer(context: Context) -> list[Finding]:
    return _modules(context, context.artifacts.kernel, [_DRIVER], ["KCFLAGS=-fanalyzer"])


def _everywhere(context: Context, *arguments: str) -> list[Finding]:
    """What the build of each module says, for each kernel, and of hv_vmbus what the patches bring."""
    default, *others = context.artifacts.kernels
    found = _modules(context, default, [_DRIVER, _PROVOKER], arguments)
    for kernel in others:
        known = {(one.file, one.line) for one in found}
        more = _modules(context, kernel, [_DRIVER, _PROVOKER], arguments)
        found += [
            Finding(one.file, one.line, f"{one.message} (for {kernel.name})", one.rule)
            for one in more
            if (one.file, one.line) not in known
        ]
    return found + _vmbus(context, default, [argument for argument in arguments if argument != "KCFLAGS=-Werror"])


def _modules(context: Context, kernel: Kernel, directories: list[str], arguments: Sequence[str]) -> list[Finding]:
    stage = context.work / kernel.name
    files = context.select(*_SOURCES)
    for file in files:
        (stage / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(context.root / file, stage / file)
    found = []
    for directory in directories:
        found += _make(context, kernel, stage, directory, arguments).findings(strip=stage, only=files)
    return found


def _vmbus(context: Context, kernel: Kernel, arguments: Sequence[str]) -> list[Finding]:
    """What the build of hv_vmbus says of lines that the patches add; the kernel's own lines are not ours to judge."""
    stage = context.work / "vmbus"
    lay_out_vmbus(kernel, context.root, stage)
    output = _make(context, kernel, stage, "drivers/hv", arguments)
    if output.status:
        raise output.failure(stage)
    added = _added_lines(context)
    found = []
    for one in output.findings(strip=stage):
        lines = (stage / one.file).read_text().splitlines() if (stage / one.file).is_file() else []
        if 0 < one.line <= len(lines) and (place := added.get((one.file, lines[one.line - 1]))):
            found.append(Finding(*place, one.message, one.rule))
    return found


def _added_lines(context: Context) -> dict[tuple[str, str], tuple[str, int]]:
    """The patch and the line in it of each line that the patches add, by the file that gets it and its text."""
    added: dict[tuple[str, str], tuple[str, int]] = {}
    for patch in context.select("kernel/patches/*.patch"):
        target = ""
        for number, line in enumerate(context.text(patch).splitlines(), start=1):
            if line.startswith("+++ b/"):
                target = line.removeprefix("+++ b/").split("\t")[0]
            elif line.startswith("+") and line[1:].strip():
                added[target, line[1:]] = (patch, number)
    return added


def _make(context: Context, kernel: Kernel, stage: Path, directory: str, arguments: Sequence[str]) -> Output:
    return context.run(
        ["make", "-s", "-j2", "-C", kernel.headers, f"M={stage / directory}", f"CC={kernel.gcc}", *arguments, "modules"]
    )


def _coccinelle(context: Context) -> list[Finding]:
    scripts = context.artifacts.scripts / "coccinelle"
    sources = [file for file in context.select(*_ANALYZED) if file.endswith(".c")]
    found = []
    for script in sorted(scripts.rglob("*.cocci")):
        text = script.read_text()
        # Those two would need an OCaml compiler: one is for another driver, of the other's faults sparse tells too.
        if "script:ocaml" in text:
            continue
        options = re.findall(r"^//\s*Options:(.*)$", text, re.MULTILINE)
        output = context.run(
            [
                *("spatch", "-D", "report", "--no-show-diff", "--very-quiet", "--cocci-file", script),
                *(word for line in options for word in line.split()),
                *("-I", "uapi", *sources),
            ]
        )
        found += [Finding(one.file, one.line, one.message, script.stem) for one in output.findings()]
    return found


CHECKS = (
    Check(
        "coccinelle",
        "the kernel's semantic patches",
        _coccinelle,
        inputs=_ANALYZED,
        needs=(SPATCH,),
        uses=(Uses.SCRIPTS,),
    ),
    Check(
        "sparse",
        "address spaces, byte orders and locks (C=2)",
        _sparse,
        inputs=(*_SOURCES, *_PATCHES),
        needs=(SPARSE, GCC, MAKE, PATCH),
        uses=(Uses.KERNELS,),
    ),
    Check(
        "warnings",
        "the compiler's further warnings (W=1)",
        _warnings,
        inputs=(*_SOURCES, *_PATCHES),
        needs=(GCC, MAKE, PATCH),
        uses=(Uses.KERNELS,),
    ),
    Check("analyzer", "gcc -fanalyzer", _analyzer, inputs=_SOURCES, needs=(GCC, MAKE), uses=(Uses.KERNEL,)),
)
