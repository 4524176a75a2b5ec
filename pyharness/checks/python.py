# SPDX-License-Identifier: GPL-2.0-only
"""The checks of Python and of shell scripts."""

from __future__ import annotations

import json
import re

from pyharness.checks.check import Check
from pyharness.checks.context import Context
from pyharness.checks.finding import Finding
from pyharness.checks.needs import SHELLCHECK, VenvTool

_RUFF = VenvTool("ruff")
_MYPY = VenvTool("mypy")
_SOURCES = ("*.py", "pyproject.toml")
_SHEBANG = re.compile(r"#!.*\b(?:ba|da)?sh\b")


def _ruff(context: Context) -> list[Finding]:
    output = context.run([_RUFF.path, "check", "--no-cache", "--output-format=json", "."])
    if output.status not in (0, 1):
        raise output.failure()
    return [
        Finding(
            str(found["filename"]).removeprefix(f"{context.root}/"),
            found["location"]["row"],
            found["message"],
            found["code"] or "syntax",
        )
        for found in json.loads(output.stdout)
    ]


def _mend_lint(context: Context) -> None:
    context.run([_RUFF.path, "check", "--no-cache", "--quiet", "--fix", "."])


def _ruff_format(context: Context) -> list[Finding]:
    output = context.run([_RUFF.path, "format", "--no-cache", "--diff", "."])
    found, file, at, told = [], "", 0, False
    for line in output.stdout.splitlines():
        if line.startswith("--- "):
            file = line.removeprefix("--- ")
        elif hunk := re.match(r"@@ -(\d+)", line):
            at, told = int(hunk[1]), False
        elif line.startswith(("-", "+")) and at and not told:
            found.append(Finding(file, at, "ruff would lay this out in another way", "format"))
            told = True
        elif line.startswith(" "):
            at += 1
    if output.status and not found:
        raise output.failure()
    return found


def _mend_format(context: Context) -> None:
    context.run([_RUFF.path, "format", "--no-cache", "--quiet", "."])


def _mypy(context: Context) -> list[Finding]:
    return context.run([_MYPY.path, "--no-error-summary", "--no-color-output", "--hide-error-context"]).findings()


def _shellcheck(context: Context) -> list[Finding]:
    output = context.run(["shellcheck", "--format=json", *_scripts(context)])
    if output.status not in (0, 1):
        raise output.failure()
    return [
        Finding(found["file"], found["line"], found["message"], f"SC{found['code']}")
        for found in json.loads(output.stdout)
    ]


def _scripts(context: Context) -> list[str]:
    """The shell scripts, by their first line; a file with an ending that is not .sh is none."""
    plain = [file for file in context.files if "." not in file.rpartition("/")[2] or file.endswith(".sh")]
    return [file for file in plain if _SHEBANG.match(context.text(file).partition("\n")[0])]


CHECKS = (
    Check("ruff", "Python: lint", _ruff, inputs=_SOURCES, needs=(_RUFF,), fix=_mend_lint),
    Check("ruff-format", "Python: layout", _ruff_format, inputs=_SOURCES, needs=(_RUFF,), fix=_mend_format),
    Check("mypy", "Python: types, strictly", _mypy, inputs=(*_SOURCES, "requirements.lock"), needs=(_MYPY,)),
    Check("shellcheck", "shell scripts", _shellcheck, inputs=("*",), needs=(SHELLCHECK,)),
)
