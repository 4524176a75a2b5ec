# SPDX-License-Identifier: GPL-2.0-only
"""Transcripts of real guests, and the normal life of a device, which is the same on every kernel."""

from __future__ import annotations

import sys
from pathlib import Path

import pexpect
import pytest

from pyharness import repository
from pyharness.artifacts.prepare import Prepared
from pyharness.errors import Exit
from pyharness.machine.vm import Machine
from pyharness.report.subjects import Subject
from pyharness.trace.compare import comparable
from pyharness.trace.dialogue import Dialogue, Event
from pyharness.trace.record import recording
from pyharness.trace.records import Header, Packet, Transcript
from tests.devices import SERVED_DEVICE
from tests.run.test_run import Run

GOLDEN = Path(__file__).parent / "golden/device-life.txt"
PATIENCE_S = 300
NODE_TIMEOUT_S = 60
DEVICES = "/sys/bus/vmbus/devices"

pytestmark = pytest.mark.usefixtures("prepared")
ONE_KERNEL = pytest.mark.default_kernel_only("who records, and when, does not depend on the guest's kernel")


def read(path: Path) -> tuple[Transcript, list[Event]]:
    with path.open("rb") as stream:
        transcript = Transcript(stream, str(path))
        return transcript, list(Dialogue(transcript))


def names(events: list[Event]) -> list[str]:
    return [event.decoded.name for event in events]


def test_the_normal_life_of_a_device(tmp_path: Path, prepared: Prepared, subject: Subject) -> None:
    """Loaded, asked for what moving a small file takes, unloaded. docs/transcripts.md tells how to renew it."""
    file, path = tmp_path / "file", tmp_path / "transcript"
    file.write_bytes(b"x")
    run = Run((str(file), "--trace", str(path), *subject.arguments))
    assert run.finish() == Exit.OK, run.output

    transcript, events = read(path)
    kernel, qemu = prepared.kernel, prepared.qemu
    assert transcript.header
    assert transcript.header.kernel == f"{kernel.name} {kernel.release}"
    assert transcript.header.qemu == f"{qemu.version} {qemu.key}"
    assert transcript.header.driver == prepared.modules.driver.hash
    assert not transcript.is_cut
    times = [event.line.record.ns for event in events]
    assert times == sorted(times) and times[0] > 0
    golden = GOLDEN.read_text().splitlines()
    assert comparable(events) == golden

    lines = path.read_bytes().splitlines(keepends=True)
    for more, less in (([lines[-1]], []), ([], [lines[-1]])):
        path.write_bytes(b"".join([line for line in lines if line not in less] + more))
        assert comparable(read(path)[1]) != golden, "one message more or less is seen"


def test_an_unplugged_device_and_one_that_is_plugged(machine: Machine, prepared: Prepared, tmp_path: Path) -> None:
    """The recording begins in the middle of a connection."""
    guest, device = machine.guest, machine.blob_device(0)
    guest.insmod(prepared.modules.vmbus.path)
    guest.insmod(prepared.modules.driver.path)
    directory = f"{DEVICES}/{SERVED_DEVICE}/misc"
    guest.wait_for_node(directory, NODE_TIMEOUT_S)
    path = tmp_path / "transcript"
    with recording(machine, path, Header()):
        device.unplug()
        device.plug()
        guest.wait_for_node(directory, NODE_TIMEOUT_S)
    for name in ("hv_azure_blob", "hv_vmbus"):
        guest.rmmod(name)

    _, events = read(path)
    said = names(events)
    released = events[said.index("RELID_RELEASED")]
    assert said[0] == "RESCIND_CHANNELOFFER"
    assert released.pair.request == events[0].line.number
    assert released.channel == events[0].channel
    after = said[said.index("RELID_RELEASED") + 1 :]
    assert [name for name in after if name != "GPADL_BODY"] == [
        *("OFFERCHANNEL", "GPADL_HEADER", "GPADL_CREATED", "OPENCHANNEL", "OPENCHANNEL_RESULT"),
    ]
    assert events[-1].channel and events[-1].channel.instance == str(SERVED_DEVICE)
    assert not [event for event in events if event.decoded.fault or event.pair.oddity]


@ONE_KERNEL
def test_a_run_that_is_killed_leaves_whole_lines(tmp_path: Path, subject: Subject) -> None:
    path = tmp_path / "transcript"
    run = Run(("--trace", str(path), *subject.arguments))
    run.wait_for("upload: ")
    run.process.kill()
    run.finish()
    run.wait_until_gone()
    transcript, events = read(path)
    assert transcript.header and not transcript.is_cut
    packets = [event for event in events if isinstance(event.line.record, Packet)]
    assert packets and not [event for event in events if event.decoded.fault or event.pair.oddity]


@ONE_KERNEL
def test_a_shell_is_recorded_and_may_be_read_meanwhile(tmp_path: Path, prepared: Prepared) -> None:
    path = tmp_path / "transcript"
    argv = ["-m", "pyharness", "shell", "--kernel", prepared.kernel.name, "--trace", str(path)]
    person = pexpect.spawn(sys.executable, argv, cwd=repository.ROOT, timeout=PATIENCE_S, encoding="utf-8")
    try:
        person.expect_exact("ends the guest")
        person.expect(r"# ")
        assert "OPENCHANNEL_RESULT" in names(read(path)[1])
        person.sendline("rmmod hv_azure_blob; echo gone''now")
        person.expect_exact("gonenow")
        assert "CLOSECHANNEL" in names(read(path)[1])
        person.sendline("exit")
        person.expect(pexpect.EOF)
        person.close()
        assert person.exitstatus == 0
    finally:
        person.close(force=True)
