# SPDX-License-Identifier: GPL-2.0-only
"""`pyharness fuzz`: what it is told, what it says of what it found, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pyharness import cli
from pyharness.artifacts.kernels import DEBUG_KERNEL
from pyharness.errors import Exit, GuestCrashed, UsageError
from pyharness.fuzz import host, ioctl, session
from pyharness.fuzz.corpus import read_programs
from pyharness.fuzz.program import Step
from pyharness.progress import Progress


@dataclass
class Kernel:
    name: str = "a-kernel"
    options: tuple[str, ...] = ()

    def has(self, option: str) -> bool:
        return option in self.options


def setting(*options: str) -> tuple[session.Setting, StringIO]:
    said = StringIO()
    prepared = SimpleNamespace(kernel=Kernel(options=options))
    accelerator = SimpleNamespace(name="tcg")
    return session.Setting(cast(Any, prepared), cast(Any, accelerator), Progress(stream=said)), said


def test_the_debug_kernel_is_the_default() -> None:
    assert cli.build_parser("fuzz").parse_args(["fuzz", "ioctl"]).kernel == DEBUG_KERNEL


@pytest.mark.parametrize("words", [["--minimise"], ["--corpus", "x"]])
def test_the_host_has_no_corpus(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fuzz", "host", *words]) == Exit.USAGE
    assert "the host fuzzer has no corpus" in capsys.readouterr().err


def test_a_kernel_without_kcov_is_refused() -> None:
    with pytest.raises(UsageError, match="a-kernel has no KCOV"):
        session.fuzz_ioctl(setting()[0], 1, session.Limits(1, None), None)


@pytest.mark.parametrize("replay", [session.replay_ioctl, session.replay_host])
def test_a_file_that_cannot_be_replayed_is_refused(replay: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        replay(setting("KCOV")[0], tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("limits", "reached"),
    [((None, None), False), ((11, None), False), ((10, None), True), ((None, 4.0), True), ((11, 6.0), False)],
)
def test_limits(limits: tuple[int | None, float | None], reached: bool) -> None:
    for progressed in (ioctl.Progressed(seconds=5, executions=10), host.Progressed(seconds=5, executions=10)):
        assert session.Limits(*limits).reached(progressed) == reached


def test_what_is_found_is_left_and_printed_as_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FOUND", tmp_path)
    found = ioctl.Found(GuestCrashed("it crashed"), [(Step.of("ioctl", pad=3),), (Step.of("rebind"),)])
    monkeypatch.setattr(session, "reduced", lambda replayer, found, tell: ioctl.Found(found.error, found.programs[:1]))
    chosen, said = setting("KCOV")
    session._report_programs(chosen, found)
    assert "it crashed" in said.getvalue()
    assert "(replay_programs: Replay)" in said.getvalue()
    (path,) = (Path(line.split()[-1]) for line in said.getvalue().splitlines() if "--replay" in line)
    assert read_programs(path) == found.programs[:1]
    before = [read_programs(other) for other in (tmp_path / "ioctl").iterdir() if other != path]
    assert before == [found.programs]


def test_what_does_not_come_again_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FOUND", tmp_path)
    monkeypatch.setattr(session, "reduced", lambda replayer, found, tell: None)
    chosen, said = setting("KCOV")
    session._report_programs(chosen, ioctl.Found(GuestCrashed("it crashed"), [(Step.of("ioctl"),)]))
    (path,) = (tmp_path / "ioctl").iterdir()
    assert f"it did not come again; the 1 programs before it are in {path}" in said.getvalue()


def test_hypothesis_is_not_loaded_for_other_commands() -> None:
    code = "import sys; from pyharness import cli; cli.build_parser('fuzz'); sys.exit('hypothesis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
