# SPDX-License-Identifier: GPL-2.0-only
"""What a maintainer's bots would object to in a series, as far as it shows without a compiler."""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import DEFAULT_KERNEL
from pyharness.artifacts.run import CommandFailed, run
from pyharness.checks.finding import Finding
from pyharness.progress import Progress
from pyharness.series.compose import Composed, DoesNotFit
from pyharness.series.git import Repository
from pyharness.series.make import Author, Mail, Options, Series, make
from pyharness.series.plan import DRIVER, FIXES
from pyharness.series.target import SERIES_KERNELS, Target, named_target, source_of

PROBE = Options(Author("hv_azure_blob maintainers", "maintainers@hv-azure-blob.example"), date=0, ask_tree=False)
"""With whom a series is made to be examined: nobody sends it."""

# 3/3 answers it for the series as a whole, and `_covered` checks that.
_IGNORED = "FILE_PATH_CHANGES"
_COMPLAINT = re.compile(r"(?:(?P<file>[^\s:]*):(?P<line>\d+): )?(?:\w+):(?P<rule>\w+): (?P<message>.*)")


@dataclass(frozen=True)
class Trial:
    """A series for a tree, or why there is none."""

    series: Series | None
    findings: tuple[Finding, ...]


def findings(root: Path, cache: Cache, progress: Progress, kernels: Sequence[str] = SERIES_KERNELS) -> list[Finding]:
    """All that is wrong with both series of the repository at `root`, on the trees of `kernels`, each fault once."""
    targets = [named_target(name, cache, progress) for name in kernels]
    checkpatch = checkpatch_of(cache, progress)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
        begun = [
            workers.submit(attempt, name, target, root, checkpatch) for target in targets for name in (DRIVER, FIXES)
        ]
        return sorted({finding for trial in begun for finding in trial.result().findings})


def checkpatch_of(cache: Cache, progress: Progress) -> Path:
    """The checkpatch.pl that counts: that of the default kernel, since newer ones ask for what older kernels lack."""
    return source_of(DEFAULT_KERNEL, cache, progress).directory / "scripts/checkpatch.pl"


def attempt(name: str, target: Target, root: Path, checkpatch: Path) -> Trial:
    """Make a series and examine it."""
    try:
        series = make(name, target, PROBE, root)
    except DoesNotFit as error:
        return Trial(None, (error.finding,))
    return Trial(series, tuple(examine(series, checkpatch)))


def examine(series: Series, checkpatch: Path) -> list[Finding]:
    """Whether it applies, keeps the kernel's style, and says who looks after it, in the right place."""
    return [*_applies(series), *_style(series, checkpatch), *_ordered(series), *_covered(series)]


@dataclass(frozen=True)
class State:
    """What the touched files hold after a patch, or before the first when there is none."""

    files: dict[str, str]
    patch: Composed | None = None


def states(all_series: Sequence[Series], directory: Path) -> list[State]:
    """Before the first mail and after each, as `git am` leaves it when all are applied one after the other.

    `directory` is an empty one to work in. Raises DoesNotFit for the first mail that does not apply.
    """
    base = {file: text for series in all_series for file, text in series.base.items()}
    repository = Repository.of(directory, base, "pyharness", "pyharness@localhost", date=0)
    found = [State(base)]
    for series in all_series:
        for patch, mail in zip(series.composed, series.patches, strict=True):
            _am(repository, patch, mail)
            tracked = repository.git("ls-files")
            found.append(State({file: (directory / file).read_text() for file in tracked}, patch))
    return found


def _am(repository: Repository, patch: Composed, mail: Mail) -> None:
    path = repository.directory / ".git" / mail.file
    path.write_text(mail.text)
    try:
        repository.git("am", "--quiet", path)
    except CommandFailed as error:
        said = next((line for line in error.output if line.startswith(("error:", "fatal:"))), error.message)
        finding = Finding(patch.plan.origin, 0, f"git am does not take {mail.file}: {said}", "applies")
        raise DoesNotFit(finding, mend="make the series anew", detail="\n".join(error.output)) from error


def _applies(series: Series) -> list[Finding]:
    with tempfile.TemporaryDirectory(prefix="series-") as directory:
        try:
            after = states([series], Path(directory))[-1].files
        except DoesNotFit as error:
            return [error.finding]
    wanted = {file: text for patch in series.composed for file, text in patch.files.items()}
    return [
        Finding(patch.plan.origin, 0, f"git am makes another {file} than the sources", "applies")
        for patch in series.composed
        for file in patch.files
        if after.get(file) != wanted[file]
    ]


