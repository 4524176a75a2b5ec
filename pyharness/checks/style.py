# SPDX-License-Identifier: GPL-2.0-only
"""The checks of style: the kernel's and QEMU's own scripts, and the spelling."""

from __future__ import annotations

import re
from dataclasses import replace

from pyharness.checks.check import Check, Uses
from pyharness.checks.context import Context
from pyharness.checks.finding import Finding
from pyharness.checks.needs import PERL, VenvTool
from pyharness.checks.tools import Output

_CODESPELL = VenvTool("codespell")

KERNEL_SOURCES = ("kernel/*.c", "kernel/*.h", "uapi/*.h")
_KERNEL_PATCHES = ("kernel/*.patch",)
_QEMU_SOURCES = ("qemu/src/*",)
_QEMU_PATCHES = ("qemu/patches/*.patch",)
_TERSE = ("--no-tree", "--strict", "--terse", "--no-summary")
_QEMU_CODE = re.compile(r"\.(c|h|S|inc)$")


def _checkpatch(context: Context) -> list[Finding]:
    scripts = context.artifacts.scripts
    options = ["--show-types", "--max-line-length=100", f"--codespellfile={scripts / 'spelling.txt'}"]
    argv = ["perl", str(scripts / "checkpatch.pl"), *_TERSE, *options]
    found = _complaints(context.run([*argv, "--file", *context.select(*KERNEL_SOURCES)]))
    for patch in context.select(*_KERNEL_PATCHES):
        # Through a pipe: checkpatch takes a patch that git tracks for a source file. The patches are unsigned until
        # somebody sends them under their own name.
        found += _complaints(context.run([*argv, "--no-signoff", "-"], stdin=context.text(patch)), patch)
    return found


def _qemu_checkpatch(context: Context) -> list[Finding]:
    argv = ["perl", str(context.artifacts.qemu_checkpatch), *_TERSE]
    found = []
    for file in context.select(*_QEMU_SOURCES):
        if _QEMU_CODE.search(file):
            found += _complaints(context.run([*argv, "--file", file]))
    for patch in context.select(*_QEMU_PATCHES):
        found += _complaints(context.run([*argv, "--no-signoff", "-"], stdin=context.text(patch)), patch)
    return found


def _complaints(output: Output, patch: str = "") -> list[Finding]:
    """What a checkpatch.pl says of files, or of a patch that came through a pipe."""
    found = []
    for line in output.lines:
        if match := re.match(
            r"(?P<file>\S+?):(?P<line>\d+): (?:ERROR|WARNING|CHECK):(?:(?P<rule>\w+):)? ?(?P<text>.*)", line
        ):
            found.append(Finding(patch or match["file"], int(match["line"]), match["text"], match["rule"] or ""))
    if output.status and not found:
        raise output.failure()
    return found


def _kernel_doc(context: Context) -> list[Finding]:
    script = context.artifacts.scripts / "kernel-doc"
    output = context.run(["perl", script, "-none", "-Wall", "-Werror", *context.select(*KERNEL_SOURCES)])
    return [replace(found, line=_declaration(context, found)) for found in output.findings()]


def _declaration(context: Context, found: Finding) -> int:
    """The line that names what the finding is about: the script gives that of its end."""
    if about := re.search(r" in '(\w+)'$", found.message):
        lines = context.text(found.file).splitlines()[: found.line]
        named = [number for number, line in enumerate(lines, start=1) if re.search(rf"\b{about[1]}\b", line)]
        return named[-1] if named else found.line
    return found.line


def _codespell(context: Context) -> list[Finding]:
    output = context.run([_CODESPELL.path, "--disable-colors", *context.files])
    return [Finding(found.file, found.line, found.message, "spelling") for found in output.findings()]


def _mend_spelling(context: Context) -> None:
    context.run([_CODESPELL.path, "--disable-colors", "--write-changes", *context.files])


CHECKS = (
    Check(
        "checkpatch",
        "the kernel's style, strictly",
        _checkpatch,
        inputs=(*KERNEL_SOURCES, *_KERNEL_PATCHES),
        needs=(PERL,),
        uses=(Uses.SCRIPTS,),
    ),
    Check(
        "kernel-doc",
        "the kernel's documentation comments",
        _kernel_doc,
        inputs=KERNEL_SOURCES,
        needs=(PERL,),
        uses=(Uses.SCRIPTS,),
    ),
    Check(
        "qemu-checkpatch",
        "QEMU's style, strictly",
        _qemu_checkpatch,
        inputs=(*_QEMU_SOURCES, *_QEMU_PATCHES),
        needs=(PERL,),
        uses=(Uses.QEMU_CHECKPATCH,),
    ),
    Check("codespell", "spelling", _codespell, inputs=("*",), needs=(_CODESPELL,), fix=_mend_spelling),
)
