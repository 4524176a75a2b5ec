# SPDX-License-Identifier: GPL-2.0-only
"""The command line: what a user gets wrong ends as one line with its mend and the right exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pyharness import cli, repository
from pyharness.artifacts.kernels import KERNELS
from pyharness.commands import check, clean, run
from pyharness.errors import CheckFailed, Exit, GuestCrashed, HarnessError, TimedOut
from pyharness.progress import Progress
from pyharness.rig import Rig
from pyharness.vsp.backends.choice import parse_backend

NOBODY = 65534


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("PYHARNESS_CACHE", str(cache))
    return cache


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def one_line(captured: str) -> str:
    """The error line, after asserting that there is exactly one and that a mend follows it."""
    lines = captured.splitlines()
    assert "Traceback" not in captured
    assert [line for line in lines if line.startswith("pyharness: ")] == [lines[-2]]
    assert lines[-1].startswith("  mend: ")
    return lines[-2]


def test_reader_that_goes_away_is_told_nothing() -> None:
    """`pyharness ... | true`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pyharness", "kernels"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (Exit.HARNESS, b"")


def test_another_broken_pipe_is_a_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as one that a call in the guest has raised."""

    def broken(_args: Namespace) -> Exit:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(clean, "execute", broken)
    assert cli.main(["clean"]) == Exit.HARNESS
    assert "BrokenPipeError" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("command", [row.name for row in cli.SUBCOMMANDS])
def test_every_subcommand_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_kernels_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYHARNESS_CACHE", str(tmp_path))
    assert cli.main(["kernels"]) == Exit.OK
    head, *rows, snapshots = capsys.readouterr().out.splitlines()
    assert head.startswith("NAME") and snapshots.startswith("0 snapshots")
    assert [row.split()[:3] for row in rows] == [[name, "-", "no"] for name in KERNELS]
    assert cli.main(["kernels", "--json"]) == Exit.OK
    listed = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["release"], row["bytes"]) for row in listed] == [(name, None, 0) for name in KERNELS]


@pytest.mark.parametrize("names", [("debian-6.12", "debian-6.12"), ("debian-6.12", "debian-6.13")])
def test_kernels_of_a_session_are_looked_at_first(
    names: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the report says so."""
    arguments = [word for name in names for word in ("--kernel", name)]
    assert cli.main(["test", *arguments, "--report", str(tmp_path / "out")]) == Exit.USAGE
    assert names[1] in one_line(capsys.readouterr().err)
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata["verdict"] == "usage" and names[1] in metadata["problems"][0]["headline"]


def test_a_matrix_of_which_nothing_can_be_made_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise CheckFailed("hv_azure_blob does not build")

    monkeypatch.setattr("pyharness.commands.test.subject_of", refuse)
    assert cli.main(["matrix", "--report", str(tmp_path / "out")]) == Exit.FAILED
    assert "hv_azure_blob does not build" in capsys.readouterr().err.splitlines()[-1]
    assert json.loads((tmp_path / "out" / "metadata.json").read_text())["verdict"] == "fail"


@pytest.mark.parametrize("argv", [[], ["launch"], ["run", "--no-such-option"]])
def test_wrong_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == Exit.USAGE
    assert "usage: pyharness" in capsys.readouterr().err


def test_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(tmp_path / "absent")]) == Exit.USAGE
    assert "absent: no such file or directory" in one_line(capsys.readouterr().err)


def test_directory_as_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(tmp_path)]) == Exit.USAGE
    assert "not a regular file" in one_line(capsys.readouterr().err)


def test_pipe_as_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not opened: that would wait for a writer."""
    os.mkfifo(tmp_path / "pipe")
    assert cli.main(["run", str(tmp_path / "pipe")]) == Exit.USAGE
    assert "not a regular file" in one_line(capsys.readouterr().err)


def test_unreadable_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    # Root reads everything, so ask as nobody.
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(NOBODY)
    try:
        status = cli.main(["run", str(secret)])
    finally:
        if privileged:
            os.seteuid(0)
    assert status == Exit.USAGE
    assert "permission denied" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("command", ["run", "test", "build"])
def test_unknown_kernel(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--kernel", "debian-2.4"]) == Exit.USAGE
    captured = capsys.readouterr()
    assert "debian-2.4" in one_line(captured.err)
    assert "debian-6.12" in captured.err


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent", "No such file"),
        ("not executable", "Permission denied"),
        ("/bin/true", "it has no device hv-azure-blob"),
        ("/bin/false", "it does not answer as QEMU does"),
    ],
)
def test_wrong_qemu(name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is known before anything is fetched."""
    (tmp_path / "not executable").touch()
    assert cli.main(["run", "--qemu", str(tmp_path / name)]) == Exit.USAGE
    assert reason in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["absent/out.json", "file/out.json", "."])
def test_report_that_cannot_be_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["run", "--json", str(tmp_path / name)]) == Exit.USAGE
    assert "cannot write" in one_line(capsys.readouterr().err)


def test_report_to_a_pipe_is_written_once_and_replaces_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "pyharness", "run", "--kernel", "debian-2.4", "--json", str(pipe)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=dict(os.environ)) as running:
        assert json.loads(pipe.read_text())["verdict"] == "usage"
        assert running.wait() == Exit.USAGE
    assert pipe.is_fifo()