def _style(series: Series, checkpatch: Path) -> list[Finding]:
    found = []
    for patch, mail in zip(series.composed, series.patches, strict=True):
        options = ("--no-tree", "--strict", "--terse", "--show-types", "--no-summary", "--showfile")
        try:
            with tempfile.NamedTemporaryFile("w", suffix=f"-{mail.file}") as file:
                file.write(mail.text)
                file.flush()
                run(["perl", checkpatch, *options, "--ignore", _IGNORED, file.name])
        except CommandFailed as error:
            matches = [match for line in error.output if (match := _COMPLAINT.fullmatch(line))]
            if not matches:
                raise
            found += [_complaint(patch, mail, match) for match in matches]
    return found


def _complaint(patch: Composed, mail: Mail, match: re.Match[str]) -> Finding:
    file, line = match["file"] or "", int(match["line"] or 0)
    if file in patch.sources:
        return Finding(patch.sources[file], source_line(patch, file, line), match["message"], match["rule"])
    where = f" ({file}:{line} after {mail.file})" if file in patch.files else ""
    return Finding(patch.plan.origin, 0, match["message"] + where, match["rule"])


def source_line(patch: Composed, file: str, line: int) -> int:
    """The line of our source that became `line` of a file of the tree, or 0 when there is none."""
    if patch.originals.get(file) is None:
        return 0
    ours, theirs = patch.originals[file].splitlines(), patch.files[file].splitlines()
    for block in difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        if block.b < line <= block.b + block.size:
            return block.a + line - block.b
    return 0


def _ordered(series: Series) -> list[Finding]:
    """Whether parse-maintainers.pl leaves the sections that are new as and where they are."""
    found = []
    for patch in series.composed:
        after = patch.files.get("MAINTAINERS")
        if after is None:
            continue
        with tempfile.TemporaryDirectory(prefix="series-") as directory:
            (Path(directory) / "MAINTAINERS").write_text(after)
            script = series.target.directory / "scripts/parse-maintainers.pl"
            run(["perl", script, "--order", "--input=MAINTAINERS", "--output=sorted"], cwd=Path(directory))
            ordered = _sections((Path(directory) / "sorted").read_text())
        sections, before = _sections(after), _sections(series.base["MAINTAINERS"])
        names, places = list(sections), {name: place for place, name in enumerate(ordered)}
        for name in sections.keys() - before.keys():
            at = names.index(name)
            around = [places[one] for one in names[max(at - 1, 0) : at + 2]]
            if around != sorted(around):
                found.append(Finding(patch.plan.origin, 0, f"MAINTAINERS: {name} is out of order", "MAINTAINERS_ORDER"))
            if ordered[name] != sections[name]:
                message = f"MAINTAINERS: the lines of {name} are out of order"
                found.append(Finding(patch.plan.origin, 0, message, "MAINTAINERS_ORDER"))
    return found


def _sections(text: str) -> dict[str, str]:
    """The sections of a MAINTAINERS file, by their headings, in their order."""
    blocks = (block.strip("\n").partition("\n") for block in re.split(r"\n\s*\n", text))
    return {heading: lines for heading, _, lines in blocks if re.match(r"[A-Z]:\t", lines)}


def _covered(series: Series) -> list[Finding]:
    """Whether get_maintainer.pl names the sender for each patch that adds files."""
    maintained = next((patch for patch in series.composed if "MAINTAINERS" in patch.files), None)
    found = []
    for patch in series.composed:
        if not patch.sources:
            continue
        if maintained is None:
            found.append(Finding(patch.plan.origin, 0, "no patch of the series touches MAINTAINERS", "MAINTAINERS"))
            continue
        for file in patch.sources:
            with tempfile.TemporaryDirectory(prefix="series-") as directory:
                stage = Path(directory)
                (stage / "MAINTAINERS").write_text(maintained.files["MAINTAINERS"])
                (stage / file).parent.mkdir(parents=True)
                (stage / file).write_text(patch.files[file])
                said = series.target.maintainers("--no-l", "-f", file, cwd=stage)
            if not any(series.author.mail in line for line in said):
                found.append(
                    Finding(maintained.plan.origin, 0, f"MAINTAINERS: nobody looks after {file}", "MAINTAINERS")
                )
    return found
