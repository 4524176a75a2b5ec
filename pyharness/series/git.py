# SPDX-License-Identifier: GPL-2.0-only
"""A git repository that lives as long as something is made or tried in it, whatever the user's configuration says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pyharness.artifacts.run import run

_BASE = "what there is before"
# Neither hooks nor signing nor colours of the user's.
_ENVIRONMENT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}


@dataclass(frozen=True)
class Repository:
    """A repository in `directory` with one commit per state of some files."""

    directory: Path
    name: str
    mail: str

    @classmethod
    def of(cls, directory: Path, files: Mapping[str, str], name: str, mail: str, date: int) -> Repository:
        """A new one, whose first commit holds `files` and what is there; `date` in seconds since the epoch."""
        directory.mkdir(parents=True, exist_ok=True)
        made = cls(directory, name, mail)
        made.git("init", "--quiet", "--initial-branch=series")
        made.commit(files, _BASE, date)
        return made

    def commit(self, files: Mapping[str, str], message: str, date: int) -> None:
        """Write `files` and commit them."""
        for file, text in files.items():
            path = self.directory / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "--all", date=date)
        self.git("commit", "--quiet", "--allow-empty", "--cleanup=verbatim", "--message", message, date=date)

    def git(self, *arguments: str | Path, date: int = 0) -> list[str]:
        """The last lines of what git said. Raises CommandFailed."""
        who = {"GIT_AUTHOR_NAME": self.name, "GIT_AUTHOR_EMAIL": self.mail}
        who |= {"GIT_COMMITTER_NAME": self.name, "GIT_COMMITTER_EMAIL": self.mail}
        when = {"GIT_AUTHOR_DATE": f"@{date} +0000", "GIT_COMMITTER_DATE": f"@{date} +0000"}
        return run(["git", "-C", self.directory, *arguments], env={**_ENVIRONMENT, **who, **when})