def test_the_driver_is_to_blame_for_what_the_guest_raises() -> None:
    guest = SimpleNamespace(dmesg=lambda start=0: ["a line of the log"][start:])
    verdicts: list[HarnessError] = []
    unloaded: list[bool] = []

    def verdict(tolerated: Sequence[str]) -> None:
        assert tolerated == ("a warning",)
        if verdicts:
            raise verdicts[0]

    running = SimpleNamespace(
        machine=SimpleNamespace(guest=guest),
        warnings=lambda: ["a warning"],
        judge=SimpleNamespace(verdict=verdict, finish=lambda: None),
        pending_requests=list,
        unload=lambda: unloaded.append(True),
    )
    report, progress = run.Report(), Progress(quiet=True)

    def judged() -> AbstractContextManager[None]:
        return run._judged(cast(Rig, running), report, progress, ("a warning",))

    with pytest.raises(CheckFailed, match="Input/output error"), judged():
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert report.kernel_warnings == ["a warning"]
    assert unloaded == [True], "what fails is judged too"
    with judged():
        pass
    verdicts.append(CheckFailed("pages are left pinned"))
    with pytest.raises(CheckFailed, match="the data came back changed") as caught, judged():
        raise CheckFailed("the data came back changed")
    assert "pages are left pinned" in caught.value.detail
    with pytest.raises(CheckFailed, match="left pinned"), judged():
        pass
    verdicts[:] = [GuestCrashed("the guest's kernel reported lockdep")]
    with pytest.raises(GuestCrashed, match="lockdep"), judged():
        pass
    with pytest.raises(GuestCrashed, match="lockdep"), judged():
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_report_is_written_for_a_run_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    assert cli.main(["run", "--kernel", "debian-2.4", "--json", str(path)]) == Exit.USAGE
    report = json.loads(path.read_text())
    assert report["verdict"] == "usage"
    assert "debian-2.4" in report["error"]
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
    capsys.readouterr()


def test_shell_needs_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/null").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert cli.main(["shell"]) == Exit.USAGE
    assert "terminal" in one_line(capsys.readouterr().err)


def test_unknown_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--only", "astrology"]) == Exit.USAGE
    assert "astrology" in one_line(capsys.readouterr().err)


def test_no_apt(tmp_path: Path) -> None:
    """A machine without apt is told so; nothing of the cache entry is left behind."""
    cache = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-m", "pyharness", "build"],
        env={"PATH": str(tmp_path), "PYHARNESS_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == Exit.HARNESS
    assert "apt" in one_line(done.stderr)
    assert list((cache / "tmp").iterdir()) == []


def test_no_disk_space(tmp_path: Path) -> None:
    """A build on a file system that is too small says so before it starts. A user namespace lets anybody mount one."""
    if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs unprivileged user namespaces to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    script = 'mount -t tmpfs -o size=4m tmpfs "$1" && PYHARNESS_CACHE="$1/cache" exec "$2" -m pyharness build'
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(small), sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == Exit.HARNESS
    assert "disk space" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GuestCrashed("the guest crashed", mend="look", detail="BUG: splat"), Exit.GUEST_CRASH),
        (TimedOut("no boot", mend="look", detail="last console line"), Exit.TIMEOUT),
        (HarnessError("QEMU died", mend="look", detail="qemu: bad"), Exit.HARNESS),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x"), Exit.HARNESS),
        (RuntimeError("a bug of ours"), Exit.HARNESS),
    ],
)
def test_each_error_has_its_exit_code_and_shows_its_detail(
    error: Exception, code: Exit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_args: Namespace) -> Exit:
        raise error

    monkeypatch.setattr(clean, "execute", fail)
    assert cli.main(["clean"]) == code
    captured = capsys.readouterr().err
    one_line(captured)
    if isinstance(error, HarnessError):
        assert captured.startswith(error.detail)


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_args: Namespace) -> Exit:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "execute", interrupted)
    assert cli.main(["check"]) == 128 + signal.SIGINT
    assert "Traceback" not in capsys.readouterr().err


def test_doctor_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "debian-packages.txt").write_text("# wanted\ndpkg\nno-such-package-of-debian\n")
    monkeypatch.setattr(repository, "ROOT", tmp_path)
    assert cli.main(["doctor", "--json"]) == Exit.HARNESS
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert "1 of 2" in findings["packages"]["fact"]
    assert findings["packages"]["mend"].endswith("no-such-package-of-debian")
    assert findings["accelerator"]["fact"].partition(":")[0] in ("tcg", "kvm")


def test_doctor_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert (status == Exit.OK) == all(line.startswith("ok ") for line in lines)


def test_clean_removes_what_was_built(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = tmp_path / "build" / "logs"
    logs.mkdir(parents=True)
    monkeypatch.setattr(repository, "BUILD", tmp_path / "build")
    entry = own_cache / "entries" / "kernel" / "0123456789abcdef"
    entry.mkdir(parents=True)
    (entry / "vmlinuz").write_text("x")
    assert cli.main(["clean"]) == Exit.OK
    assert entry.exists()
    assert not logs.exists()
    assert cli.main(["clean", "--cache"]) == Exit.OK
    assert not entry.exists()


def test_what_is_no_dump_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("no dump")
    for path in (tmp_path / "text", tmp_path / "absent", tmp_path):
        assert cli.main(["inspect", str(path)]) == Exit.USAGE
        assert capsys.readouterr().err.startswith("pyharness: ")


# -- --backend


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ("disk", "there is no backend disk"),
        ("http", "not the URL of an endpoint"),
        ("http=ftp://h/c", "not the URL of an endpoint: ftp://h"),
        ("http=http://h", "http://h names no container"),
    ],
)
def test_backend_that_cannot_be(given: str, cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--backend", given]) == Exit.USAGE
    assert cause in capsys.readouterr().err


def test_backend_of_a_container() -> None:
    choice = parse_backend("http=http://127.0.0.1:10000/account/a%20b/?sv=1&sig=x%3D")
    assert (choice.endpoint, choice.host) == ("http://127.0.0.1:10000", "127.0.0.1:10000")
    assert (choice.container, choice.sas) == ("/account/a b", "sv=1&sig=x%3D")
    assert "sig" not in choice.name
