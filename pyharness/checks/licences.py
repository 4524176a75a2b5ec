# SPDX-License-Identifier: GPL-2.0-only
"""The checks of licences: tags, texts, and what the kernel is told."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator

from pyharness.checks.check import Check, Uses
from pyharness.checks.context import Context
from pyharness.checks.finding import Finding
from pyharness.checks.needs import GIT, Library, VenvTool
from pyharness.series.git import Repository

_REUSE = VenvTool("reuse")

# The tag's name is split so that `reuse` does not take this line for one.
_TAG = re.compile(r"SPDX-License-" r"Identifier: (?P<tag>[^*\n]+?)\s*(?:\*/)?$")
_HEAD_LINES = 30
_CODE = re.compile(r"\.(py|c|h|S|inc)$|(^|/)Kbuild$")
_DEMANDED = (
    ("uapi/*", "GPL-2.0-only WITH Linux-syscall-note"),
    ("qemu/*", "GPL-2.0-or-later"),
    ("kernel/*", "GPL-2.0-only"),
    ("pyharness/*", "GPL-2.0-only"),
    ("tests/*", "GPL-2.0-only"),
)
_NOTE = "Linux-syscall-note"
_UAPI = "uapi/*.h"

_MODULE_LICENSE = re.compile(r'MODULE_LICENSE\("(?P<name>[^"]*)"\)')
# What Documentation/process/license-rules.rst says for each tag that our modules may have.
_MODULE_NAME = {
    "GPL-2.0-only": "GPL",
    "GPL-2.0-or-later": "GPL",
    "GPL-2.0-only OR BSD-2-Clause": "Dual BSD/GPL",
    "GPL-2.0-only OR BSD-3-Clause": "Dual BSD/GPL",
    "GPL-2.0-only OR MIT": "Dual MIT/GPL",
    "GPL-2.0-only OR MPL-1.1": "Dual MPL/GPL",
}

# Where a kernel's tree has our files.
_PLACE_IN_KERNEL = (("uapi/", "include/uapi/linux/"), ("kernel/", "drivers/hv/azure_blob/"))


def _tag_of(context: Context, file: str) -> tuple[int, str]:
    """The line and the text of a file's tag; line 0 and nothing where there is none."""
    for number, line in enumerate(context.text(file).splitlines()[:_HEAD_LINES], start=1):
        if found := _TAG.search(line):
            return number, found["tag"]
    return 0, ""


def _spdx(context: Context) -> list[Finding]:
    found = []
    for pattern, demanded in _DEMANDED:
        for file in context.select(pattern):
            if _CODE.search(file):
                line, tag = _tag_of(context, file)
                if tag != demanded:
                    found.append(Finding(file, line, f"has {tag or 'no tag'}, must have {demanded}", "tag"))
    return found


def _syscall_note(context: Context) -> list[Finding]:
    headers = set(context.select(_UAPI))
    found = []
    for file in context.files:
        line, tag = _tag_of(context, file)
        if file in headers and _NOTE not in tag:
            found.append(Finding(file, line, f"a header for user space must have the {_NOTE}", "missing-note"))
        elif file not in headers and _NOTE in tag:
            found.append(Finding(file, line, f"the {_NOTE} is for headers for user space alone", "note"))
    return found


def _module_license(context: Context) -> list[Finding]:
    found = []
    for file, line, name in _module_licenses(context):
        _, tag = _tag_of(context, file)
        if name != _MODULE_NAME.get(tag):
            wanted = _MODULE_NAME.get(tag, "no name that is known")
            says = f'MODULE_LICENSE says "{name}"' if name else "there is no MODULE_LICENSE"
            message = f"{says}, but the tag {tag or '(none)'} asks for {wanted}"
            found.append(Finding(file, line, message, "module-license"))
    return found


def _module_licenses(context: Context) -> Iterator[tuple[str, int, str]]:
    for file in context.select("kernel/*.c"):
        names = [
            (number, match["name"])
            for number, line in enumerate(context.text(file).splitlines(), start=1)
            if (match := _MODULE_LICENSE.search(line))
        ]
        yield from ((file, number, name) for number, name in names or [(0, "")])


def _spdxcheck(context: Context) -> list[Finding]:
    tree = context.work / "tree"
    shutil.copytree(context.artifacts.source.directory / "LICENSES", tree / "LICENSES")
    ours = {}
    for here, there in _PLACE_IN_KERNEL:
        for file in context.select(f"{here}*"):
            if _CODE.search(file):
                ours[there + file.removeprefix(here)] = file
    for placed, file in ours.items():
        (tree / placed).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(context.root / file, tree / placed)
    # The script reads the licences of the last commit.
    Repository.of(tree, {}, "pyharness", "pyharness@localhost", date=0)
    # It exits with 0 whatever it finds in a file: what it prints is the verdict.
    output = context.run([sys.executable, context.artifacts.scripts / "spdxcheck.py", "--files", *ours], cwd=tree)
    if output.status:
        raise output.failure()
    found: list[Finding] = []
    for line in output.lines:
        if complaint := re.match(r"(?P<file>\S+): (?P<line>\d+):\d+ (?P<text>.*)", line):
            found.append(Finding(ours[complaint["file"]], int(complaint["line"]), complaint["text"], "spdxcheck"))
        elif untagged := re.match(r"\s+\./(?P<file>\S+)$", line):
            # A file whose tag is wrong is listed as one without.
            file = ours[untagged["file"]]
            if file not in {one.file for one in found}:
                found.append(Finding(file, 0, "has no SPDX tag", "spdxcheck"))
    return found


def _reuse(context: Context) -> list[Finding]:
    output = context.run([_REUSE.path, "--root", ".", "lint", "--lines"])
    found = []
    for line in output.stdout.splitlines():
        file, separator, text = line.partition(": ")
        if separator:
            name = file.removeprefix(f"{context.root}/").removeprefix("./")
            found.append(Finding(name, _tag_of(context, name)[0], text, "reuse"))
    if output.status and not found:
        raise output.failure()
    return found


CHECKS = (
    Check("spdx", "the licence tag that each directory demands", _spdx, inputs=("*",)),
    Check("syscall-note", "the syscall note, on the headers for user space alone", _syscall_note, inputs=("*",)),
    Check("module-license", "MODULE_LICENSE as the tag asks for", _module_license, inputs=("kernel/*.c",)),
    Check(
        "spdxcheck",
        "the tags as the kernel's own script reads them",
        _spdxcheck,
        inputs=("kernel/*", "uapi/*"),
        needs=(GIT, Library("ply"), Library("GitPython")),
        uses=(Uses.SCRIPTS,),
    ),
    Check("reuse", "a licence, its text and a copyright for every file", _reuse, inputs=("*",), needs=(_REUSE, GIT)),
)
