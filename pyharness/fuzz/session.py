# SPDX-License-Identifier: GPL-2.0-only
"""A fuzzing session of the command line: guests, progress, and what becomes of what is found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pyharness import repository
from pyharness.artifacts.prepare import Prepared
from pyharness.errors import UsageError
from pyharness.fuzz import host
from pyharness.fuzz.corpus import IOCTL_CORPUS, add_to_corpus, keep_in_corpus, name_of, read_corpus, read_programs
from pyharness.fuzz.ioctl import (
    DEVICES,
    Found,
    Fuzzer,
    HonestHost,
    Progressed,
    Runner,
    reduced,
    replaying,
    smaller_corpus,
)
from pyharness.fuzz.program import to_json
from pyharness.machine.accel import Accelerator
from pyharness.machine.config import MachineConfig
from pyharness.progress import Progress
from pyharness.rig import Rig, rig_on

FOUND = repository.BUILD / "fuzz"
"""Where what was found is left."""

_TEST = '''\
def test_found_{name}({fixture}: {kind}) -> None:
    {fixture}(
        """
{text}        """
    )
'''


@dataclass(frozen=True)
class Setting:
    """What guests are made of."""

    prepared: Prepared
    accelerator: Accelerator
    progress: Progress
    cold: bool = False
    dump: bool = False

    @property
    def quiet(self) -> Setting:
        """The same without a word."""
        return replace(self, progress=Progress(quiet=True))

    def rig(self) -> AbstractContextManager[Rig]:
        """A fresh guest with an honest host."""
        config = MachineConfig(
            kernel=self.prepared.kernel,
            qemu=self.prepared.qemu,
            root_image=self.prepared.root_image,
            accelerator=self.accelerator,
            blob_devices=DEVICES,
            cold=self.cold,
            dump_on_crash=self.dump,
        )
        return rig_on(config, self.prepared, self.progress, HonestHost())

    @property
    def label(self) -> str:
        """What figures were measured with."""
        return f"{self.accelerator.name}, {self.prepared.kernel.name}"


@dataclass(frozen=True)
class Limits:
    """When a session ends by itself; None: never."""

    executions: int | None
    seconds: float | None

    def reached(self, progressed: Progressed | host.Progressed) -> bool:
        """Whether that was enough."""
        return (self.executions is not None and progressed.executions >= self.executions) or (
            self.seconds is not None and progressed.seconds >= self.seconds
        )


# -- ioctl


def fuzz_ioctl(setting: Setting, seed: int, limits: Limits, directory: Path | None) -> None:
    """Fuzz, and add to the corpus. Raises what the judge says of the driver."""
    _must_have_kcov(setting)
    directory = directory or IOCTL_CORPUS
    try:
        with setting.rig() as rig:
            with Runner(rig) as runner:
                fuzzer = Fuzzer(runner, read_corpus(directory), seed)
                with _summed_up(setting, fuzzer, directory):
                    fuzzer.fuzz(limits.reached, lambda progressed: setting.progress.step(str(progressed)))
            with setting.progress.stage("judge"):
                rig.judge.finish()
    except Found as found:
        _report_programs(setting, found)
        raise found.error from found
    setting.progress.line("PASS           nothing left behind, no kernel warning")


def replay_ioctl(setting: Setting, path: Path) -> None:
    """Carry out the programs of a file, once. Raises what the judge says of the driver."""
    _must_have_kcov(setting)
    programs = read_programs(path)
    with replaying(setting.rig) as replayer:
        if failure := replayer.failure(programs):
            raise failure.error from failure
    setting.progress.line(f"PASS           {len(programs)} programs, nothing left behind, no kernel warning")


def minimise_ioctl(setting: Setting, directory: Path | None) -> None:
    """Remove from the corpus what it does not need to reach the same code."""
    _must_have_kcov(setting)
    directory = directory or IOCTL_CORPUS
    programs = read_corpus(directory)
    with setting.rig() as rig, Runner(rig) as runner:
        kept = smaller_corpus(runner, programs)
    keep_in_corpus(directory, kept)
    setting.progress.line(f"corpus         {len(kept)} programs of {len(programs)} are left")


def _must_have_kcov(setting: Setting) -> None:
    if not setting.prepared.kernel.has("KCOV"):
        raise UsageError(
            f"{setting.prepared.kernel.name} has no KCOV, by which the fuzzer sees what it reaches",
            mend="take debug-6.12, or a tree of yours with --kernel-config kernel/configs/debug.config",
        )


@contextmanager
def _summed_up(setting: Setting, fuzzer: Fuzzer, directory: Path) -> Iterator[None]:
    """Keep what reached new code, and tell the figures, however the session ends."""
    try:
        yield
    finally:
        for program in fuzzer.new:
            add_to_corpus(directory, program)
        setting.progress.line(f"result         {fuzzer.progressed} ({setting.label})")
        if fuzzer.new:
            setting.progress.line(f"corpus         {len(fuzzer.new)} new programs in {directory}")


def _report_programs(setting: Setting, found: Found) -> None:
    """Make it smaller, leave it in build/fuzz, and print it."""
    progress = setting.progress
    progress.line(f"found          {found.error.message}")
    path = _left("ioctl", name_of(found.programs), to_json(found.programs))
    with replaying(setting.quiet.rig) as replayer:
        smaller = reduced(replayer, found, progress.step)
    if smaller is None:
        progress.line(f"it did not come again; the {len(found.programs)} programs before it are in {path}")
        return
    text = to_json(smaller.programs)
    path = _left("ioctl", name_of(smaller.programs), text)
    _show(setting, "ioctl", path, text, "replay_programs")


# -- host


def fuzz_host(setting: Setting, seed: int, limits: Limits) -> None:
    """Fuzz. Raises what the judge or the guest's processes say of the driver."""
    fuzzer = host.Fuzzer(setting.rig, seed)
    try:
        fuzzer.fuzz(limits.reached, lambda progressed: setting.progress.step(str(progressed)))
        with setting.progress.stage("judge"):
            fuzzer.finish()
    except host.Found as found:
        setting.progress.line(f"found          {found.error.message}")
        text = host.to_json(found.script)
        _show(setting, "host", _left("host", host.name_of(found.script), text), text, "replay_script")
        raise found.error from found
    finally:
        fuzzer.discard()
        setting.progress.line(f"result         {fuzzer.progressed} ({setting.label})")
    setting.progress.line("PASS           nothing left behind, no kernel warning")


def replay_host(setting: Setting, path: Path) -> None:
    """Play the script of a file, once. Raises what the judge or the guest's processes say of the driver."""
    script = host.read_script(path)
    fuzzer = host.Fuzzer(setting.rig, 0)
    try:
        fuzzer.play(script)
        fuzzer.finish()
    finally:
        fuzzer.discard()
    setting.progress.line(f"PASS           {len(script)} actions, nothing left behind, no kernel warning")


# -- what was found


def _left(fuzzer: str, name: str, text: str) -> Path:
    path = FOUND / fuzzer / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _show(setting: Setting, fuzzer: str, path: Path, text: str, fixture: str) -> None:
    indented = "".join(f"        {line}\n" for line in text.splitlines())
    setting.progress.line(_TEST.format(name=path.stem, fixture=fixture, kind="Replay", text=indented))
    kernel = setting.prepared.kernel.name
    setting.progress.line(f"again with     pyharness fuzz {fuzzer} --kernel {kernel} --replay {path}")
