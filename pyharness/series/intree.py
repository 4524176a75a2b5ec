# SPDX-License-Identifier: GPL-2.0-only
"""The series in a kernel tree: what it touches is built there after each patch, as a module and built in.

The tree is the kernel's own source with the kernel's own configuration and symbols, so that the modules that come out
of it load into that kernel: they are what the harness boots.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyharness.artifacts.cache import GIB, Cache, key_of
from pyharness.artifacts.kernels import Kernel
from pyharness.artifacts.kernels.source import Source
from pyharness.artifacts.modules import DRIVER, VMBUS, path_mapping
from pyharness.artifacts.patches import lay_over
from pyharness.artifacts.run import CommandFailed, gcc_version, run
from pyharness.checks.finding import Finding
from pyharness.errors import CheckFailed, HarnessError
from pyharness.progress import Progress
from pyharness.series.gate import State, source_line, states
from pyharness.series.make import Series

_RECIPE = "1"  # raise it when the way of building changes
_WHERE = "drivers/hv"
_OPTION = "HV_AZURE_BLOB"
_DIAGNOSTIC = re.compile(
    r"(?P<file>[\w./-]+\.[ch]):(?P<line>\d+):(?:\d+:)? (?:fatal )?(?P<kind>error|warning): (?P<text>.*)"
)
# Other modules' warnings are the tree's own.
_MODPOST = re.compile(rf"(?P<kind>ERROR|WARNING)(?P<file>): (?P<text>modpost: .*{DRIVER}.*)")

# What the driver's option becomes when it, hv_vmbus and the network are asked for.
_KCONFIG = (
    ({"vmbus": "m", "driver": "m"}, "m"),
    ({"vmbus": "m", "driver": "y"}, "m"),
    ({"vmbus": "y", "driver": "y"}, "y"),
    ({"vmbus": "y", "driver": "m"}, "m"),
    ({"vmbus": "n", "driver": "m"}, "n"),
    ({"vmbus": "m", "driver": "m", "net": "n"}, "n"),
)


class DoesNotBuild(CheckFailed):
    """A tree with the series does not build without a word; `findings` name the places."""

    def __init__(self, kernel: str, findings: Sequence[Finding]) -> None:
        super().__init__(
            f"the series does not build in the tree of {kernel}: {findings[0]}",
            mend="see what the compiler says",
            detail="\n".join(map(str, findings)),
        )
        self.findings = tuple(findings)


def build_in_tree(
    kernel: Kernel, source: Source, all_series: Sequence[Series], cache: Cache, progress: Progress
) -> Path:
    """A directory with both modules and their sources, from `kernel`'s tree with all of `all_series` applied.

    It is built after each patch, in each way. The tree stays prepared in the cache, and so do the modules of the same
    patches. Raises DoesNotBuild for a warning or an error that the tree does not give without the series, HarnessError
    when the tree itself does not build.
    """
    if kernel.version != source.package.version:
        raise HarnessError(
            f"{kernel.name} is {kernel.version}, but its source is {source.package.version}",
            mend="run `pyharness build --update`",
        )
    compiler = gcc_version(kernel.gcc)
    mails = [mail.text for series in all_series for mail in series.patches]

    def build(directory: Path) -> None:
        name = key_of(_RECIPE, kernel.key, source.key, compiler)
        with cache.workspace("series-build", name, needs=GIB, progress=progress) as work:
            tree = _Tree(kernel, work, progress, all_series[0].target.vmbus_option)
            tree.prepare(source)
            if found := _build(tree, all_series):
                raise DoesNotBuild(kernel.name, found)
            _take(tree.top, directory)

    key = key_of(_RECIPE, kernel.key, source.key, compiler, *mails)
    return cache.build("series", key, build, needs=GIB, progress=progress)


@dataclass
class _Tree:
    """A prepared tree of ours. `said` is what the compiler has warned of, without the lines' numbers."""

    kernel: Kernel
    work: Path
    progress: Progress
    vmbus_option: str
    said: list[str] = field(default_factory=list)

    @property
    def top(self) -> Path:
        return self.work / "tree"

    @property
    def config(self) -> str:
        """The kernel's own configuration."""
        return self.kernel.config.read_text()

    def prepare(self, source: Source) -> None:
        """Lay out the source, build the tools that compiling takes, and hear the tree's own warnings, just once."""
        done = self.work / "prepared.json"
        if done.exists():
            self.said = json.loads(done.read_text())
            return
        shutil.rmtree(self.work)
        self.progress.step(f"{self.kernel.name}: preparing a tree")
        shutil.copytree(source.directory, self.top, symlinks=True)
        shutil.copyfile(self.kernel.headers / "Module.symvers", self.top / "Module.symvers")
        self.configure({})
        self._check_config()
        try:
            self.make("modules_prepare", "scripts_unifdef")
            self.compile(f"{_WHERE}/")
        except CommandFailed as error:
            raise HarnessError(
                f"the tree of {self.kernel.name} cannot be prepared", mend="see what make says", detail=error.detail
            ) from error
        done.write_text(json.dumps(self.said))

    def _check_config(self) -> None:
        """A module that was compiled with other options may have other structures."""
        wanted, got = (
            set(re.findall(r"^CONFIG_\w+=[ym]$", text, re.M)) for text in (self.config, self.read(".config"))
        )
        if lost := sorted(wanted - got):
            raise HarnessError(
                f"the tree of {self.kernel.name} does not take {', '.join(lost[:5])} of the kernel's configuration",
                mend="install the Debian package pahole" if any("BTF" in one for one in lost) else "report it",
            )

    def configure(self, options: dict[str, str], file: str = ".config") -> None:
        """The kernel's configuration with other values of some options."""
        lines = [f"CONFIG_{option}={value}" for option, value in options.items()]
        (self.top / file).write_text(self.config + "\n".join(lines) + "\n")
        self.make("-s", f"KCONFIG_CONFIG={file}", "olddefconfig")

    def value(self, option: str, file: str = ".config") -> str:
        """What an option has become."""
        match = re.search(rf"^CONFIG_{option}=(.+)$", self.read(file), re.M)
        return match[1] if match else "n"

    def read(self, file: str) -> str:
        return (self.top / file).read_text()

    def put(self, state: State) -> None:
        """Make the tree that of `state`; what does not change keeps its time stamp."""
        with tempfile.TemporaryDirectory(prefix="series-", dir=self.work) as directory:
            own = {}
            for file, text in state.files.items():
                own[file] = Path(directory) / file
                own[file].parent.mkdir(parents=True, exist_ok=True)
                own[file].write_text(text)
            lay_over(self.top, self.work, own, [])

    def make(self, *arguments: str, on_line: Callable[[str], None] | None = None) -> None:
        """Run make in the tree. Raises CommandFailed."""
        flags = f"KCFLAGS={path_mapping(self.top)}"
        release = f"KERNELRELEASE={self.kernel.release}"
        command: list[str | Path] = ["make", "-j2", "-C", self.top, f"CC={self.kernel.gcc}", release, flags, *arguments]
        run(command, on_line=on_line)

    def compile(self, *targets: str) -> list[re.Match[str]]:
        """Compile with extra warnings, all that `targets` name; returns warnings and errors that are new."""
        for target in targets:
            for stale in self.top.glob(f"{target}*.o" if target.endswith("/") else target):
                stale.unlink()
        found: list[re.Match[str]] = []

        def hear(line: str) -> None:
            match = _DIAGNOSTIC.search(line.replace(f"{self.top}/", "")) or _MODPOST.search(line)
            if match and (said := re.sub(r"\d+", "", f"{Path(match['file']).name}: {match['text']}")) not in self.said:
                self.said.append(said)
                found.append(match)

        try:
            self.make("W=1", *targets, on_line=hear)
        except CommandFailed:
            if not any(match["kind"].lower() == "error" for match in found):
                raise
        return found


