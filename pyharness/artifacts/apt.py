# SPDX-License-Identifier: GPL-2.0-only
"""Debian packages of any release through a private apt: own lists, own sources, nothing of the system is touched.

The mirrors are those that the machine's own apt uses, read at run time; `apt-get` does the fetching and verifies
signatures and hashes. No call here needs root.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property, cmp_to_key
from pathlib import Path
from typing import TypeVar

from pyharness.artifacts.cache import GIB, Cache, key_of
from pyharness.artifacts.run import CommandFailed, environment, missing_tool, run
from pyharness.errors import HarnessError
from pyharness.progress import Progress

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LISTS_MAX_AGE_S = 24 * 3600

_TRUST = f"signed-by={KEYRING}"

Chosen = TypeVar("Chosen")

_RELEASE_NAMES = "bullseye|bookworm|trixie|forky|duke|sid|oldoldstable|oldstable|stable|testing|unstable"
_MAIN_SUITE = re.compile(rf"({_RELEASE_NAMES})(-updates|-backports|-proposed-updates)?")
_SECURITY_SUITE = re.compile(rf"({_RELEASE_NAMES})(-security|/updates)")
_INDEX_URI = re.compile(r"'(?P<base>\S+?)/dists/(?P<suite>\S+?)/main/(?:binary-\w+/Packages|source/Sources)\b")


@dataclass(frozen=True)
class Suite:
    """One suite; `security` says which of the two mirrors has it, `sources` whether source packages are wanted."""

    name: str
    security: bool = False
    sources: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Release:
    """What is fetched together."""

    suites: tuple[Suite, ...]
    architecture: str = "amd64"


# Each release has its own lists: nothing mixes, and only what is used is fetched.
RELEASES: dict[str, Release] = {
    "bookworm": Release((Suite("bookworm"), Suite("bookworm-security", security=True))),
    "bookworm-i386": Release((Suite("bookworm"),), "i386"),
    "trixie": Release(
        (Suite("trixie", sources=True), Suite("trixie-security", security=True, sources=True, optional=True))
    ),
    "trixie-backports": Release((Suite("trixie-backports"),)),
}


@dataclass(frozen=True)
class Mirrors:
    """Base URIs of the Debian archive and of its security archive."""

    main: str
    security: str


@dataclass(frozen=True)
class Package:
    """One version of a binary package."""

    name: str
    version: str

    def __str__(self) -> str:
        """As apt names it."""
        return f"{self.name}={self.version}"


class NoLists(HarnessError):
    """The mirror cannot be reached, or does not carry what is asked of it."""


class Gone(HarnessError):
    """The lists name versions that the mirror no longer serves."""

    def __init__(self, packages: Sequence[Package], output: Sequence[str]) -> None:
        self.packages = tuple(packages)
        what = " ".join(map(str, packages))
        super().__init__(
            f"the mirror no longer serves {what}", mend="run `pyharness build --update`", detail="\n".join(output[-5:])
        )


def parse_mirrors(print_uris: Iterable[str]) -> Mirrors:
    """Pick Debian's mirrors from the output of `apt-get update --print-uris`.

    apt itself has parsed the .sources and .list files then. A third-party repository may call its suite
    "bookworm" too: the one that also has the updates suite, or whose path ends in "debian", is Debian's.
    Raises HarnessError when there is none.
    """
    main: dict[str, int] = {}
    security: list[str] = []
    for line in print_uris:
        if not (match := _INDEX_URI.match(line)):
            continue
        base, suite = match["base"], match["suite"]
        if found := _MAIN_SUITE.fullmatch(suite):
            main[base] = (
                main.get(base, 0) | (2 if found[2] else 0) | (1 if re.search(r"/debian(\.list)?$", base) else 0)
            )
        elif _SECURITY_SUITE.fullmatch(suite):
            security.append(base)
    if not main:
        raise HarnessError(
            "apt's sources on this machine name no Debian mirror",
            mend="add one below /etc/apt/sources.list.d, see sources.list(5)",
        )
    best = max(main, key=lambda base: main[base])
    security.sort(key=lambda base: "security" not in base)
    if security:
        return Mirrors(best, security[0])
    return Mirrors(best, f"{best}-security")


class Apt:
    """Packages of one release. The lists are refreshed when they are a day old, at the first call that needs them."""

    def __init__(self, cache: Cache, release: str, progress: Progress) -> None:
        self.cache = cache
        self.release = release
        self._suites = RELEASES[release].suites
        self._architecture = RELEASES[release].architecture
        self.progress = progress
        self.dir = cache.root / "apt" / release
        self._refreshed_now = False
        self._gone: set[Package] = set()

    def versions(self, *names: str) -> list[Package]:
        """All listed versions of binary packages, each package's newest first; an unknown name has none."""
        self.refresh()
        try:
            text = self._query("apt-cache", "show", "--all-versions", "--", *names)
        except CommandFailed:
            return []
        found = [Package(stanza["Package"], stanza["Version"]) for stanza in parse_stanzas(text)]
        return [package for package in dict.fromkeys(found) if self.serves(package)]

    def names(self, prefix: str) -> list[str]:
        """Names of all binary packages that start with `prefix`, sorted."""
        self.refresh()
        return sorted(self._query("apt-cache", "pkgnames", prefix).split())

    def source_versions(self, name: str) -> list[str]:
        """All listed versions of a source package, newest first."""
        self.refresh()
        lines = self._query("apt-cache", "madison", "--", name).splitlines()
        rows = [[column.strip() for column in line.split("|")] for line in lines]
        versions = {row[1] for row in rows if len(row) == 3 and row[2].endswith(" Sources")}
        return sort_versions(version for version in versions if self.serves(Package(name, version)))

    def serves(self, package: Package) -> bool:
        """Whether the mirror has not been found without this version."""
        return package not in self._gone

    def download(self, packages: Sequence[Package], into: Path) -> list[Path]:
        """Fetch .deb files into a directory. Raises Gone when the mirror lacks one."""
        self.refresh()
        before = set(into.glob("*.deb"))
        self._fetch(["apt-get", "download"], packages, into)
        return sorted(set(into.glob("*.deb")) - before)

    def download_source(self, package: Package, into: Path) -> Path:
        """Fetch a source package into a directory; returns its .dsc. Raises Gone when the mirror lacks it."""
        self.refresh()
        self._fetch(["apt-get", "source", "--download-only", "--only-source"], [package], into)
        return next(into.glob("*.dsc"))

    def closure(self, names: Sequence[str]) -> list[Package]:
        """`names` and all that they depend on, in the newest versions that are served, sorted by name."""
        self.refresh()
        pins = [f"Package: {gone.name}\nPin: version {gone.version}\nPin-Priority: -1\n" for gone in self._gone]
        argv = ["apt-get", "install", "--simulate", "--no-install-recommends", "--yes", *names]
        try:
            # What another run found gone is its own pin.
            with self._lock():
                _write_private(self.dir / "etc" / "preferences", "\n".join(pins))
                text = self._query(*argv)
        except CommandFailed as error:
            raise HarnessError(
                f"{self.release} has no set of packages for {' '.join(names)}",
                mend="see that the machine's mirror is complete",
                detail=error.detail,
            ) from error
        found = re.findall(r"^Inst (\S+) \((\S+)", text, re.MULTILINE)
        return sorted((Package(name.partition(":")[0], version) for name, version in found), key=lambda p: p.name)

    def fetch_newest(
        self, known: Chosen | None, choose: Callable[[], Chosen], build: Callable[[Chosen], Path]
    ) -> tuple[Chosen, Path]:
        """Build what is `known`, else what `choose` finds, and fall back when the mirror no longer serves it.

        An index can list a version that has gone: then the lists are fetched anew, and what is gone even so is not
        chosen again.
        """
        while True:
            chosen = known or choose()
            try:
                return chosen, build(chosen)
            except Gone as gone:
                self.progress.line(f"{gone.message}: looking for another version")
                if self._refreshed_now:
                    self._gone.update(gone.packages)
                else:
                    self.refresh(force=True)
                known = None

    def fetch_remembered(
        self, name: str, choose: Callable[[], list[Package]], build: Callable[[list[Package]], Path]
    ) -> Path:
        """Build what the cache remembers under `name`, else as `fetch_newest` does, and have it remembered."""
        before = self.cache.recall(name)
        known = [Package(**package) for package in before["packages"]] if before else None
        packages, path = self.fetch_newest(known, choose, build)
        if packages != known:
            self.cache.remember(name, {"packages": [asdict(package) for package in packages]})
        return path

    def refresh(self, *, force: bool = False) -> None:
        """Fetch the lists when they are older than a day or `force` is set, but once per run at most."""
        if self._refreshed_now:
            return
        self.cache.hold("apt", self.release)
        with self._lock():
            self._configure()
            lists = f"lists-{self.release}"
            sources = key_of((self.dir / "etc" / "sources.list").read_text())
            last = self.cache.recall(lists) or {}
            age = time.time() - last.get("time", 0.0)
            present = any((self.dir / "state" / "lists").glob("*Release"))
            if not force and present and last.get("sources") == sources and 0 <= age < LISTS_MAX_AGE_S:
                return
            self.progress.step(f"fetching the package lists of {self.release}")
            with self.cache.space(GIB // 2):
                self._update()
            self.cache.remember(lists, {"sources": sources, "time": time.time()})
        self._refreshed_now = True

    def _lock(self) -> AbstractContextManager[None]:
        return self.cache.lock(f"apt-{self.release}", self.progress)

    @cached_property
    def _mirrors(self) -> Mirrors:
        return parse_mirrors(_capture(["apt-get", "update", "--print-uris"]).splitlines())

    def _configure(self) -> None:
        if not KEYRING.exists():
            raise HarnessError(
                f"Debian's archive keys are not at {KEYRING}", mend="install the Debian package debian-archive-keyring"
            )
        own_parts = [f"etc/{parts}.d" for parts in ("apt.conf", "preferences", "sources.list", "trusted.gpg")]
        for name in (*own_parts, "state/lists/partial", "cache/archives/partial"):
            (self.dir / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.dir / "status").touch()
        # Proxies, certificates and time-outs are the machine's; its hooks and index targets are not wanted.
        system = [
            line
            for line in _capture(["apt-config", "dump"]).splitlines()
            if line.startswith("Acquire::") and not re.match(r"Acquire::(IndexTargets|Changelogs|GzipIndexes)", line)
        ]
        own = {
            "Dir::Etc": f"{self.dir}/etc",
            "Dir::Etc::netrc": "/etc/apt/auth.conf",
            "Dir::Etc::netrcparts": "/etc/apt/auth.conf.d",
            "Dir::State": f"{self.dir}/state",
            "Dir::State::status": f"{self.dir}/status",
            "Dir::Cache": f"{self.dir}/cache",
            "APT::Architecture": self._architecture,
            # As root, apt would download as a user who cannot enter this cache.
            "APT::Sandbox::User": "root",
            "APT::Get::List-Cleanup": "true",
        }
        lines = ['Acquire::Retries "3";', *system, 'Acquire::Languages "none";']
        lines += ["#clear APT::Architectures;", f'APT::Architectures {{ "{self._architecture}"; }};']
        lines += [f'{name} "{value}";' for name, value in own.items()]
        _write_private(self.dir / "apt.conf", "\n".join(lines) + "\n")
        self._write_sources(self._suites)

    def _write_sources(self, suites: Iterable[Suite]) -> None:
        lines = []
        for suite in suites:
            uri = self._mirrors.security if suite.security else self._mirrors.main
            kinds = ("deb", "deb-src") if suite.sources else ("deb",)
            lines += [f"{kind} [{_TRUST}] {uri} {suite.name} main" for kind in kinds]
        _write_private(self.dir / "etc" / "sources.list", "\n".join(lines) + "\n")

    def _update(self) -> None:
        argv = ["apt-get", "update", "-o", "APT::Update::Error-Mode=any"]
        try:
            self._run_apt(argv)
        except CommandFailed as error:
            needed = [suite for suite in self._suites if not suite.optional]
            if len(needed) == len(self._suites):
                raise self._unreachable(error) from error
            self.progress.line(f"{' '.join(s.name for s in self._suites if s.optional)} cannot be fetched: left out")
            self._write_sources(needed)
            try:
                self._run_apt(argv)
            except CommandFailed as again:
                raise self._unreachable(again) from again

    def _unreachable(self, error: CommandFailed) -> NoLists:
        causes = [line for line in error.output if line.startswith(("E:", "W:"))]
        return NoLists(
            f"the package lists of {self.release} cannot be fetched",
            mend="see that `apt-get update` works on this machine, and that its mirror carries "
            + ", ".join(f"{suite.name} for {self._architecture}" for suite in self._suites),
            detail="\n".join(causes or error.output[-5:]),
        )

    def _fetch(self, argv: Sequence[str], packages: Sequence[Package], into: Path) -> None:
        try:
            self._run_apt([*argv, *map(str, packages)], into)
        except CommandFailed as error:
            if gone := find_gone(packages, error.output):
                raise Gone(gone, error.output) from error
            raise HarnessError(
                f"the packages {packages[0].name}, ... of {self.release} cannot be fetched",
                mend="check the network and the disk, then run it again",
                detail="\n".join(error.output[-5:]),
            ) from error

    def _run_apt(self, argv: Sequence[str], cwd: Path | None = None) -> None:
        def show(line: str) -> None:
            if match := re.match(r"dlstatus:\d+:([\d.]+):", line):
                self.progress.step(f"{self.release}: fetching, {float(match[1]):.0f} %")

        run([*argv, "--quiet", "-o", "APT::Status-Fd=1"], cwd=cwd, on_line=show, env=self._environment)

    def _query(self, *argv: str) -> str:
        return _capture(argv, self._environment)

    @property
    def _environment(self) -> dict[str, str]:
        return {"APT_CONFIG": f"{self.dir}/apt.conf"}


def find_gone(packages: Sequence[Package], output: Sequence[str]) -> list[Package]:
    """Which of `packages` apt's output says the mirror lacks: missing files, or files of other content."""
    text = "\n".join(output)
    if not re.search(
        r"404 +Not Found|File not found|Hash Sum mismatch|unexpected size|Version '.*' for '.*' was not found", text
    ):
        return []
    failed = [line for line in output if line.startswith(("Err:", "E: Version"))]
    words = [set(re.split(r"[\s']+", line)) for line in failed]
    named = [package for package in packages if any({package.name, package.version} <= line for line in words)]
    return named or list(packages)


def parse_stanzas(text: str) -> list[dict[str, str]]:
    """The fields of each stanza of a Debian control file; continuation lines are dropped."""
    stanzas = (re.findall(r"^([\w-]+): (.*)$", block, re.MULTILINE) for block in text.split("\n\n"))
    return [dict(fields) for fields in stanzas if fields]


def sort_versions(versions: Iterable[str]) -> list[str]:
    """Debian versions, newest first, as dpkg compares them."""

    def compare(a: str, b: str) -> int:
        newer = subprocess.run(["dpkg", "--compare-versions", a, "gt", b], check=False).returncode == 0
        return 1 if newer else -1

    return sorted(versions, key=cmp_to_key(compare), reverse=True)


def _capture(argv: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            argv,
            env=environment() | dict(env or {}),
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise missing_tool(argv[0]) from error
    if done.returncode:
        raise CommandFailed(argv, done.returncode, done.stderr.splitlines())
    return done.stdout


def _write_private(path: Path, text: str) -> None:
    """Write a file that another run's apt may read meanwhile; the caller holds the lock against other writers."""
    if path.exists() and path.read_text() == text:
        return
    aside = path.with_name(f"{path.name}.new")
    # apt's configuration may hold a proxy's password.
    aside.touch(mode=0o600)
    aside.write_text(text)
    aside.replace(path)
