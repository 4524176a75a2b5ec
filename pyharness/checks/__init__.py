# SPDX-License-Identifier: GPL-2.0-only
"""Static checks, one table row each. A missing tool is a skip that says what to install, never a pass."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pyharness import repository


class Verdict(Enum):
    """What a check says of the tree."""

    PASS = "pass"
    FAIL = "FAIL"
    SKIP = "skip"


@dataclass(frozen=True)
class Result:
    """A verdict with what the tool printed (a failure) or what is missing (a skip)."""

    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True)
class Check:
    """A named check. `kernel_source` is the unpacked part of a kernel's source that holds scripts/."""

    name: str
    summary: str
    examine: Callable[[Path], Result]


def _run(argv: list[str], stdin: str = "") -> Result:
    done = subprocess.run(argv, cwd=repository.ROOT, input=stdin, capture_output=True, text=True, check=False)
    output = (done.stdout + done.stderr).strip()
    return Result(Verdict.PASS) if done.returncode == 0 else Result(Verdict.FAIL, output)


def _venv_tool(name: str, *arguments: str) -> Callable[[Path], Result]:
    def examine(_kernel_source: Path) -> Result:
        tool = Path(sys.executable).with_name(name)
        if not tool.exists():
            return Result(Verdict.SKIP, f"{name} is not in the virtual environment; run scripts/setup")
        return _run([str(tool), *arguments])

    return examine


def c_sources() -> list[Path]:
    """The kernel-style C files of the repository, relative to its root."""
    files = [*(repository.ROOT / "kernel").rglob("*.[ch]"), *(repository.ROOT / "uapi").rglob("*.h")]
    return sorted(file.relative_to(repository.ROOT) for file in files)


def patches() -> list[Path]:
    """The patches against the kernel, relative to the repository's root."""
    return sorted(file.relative_to(repository.ROOT) for file in (repository.ROOT / "kernel").rglob("*.patch"))


def _checkpatch(kernel_source: Path) -> Result:
    script = kernel_source / "scripts" / "checkpatch.pl"
    if shutil.which("perl") is None:
        return Result(Verdict.SKIP, "perl is not installed; install the Debian package perl")
    base = [
        "perl",
        str(script),
        "--no-tree",
        "--strict",
        "--terse",
        "--show-types",
        "--no-summary",
        "--max-line-length=100",
        f"--codespellfile={script.parent / 'spelling.txt'}",
    ]
    results = [_run([*base, "--file", *map(str, c_sources())])]
    for patch in patches():
        # Through a pipe: checkpatch takes a patch that git tracks for a source file. The patches are unsigned until
        # somebody sends them under their own name.
        verdict = _run([*base, "--no-signoff", "-"], (repository.ROOT / patch).read_text())
        results.append(Result(verdict.verdict, f"{patch}: {verdict.detail}"))
    failures = [result.detail for result in results if result.verdict is Verdict.FAIL]
    return Result(Verdict.FAIL, "\n".join(failures)) if failures else Result(Verdict.PASS)


# `reuse lint` knows that each file has a tag; which tag a place demands is ours to say.
# The tag's name is split so that `reuse` does not take this line for one.
_TAG = re.compile(r"SPDX-License-" r"Identifier: (?P<tag>[^*\n]+?)\s*(?:\*/)?$", re.MULTILINE)
_HEAD_LINES = 30
_DEMANDED_TAG = (
    ("uapi/", "GPL-2.0-only WITH Linux-syscall-note"),
    ("qemu/", "GPL-2.0-or-later"),
    ("kernel/", "GPL-2.0-only"),
    ("pyharness/", "GPL-2.0-only"),
    ("tests/", "GPL-2.0-only"),
)


def _tagged_files() -> Iterator[tuple[Path, str]]:
    for prefix, demanded in _DEMANDED_TAG:
        for file in sorted((repository.ROOT / prefix).rglob("*")):
            if file.suffix in {".py", ".c", ".h", ".S", ".inc"} or file.name == "Kbuild":
                yield file, demanded


def _spdx(_kernel_source: Path) -> Result:
    wrong = []
    for file, demanded in _tagged_files():
        head = "\n".join(file.read_text().splitlines()[:_HEAD_LINES])
        found = _TAG.search(head)
        tag = found["tag"] if found else "nothing"
        if tag != demanded:
            wrong.append(f"{file.relative_to(repository.ROOT)}:1: has {tag}, must have {demanded}")
    return Result(Verdict.FAIL, "\n".join(wrong)) if wrong else Result(Verdict.PASS)


CHECKS = (
    Check("ruff", "Python lint", _venv_tool("ruff", "check", "--quiet", ".")),
    Check("ruff-format", "Python layout", _venv_tool("ruff", "format", "--check", "--quiet", ".")),
    Check("mypy", "Python types, strict", _venv_tool("mypy", "--no-error-summary")),
    Check("checkpatch", "kernel style, strict", _checkpatch),
    Check("spdx", "the licence tag that each directory demands", _spdx),
    Check("reuse", "every file has a licence and a copyright", _venv_tool("reuse", "lint", "--quiet")),
)