def _build(tree: _Tree, all_series: Sequence[Series]) -> list[Finding]:
    """Build each patch as a module, then built in; returns what is wrong."""
    with tempfile.TemporaryDirectory(prefix="series-") as directory:
        trail = states(all_series, Path(directory))
    name = tree.kernel.name
    for way in ("m", "y"):
        tree.put(trail[0])
        tree.configure({tree.vmbus_option: way})
        for number, state in enumerate(trail[1:], 1):
            tree.put(state)
            touched = _touched(trail[number - 1], state)
            if f"{_WHERE}/Kconfig" in touched:
                if way == "m" and (wrong := _kconfig(tree, state)):
                    return wrong
                tree.configure({tree.vmbus_option: way, _OPTION: way})
            if targets := _targets(touched):
                tree.progress.step(f"{name}: ={way}, patch {number} of {len(trail) - 1}: {' '.join(targets)}")
                if found := tree.compile(*targets):
                    return [_finding(match, trail[: number + 1]) for match in found]
        if way == "m":
            if found := tree.compile(f"M={_WHERE}", "modules"):
                return [_finding(match, trail) for match in found]
            if wrong := _headers(tree, trail[-1]):
                return wrong
            # What is built in would take their place.
            for module in (VMBUS, DRIVER):
                shutil.copyfile(tree.top / _WHERE / f"{module}.ko", tree.work / f"{module}.ko")
    return []


