# SPDX-License-Identifier: GPL-2.0-only
"""What the checks run: tools of Debian's packages and of the virtual environment, and how to get a missing one."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol


class Need(Protocol):
    """Something that a check cannot do without."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def missing(self) -> str:
        """That it is missing and what to do about it; empty when it is there."""

    @property
    def version(self) -> str:
        """Its version; only asked for what is there."""


@dataclass(frozen=True)
class Tool:
    """A program of a Debian package."""

    name: str
    package: str

    @property
    def missing(self) -> str:
        """See Need."""
        if shutil.which(self.name):
            return ""
        return f"{self.name} is not installed; install the Debian package {self.package}"

    @property
    def version(self) -> str:
        """See Need."""
        return _version(shutil.which(self.name) or self.name)


@cache
def _version(path: str) -> str:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+[\w.+-]*", done.stdout + done.stderr)
    return found[0] if found else "of unknown version"


@dataclass(frozen=True)
class VenvTool:
    """A program of the virtual environment, in the distribution of the same name."""

    name: str

    @property
    def path(self) -> Path:
        """Where it is if it is there."""
        return Path(sys.executable).with_name(self.name)

    @property
    def missing(self) -> str:
        """See Need."""
        return "" if self.path.exists() else f"{self.name} is not in the virtual environment; run scripts/setup"

    @property
    def version(self) -> str:
        """See Need."""
        return importlib.metadata.version(self.name)


@dataclass(frozen=True)
class Library:
    """A Python distribution that a script imports."""

    name: str

    @property
    def missing(self) -> str:
        """See Need."""
        try:
            importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            return f"{self.name} is not in the virtual environment; run scripts/setup"
        return ""

    @property
    def version(self) -> str:
        """See Need."""
        return importlib.metadata.version(self.name)


GCC = Tool("gcc-12", "gcc-12")
GIT = Tool("git", "git")
GXX = Tool("g++", "g++")
HOST_GCC = Tool("gcc", "gcc")
MAKE = Tool("make", "make")
PAHOLE = Tool("pahole", "pahole")
PATCH = Tool("patch", "patch")
PERL = Tool("perl", "perl")
SHELLCHECK = Tool("shellcheck", "shellcheck")
SPARSE = Tool("sparse", "sparse")
SPATCH = Tool("spatch", "coccinelle")
