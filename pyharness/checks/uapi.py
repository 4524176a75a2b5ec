# SPDX-License-Identifier: GPL-2.0-only
"""The checks of the interfaces: the headers for user space as the kernel installs them, and all that mirrors them."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

from pyharness import abi
from pyharness.checks.check import Check, Uses
from pyharness.checks.context import Context
from pyharness.checks.finding import Finding
from pyharness.checks.needs import GCC, GXX, HOST_GCC, MAKE, PAHOLE

_HEADERS = ("uapi/*.h",)
_COMPILERS = (("gcc-12", "-xc", "-std=c90"), ("g++", "-xc++", "-std=c++98"))
_WIDTHS = ("-m64", "-m32")
_BRIEF = "-fno-diagnostics-show-caret"
_COMMAND = re.compile(r"^#define[ \t]+(\w+)[ \t]+_IO[RW]*\(", re.MULTILINE)
_REFUSED = re.compile(r"^error: \S+: (?P<message>.*)$")


def _abi(context: Context) -> list[Finding]:
    artifacts = context.artifacts
    return abi.findings(context.root, artifacts.kernel, artifacts.cache, artifacts.progress)


def _self_contained(context: Context) -> list[Finding]:
    return _compile(context, "-Wall", "-Wextra", "-pedantic")


def _padding(context: Context) -> list[Finding]:
    # What else a compiler may object to is the other check's.
    return [found for found in _compile(context, "-Wpadded") if found.rule == "Wpadded"]


def _compile(context: Context, *warnings: str) -> list[Finding]:
    """What the compilers say of each installed header: C and C++, of 64 and of 32 bits, included twice, and used."""
    installed = context.work / "linux"
    installed.mkdir()
    found: list[Finding] = []
    for header in context.select(*_HEADERS):
        name = Path(header).name
        if refused := _install(context, header, installed / name):
            found.append(refused)
            continue
        user = context.work / "user.c"
        commands = _COMMAND.findall(context.text(header))
        uses = [f"unsigned long use_of_{command}(void) {{ return {command}; }}" for command in commands]
        prototypes = [f"unsigned long use_of_{command}(void);" for command in commands]
        user.write_text("\n".join([f"#include <linux/{name}>"] * 2 + prototypes + uses) + "\n")
        headers = context.artifacts.headers / "usr/include"
        paths: list[str | Path] = ["-nostdinc", f"-I{context.work}", "-isystem", headers, user]
        for (compiler, language, standard), width in product(_COMPILERS, _WIDTHS):
            output = context.run([compiler, language, standard, width, "-fsyntax-only", _BRIEF, *warnings, *paths])
            for one in output.findings(strip=context.work):
                # A name that the header does not define shows where it is used: in the program.
                line = one.line if one.file == f"linux/{name}" else 0
                found.append(Finding(header, line, f"{one.message} ({compiler} {standard} {width})", one.rule))
    return _first_of_each(found)


def _install(context: Context, header: str, into: Path) -> Finding | None:
    """Install a header as the kernel does; returns what its script objects to."""
    script = context.artifacts.scripts / "headers_install.sh"
    output = context.run(["sh", script, context.root / header, into], cwd=context.artifacts.headers)
    for line in output.lines:
        if match := _REFUSED.match(line):
            return Finding(header, 0, match["message"], "headers_install")
    if output.status:
        raise output.failure()
    return None


def _first_of_each(findings: list[Finding]) -> list[Finding]:
    """One finding of each place and rule: four compilers say the same."""
    return list({(one.file, one.line, one.rule): one for one in reversed(findings)}.values())[::-1]


CHECKS = (
    Check(
        "uapi-header",
        "the installed header compiles by itself: C90, C++98, 64 and 32 bits",
        _self_contained,
        inputs=_HEADERS,
        needs=(GCC, GXX),
        uses=(Uses.HEADERS,),
    ),
    Check(
        "uapi-padding",
        "no padding in the header that is not spelt out",
        _padding,
        inputs=_HEADERS,
        needs=(GCC, GXX),
        uses=(Uses.HEADERS,),
    ),
    Check(
        "abi",
        "header, module, QEMU and Python have the same interfaces, and uapi/abi.json too",
        _abi,
        inputs=(
            "kernel/*",
            "uapi/*",
            "qemu/src/include/*",
            "pyharness/abi/*.py",
            "pyharness/client/abi.py",
            "pyharness/vsp/frames.py",
            "pyharness/vsp/layout.py",
            "pyharness/vsp/wire.py",
        ),
        needs=(GCC, HOST_GCC, MAKE, PAHOLE),
        uses=(Uses.KERNEL,),
    ),
)