def _touched(before: State, after: State) -> set[str]:
    return {file for file, text in after.files.items() if before.files.get(file) != text}


def _targets(touched: set[str]) -> list[str]:
    """The objects that are to be made when files have changed."""
    built = {file for file in touched if file.startswith((f"{_WHERE}/", "include/"))}
    if all(file.startswith(f"{_WHERE}/") and file.endswith(".c") for file in built):
        return sorted(f"{file.removesuffix('.c')}.o" for file in built)
    return [f"{_WHERE}/"]


def _finding(match: re.Match[str], trail: Sequence[State]) -> Finding:
    """Where in our sources the compiler objects to."""
    file, line, text = match["file"], int(match.groupdict().get("line") or 0), match["text"]
    patches = [state.patch for state in trail if state.patch]
    owner = next((patch for patch in patches if file in patch.sources), None)
    if owner:
        return Finding(owner.sources[file], source_line(owner, file, line), text, "build")
    return Finding(patches[-1].plan.origin, 0, f"{file}:{line}: {text}" if file else text, "build")


def _headers(tree: _Tree, state: State) -> list[Finding]:
    """Whether the headers for user space install, and compile by themselves."""
    found = []
    for file in sorted(file for file in state.files if file.startswith("include/uapi/")):
        installed = tree.work / "installed.h"
        try:
            run(["sh", "scripts/headers_install.sh", file, installed], cwd=tree.top)
            run([tree.kernel.gcc, "-std=c90", "-Wall", "-Werror", "-fsyntax-only", "-x", "c", installed])
        except CommandFailed as error:
            said = error.output[0] if error.output else error.message
            found.append(Finding(f"uapi/{Path(file).name}", 0, f"does not install: {said}", "headers_install"))
    return found


def _kconfig(tree: _Tree, state: State) -> list[Finding]:
    """Whether the driver's option, which `state` has brought, depends on what it needs."""
    assert state.patch
    found = []
    file = ".config.series"
    for asked, becomes in _KCONFIG:
        names = {"vmbus": tree.vmbus_option, "driver": _OPTION, "net": "NET"}
        options = {names[what]: value for what, value in asked.items()}
        tree.configure(options, file)
        if (got := tree.value(_OPTION, file)) != becomes:
            wish = ", ".join(f"{option}={value}" for option, value in options.items())
            message = f"{wish} gives {_OPTION}={got}, not {becomes}"
            found.append(Finding(state.patch.plan.origin, 0, message, "Kconfig"))
    return found


def _take(top: Path, directory: Path) -> None:
    for name in (VMBUS, DRIVER):
        shutil.copyfile(top.parent / f"{name}.ko", directory / f"{name}.ko")
    (directory / "sources" / _WHERE).mkdir(parents=True)
    for path in (top / _WHERE).glob("*.[ch]"):
        shutil.copyfile(path, directory / "sources" / _WHERE / path.name)
