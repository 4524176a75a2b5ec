# SPDX-License-Identifier: GPL-2.0-only
"""Leave a series in a directory, all of it or nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from pyharness.errors import UsageError
from pyharness.series.make import Series

MBOX = "series.mbox"
FACTS = "series.json"
"""Says what the series is of, and that the directory is ours to replace."""


def check_directory(directory: Path) -> None:
    """Raise UsageError when `directory` is something else than a series of ours, which must not be overwritten."""
    if directory.is_dir() and (not any(directory.iterdir()) or (directory / FACTS).is_file()):
        return
    if directory.exists() or directory.is_symlink():
        raise UsageError(
            f"{directory} holds something else than a series, and is not overwritten", mend="name another directory"
        )


def write(series: Series, directory: Path) -> list[Path]:
    """Write a file for each mail, and all patches in one mbox; returns the mails' files.

    The directory appears, or replaces an earlier series, when it is complete. Raises UsageError as `check_directory`.
    """
    check_directory(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        mails = (series.letter, *series.patches)
        for mail in mails:
            (aside / mail.file).write_text(mail.text)
        (aside / MBOX).write_text(series.mbox)
        facts = {
            "series": series.plan.name,
            "version": series.version,
            "kernel": series.target.name,
            "base": series.target.base,
            "files": [mail.file for mail in mails],
        }
        (aside / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
        old = aside.with_name(f"{aside.name}.old")
        if directory.exists():
            directory.rename(old)
        aside.rename(directory)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [directory / mail.file for mail in mails]
