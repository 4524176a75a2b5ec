# SPDX-License-Identifier: GPL-2.0-only
"""Make a series: mails as `git format-patch` writes them, from a plan and a tree."""

from __future__ import annotations

import email.utils
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyharness.artifacts.run import CommandFailed, missing_tool
from pyharness.errors import HarnessError, UsageError
from pyharness.series.compose import Composed, compose, touched_files
from pyharness.series.git import Repository
from pyharness.series.letter import letter_of
from pyharness.series.plan import Plan, load_plan
from pyharness.series.target import Target

_BLURB = "*** BLURB HERE ***"
_SUBJECT = "*** SUBJECT HERE ***"
_FORMAT = ("--quiet", "--cover-letter", "--zero-commit", "--no-renames", "--abbrev=12", "--no-signature")


@dataclass(frozen=True)
class Author:
    """Who sends the series, and signs it off."""

    name: str
    mail: str

    def __str__(self) -> str:
        return f"{self.name} <{self.mail}>"

    @classmethod
    def parse(cls, text: str) -> Author:
        """From "Name <mail>". Raises UsageError for anything else."""
        name, mail = email.utils.parseaddr(text)
        if not name or not re.fullmatch(r"[^@\s]+@[^@\s]+", mail):
            raise UsageError(f"{text!r} is no author", mend='write it as "Name <mail@example.org>"')
        return cls(name, mail)

    @classmethod
    def configured(cls, directory: Path) -> Author:
        """As git is configured in `directory`. Raises UsageError when it is not."""
        name, mail = (_configured(directory, f"user.{key}") for key in ("name", "email"))
        if not name or not mail:
            raise UsageError(
                "nobody is known to sign the series off: git has no user.name or no user.email",
                mend='give --author "Name <mail@example.org>", or set them by git config',
            )
        return cls(name, mail)


@dataclass(frozen=True)
class Options:
    """What the sender decides. `version` None is the plan's; `date` in seconds since the epoch, as mails carry it."""

    author: Author
    date: int
    version: int | None = None
    to: tuple[str, ...] = ()
    cc: tuple[str, ...] = ()
    ask_tree: bool = True
    """Whether the tree's get_maintainer.pl adds recipients."""
    benchmark: Path | None = None


@dataclass(frozen=True)
class Mail:
    """One file of the series."""

    file: str
    text: str


@dataclass(frozen=True)
class Series:
    """A series for a tree: the letter, then a mail for each patch."""

    plan: Plan
    target: Target
    version: int
    author: Author
    letter: Mail
    patches: tuple[Mail, ...]
    composed: tuple[Composed, ...]
    base: dict[str, str]
    """What the files that it touches hold before it."""

    @property
    def mbox(self) -> str:
        """The patches in one file, for `git am`, which does not take a letter."""
        return "".join(mail.text for mail in self.patches)


def make(name: str, target: Target, options: Options, root: Path) -> Series:
    """The series `name` for a tree. The same input gives the same bytes.

    Raises DoesNotFit when the sources do not make one, HarnessError when a tool fails.
    """
    plan = load_plan(name, root)
    version = options.version or plan.version
    author, date = options.author, options.date
    with tempfile.TemporaryDirectory(prefix="series-") as temporary:
        work = Path(temporary)
        composed = compose(plan, target, str(author), root, work / "stage")
        base = {file: text for file in touched_files(plan) if (text := target.read(file)) is not None}
        repository = Repository.of(work / "git", base, author.name, author.mail, date)
        for number, patch in enumerate(composed, 1):
            signed = f"{patch.plan.subject}\n\n{patch.plan.message}\n\nSigned-off-by: {author}\n"
            repository.commit(patch.files, signed, date + number)
        mails = _format(repository, version, len(composed), date, [])
        recipients = _recipients(target, mails, options, work)
        letter, *patches = _format(repository, version, len(composed), date, recipients)
    text = letter.text.replace(_SUBJECT, plan.subject).replace(_BLURB, letter_of(plan, target, options.benchmark))
    if target.commit:
        text = text.rstrip("\n") + f"\n\nbase-commit: {target.commit}\n\n"
    return Series(plan, target, version, author, Mail(letter.file, text), tuple(patches), tuple(composed), base)


def default_date(root: Path) -> int:
    """SOURCE_DATE_EPOCH, or when the repository's last commit was made. Raises UsageError when there is neither."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    shown = given or _git_line(root, "log", "-1", "--format=%ct")
    if not shown.isdecimal():
        raise UsageError(
            "the date of the series is not known: this is no git repository, or SOURCE_DATE_EPOCH is no number",
            mend="set SOURCE_DATE_EPOCH to seconds since 1970",
        )
    return int(shown)


def _configured(directory: Path, key: str) -> str:
    return _git_line(directory, "config", key)


def _git_line(directory: Path, *arguments: str) -> str:
    """What git prints, configured as its user has it, or nothing when it has nothing to say."""
    try:
        done = subprocess.run(["git", "-C", directory, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise missing_tool("git") from error
    return done.stdout.strip() if done.returncode == 0 else ""


def _format(repository: Repository, version: int, count: int, date: int, headers: Sequence[str]) -> list[Mail]:
    with tempfile.TemporaryDirectory(prefix="mails-") as directory:
        number = [f"--reroll-count={version}"] if version > 1 else []
        repository.git("format-patch", *_FORMAT, *number, *headers, f"-{count}", "-o", directory, date=date)
        return [Mail(path.name, path.read_text()) for path in sorted(Path(directory).iterdir())]


def _recipients(target: Target, mails: Sequence[Mail], options: Options, work: Path) -> list[str]:
    to, cc = list(options.to), list(options.cc)
    if options.ask_tree:
        patches = [work / mail.file for mail in mails[1:]]
        for path, mail in zip(patches, mails[1:], strict=True):
            path.write_text(mail.text)
        to += _maintainers(target, patches, "--no-l", "--no-r")
        cc += _maintainers(target, patches, "--no-m")
    own = options.author.mail
    seen: set[str] = set()
    headers = []
    for header, addresses in (("--to", to), ("--cc", cc)):
        for address in addresses:
            name, where = email.utils.parseaddr(address)
            if where != own and where not in seen:
                headers.append(f"{header}={email.utils.formataddr((name, where))}")
            seen.add(where)
    return headers


def _maintainers(target: Target, patches: Sequence[Path], *which: str) -> list[str]:
    try:
        return target.maintainers(*which, *patches)
    except CommandFailed as error:
        raise HarnessError(
            f"get_maintainer.pl of {target.name} fails", mend="give --no-recipients", detail=error.detail
        ) from error
