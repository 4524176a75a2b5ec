# SPDX-License-Identifier: GPL-2.0-only
"""The main job as a user runs it: `pyharness run` in a process of its own."""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from azure.storage.blob import BlobServiceClient, ContainerClient, generate_container_sas

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.prepare import Prepared
from pyharness.azurite import ACCOUNT, KEY, Azurite
from pyharness.client.blob import CHUNK_BYTES
from pyharness.errors import Exit
from pyharness.report.subjects import Subject

# Ends only a wait that would last for ever; no verdict depends on it.
PATIENCE_S = 300.0
MARK = "PYHARNESS_TEST_RUN"

pytestmark = pytest.mark.usefixtures("prepared")
ONE_KERNEL = pytest.mark.default_kernel_only("how a run ends does not depend on the guest's kernel")


@dataclass
class Run:
    """`pyharness run` with a mark in its environment that every process of it inherits."""

    arguments: tuple[str, ...]
    root: Path = repository.ROOT
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    output: str = ""

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyharness", "run", *self.arguments],
            cwd=self.root,
            env={**os.environ, MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, text: str) -> str:
        """The line with the text."""
        assert self.process.stderr
        for line in self.process.stderr:
            self.output += line
            if text in line:
                return line
        pytest.fail(f"the run ended before it said {text!r}:\n{self.output}")

    def finish(self) -> int:
        assert self.process.stderr
        self.output += self.process.stderr.read()
        return self.process.wait(PATIENCE_S)

    def processes(self) -> list[int]:
        """Every live process that descends from this run, however it was re-parented."""
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{MARK}={self.mark}".encode() in environment.read_bytes().split(b"\0"):
                    found.append(int(environment.parent.name))
            except OSError:
                continue  # it has ended, or is another user's
        return found

    def commands(self, name: str) -> list[list[str]]:
        """Their command lines, of those that run the program `name`."""
        lines = [Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in self.processes()]
        return [line for line in lines if Path(line[0]).name == name]

    def wait_until_gone(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.processes():
            assert time.monotonic() < deadline, f"left running: {self.processes()}"
            time.sleep(0.05)


@pytest.fixture
def clean_exit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A place for run directories that nobody else uses; its path is short, for the sake of the sockets."""
    with tempfile.TemporaryDirectory(prefix="run-") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        yield
        assert list(Path(runtime).iterdir()) == []


def report_of(path: Path) -> dict[str, object]:
    report = json.loads(path.read_text())
    assert isinstance(report, dict)
    return report


@pytest.mark.usefixtures("clean_exit")
def test_a_file_goes_through_and_back(tmp_path: Path, prepared: Prepared, subject: Subject) -> None:
    path = tmp_path / "run.json"
    run = Run(("--json", str(path), *subject.arguments))
    assert run.finish() == Exit.OK, run.output
    assert run.processes() == []

    report = report_of(path)
    assert report["verdict"] == "pass"
    assert report["accelerator"] in ("tcg", "kvm")
    assert prepared.kernel.release in str(report["kernel"])
    assert prepared.qemu.key in str(report["qemu"])
    assert report["driver"] == prepared.modules.driver.hash
    assert report["bytes"] == prepared.modules.vmbus.debug.stat().st_size > 1_000_000
    assert report["sha256_match"] is True
    assert report["kernel_warnings"] == []
    stages = report["stages"]
    assert isinstance(stages, list)
    assert [stage["name"] for stage in stages][-6:] == ["start", "load", "upload", "download", "unload", "judge"]
    # What the run is done with comes before it is done.
    said = run.output
    for fact in ("accelerator ", prepared.kernel.release, prepared.qemu.key):
        assert -1 < said.index(fact) < said.index("start: ")
    for fact in (prepared.modules.driver.hash, prepared.modules.vmbus.hash):
        assert -1 < said.index(fact) < said.index("load: ")


@ONE_KERNEL
@pytest.mark.parametrize("cold", [False, True], ids=["restored", "cold"])
def test_a_cold_run_boots(subject: Subject, cold: bool) -> None:
    run = Run((*(["--cold"] if cold else []), *subject.arguments))
    run.wait_for("load: ")
    (qemu,) = run.commands("qemu-system-x86_64")
    assert ("-incoming" in qemu) == (not cold)
    assert run.finish() == Exit.OK, run.output


@ONE_KERNEL
def test_a_run_waits_for_gdb(subject: Subject) -> None:
    run = Run(("--gdb", *subject.arguments))
    command = run.wait_for("  gdb ")
    typed = ("break az_blob_ioctl", "continue", "backtrace 1", "delete", "detach")
    words = [*shlex.split(command), "-nx", "-batch", *(word for line in typed for word in ("-ex", line))]
    said = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S).stdout
    assert re.search(r"^#0  az_blob_ioctl \(", said, re.MULTILINE), said
    assert run.finish() == Exit.OK, run.output


@ONE_KERNEL
@pytest.mark.usefixtures("clean_exit")
@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES + 12345])
def test_files_of_any_size(tmp_path: Path, subject: Subject, size: int) -> None:
    """Empty, tiny, and larger than one request carries; the name is no simple one either."""
    file = tmp_path / "a file, with % and ü"
    file.write_bytes(random.Random(size).randbytes(size))
    path = tmp_path / "run.json"
    run = Run((str(file), "--json", str(path), *subject.arguments))
    assert run.finish() == Exit.OK, run.output
    report = report_of(path)
    assert (report["verdict"], report["bytes"], report["sha256_match"]) == ("pass", size, True)


@ONE_KERNEL
@pytest.mark.usefixtures("clean_exit")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 128 + signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
@pytest.mark.parametrize("moment", ["qemu: ", "start: ", "load: "])
def test_an_interrupted_run_leaves_nothing(number: signal.Signals, status: int, moment: str, subject: Subject) -> None:
    run = Run(subject.arguments)
    run.wait_for(moment)
    # As a terminal does: the whole foreground process group gets it.
    os.killpg(run.process.pid, number)
    assert run.finish() == status, run.output
    assert "Traceback" not in run.output
    run.wait_until_gone()


@ONE_KERNEL
@pytest.mark.parametrize("moment", ["kernel: ", "qemu: ", "start: ", "load: ", "upload: "])
def test_a_killed_run_leaves_no_process_and_hinders_nobody(moment: str, subject: Subject) -> None:
    run = Run(subject.arguments)
    run.wait_for(moment)
    run.process.kill()
    assert run.finish() == -signal.SIGKILL
    again = Run(subject.arguments)  # at once, whatever of the first is still about to end
    assert again.finish() == Exit.OK, again.output
    run.wait_until_gone()


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """A copy of the repository whose driver nobody has built yet."""
    for name in ("pyharness", "kernel", "uapi", "qemu"):
        shutil.copytree(repository.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "kernel/hv_azure_blob.c").open("a") as driver:
        driver.write(f"/* {uuid.uuid4()} */\n")
    return tmp_path


def built_from(edited: Path, places: Path) -> list[Path]:
    """The directories in which that driver is built or was. Others build theirs at the same time."""
    driver = (edited / "kernel/hv_azure_blob.c").read_bytes()
    found = []
    for source in places.glob("*/sources/kernel/hv_azure_blob.c"):
        with suppress(FileNotFoundError):
            found += [source.parents[2]] if source.read_bytes() == driver else []
    return found


@ONE_KERNEL
def test_a_run_that_is_killed_while_the_driver_builds_leaves_no_half_entry(subject: Subject, edited: Path) -> None:
    root = Cache.open().root
    run = Run(subject.arguments, edited)
    while not built_from(edited, root / "tmp"):
        assert run.process.poll() is None, run.output
        time.sleep(0.005)
    run.process.kill()
    assert run.finish() == -signal.SIGKILL
    assert built_from(edited, root / "entries/module") == []
    again = Run(subject.arguments, edited)
    assert again.finish() == Exit.OK, again.output
    run.wait_until_gone()
    (made,) = built_from(edited, root / "entries/module")
    assert {path.name for path in made.glob("*.ko")} == {"hv_azure_blob.ko", "hv_azure_blob.debug.ko"}
    assert built_from(edited, root / "tmp") == []


@ONE_KERNEL
def test_a_driver_that_does_not_build_is_the_verdict(subject: Subject, edited: Path) -> None:
    with (edited / "kernel/hv_azure_blob.c").open("a") as driver:
        driver.write("int az_blob_broken(void) { return missing; }\n")
    run = Run(subject.arguments, edited)
    assert run.finish() == Exit.FAILED
    assert "hv_azure_blob does not build" in run.output and "kernel/hv_azure_blob.c:" in run.output
    assert "Traceback" not in run.output
    run.wait_until_gone()


@ONE_KERNEL
def test_through_a_blob_service(tmp_path: Path, azurite: Azurite) -> None:
    """The file goes through the driver to Azurite and comes back; the container's SAS is all that it takes."""
    with BlobServiceClient(azurite.account_url, azurite.credential) as service:
        service.create_container("run")
    expiry = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    sas = generate_container_sas(ACCOUNT, "run", account_key=KEY, permission="rcwd", expiry=expiry)
    source, report = tmp_path / "source", tmp_path / "report.json"
    source.write_bytes(random.Random(3).randbytes(CHUNK_BYTES + 100_000))
    run = Run((str(source), "--json", str(report), "--backend", f"http={azurite.account_url}/run?{sas}"))
    assert run.finish() == Exit.OK, run.output
    told = json.loads(report.read_text())
    assert (told["verdict"], told["backend"]) == ("pass", f"{azurite.account_url}/run")
    assert sas not in run.output + report.read_text()
    with ContainerClient(azurite.account_url, "run", azurite.credential) as container:
        assert list(container.list_blobs()) == []
