# SPDX-License-Identifier: GPL-2.0-only
"""The survey of the driver's objects: of a live guest, of its dump, and of what a crash leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyharness import cli
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.prepare import Prepared
from pyharness.debug.program import open_dump, open_live
from pyharness.debug.survey import Device, survey
from pyharness.errors import Exit, GuestCrashed, UsageError
from pyharness.machine.config import BlobDevice, MachineConfig
from pyharness.machine.vm import Machine
from tests.driver.lab import FIRST, NULL, SECOND, Lab, lab_on, release
from tests.driver.memory import live

DATA_LEN = 100 * 4096
PAGES = 102  # those of the data, the request's and the response's


SYMBOLS = pytest.mark.kernel_has("DEBUG_INFO")


@pytest.fixture
def held(lab: Lab) -> Iterator[tuple[int, int]]:
    """Three requests that the host holds, one of them an orphan; the pids of the two callers that are left."""
    lab.first.behaviour = lambda request: True
    callers = [lab.work.start("waiter", lab.node(), 90 + index, DATA_LEN) for index in range(3)]
    lab.first.wait_in_flight(3)
    callers[0].kill()
    callers[0].wait()
    yield callers[1].pid, callers[2].pid
    release(lab.first)
    for caller in callers[1:]:
        assert caller.failure() == ""


def assert_holds(devices: dict[str, Device], callers: tuple[int, int], lab: Lab) -> None:
    assert set(devices) == {str(FIRST), str(SECOND), str(NULL)}
    first = devices[str(FIRST)]
    assert (first.state, first.channel, first.in_flight) == ("open", "opened", 3)
    assert first.references == 3, "the binding and two files"
    assert [file.process.pid for file in first.open_files] == list(callers)
    assert {file.process.comm for file in first.open_files} == {"python3"}
    facts = [(request.state, request.caller and request.caller.pid) for request in first.requests]
    assert facts == [("orphaned", None), ("sent", callers[0]), ("sent", callers[1])]
    assert [str(request.guid) for request in first.requests] == [row[0] for row in lab.pending()]
    for request in first.requests:
        assert (request.data_len, request.pinned_pages) == (DATA_LEN, PAGES)
        assert [request.request_len, request.response_len] == [int(text) for text in lab.pending()[0][4:6]]
    for other in (SECOND, NULL):
        assert (devices[str(other)].references, devices[str(other)].open_files) == (1, ())
        assert devices[str(other)].requests == ()


@SYMBOLS
def test_a_live_guest(lab: Lab, held: tuple[int, int]) -> None:
    assert_holds(live(lab), held, lab)
    before = [int(row[2]) for row in lab.pending()]
    ages = [request.age_ms for request in live(lab)[str(FIRST)].requests]
    after = [int(row[2]) for row in lab.pending()]
    assert all(low <= age <= high for low, age, high in zip(before, ages, after, strict=True))


@SYMBOLS
def test_an_idle_driver_holds_nothing(lab: Lab) -> None:
    fd = lab.work.hold_open(lab.node(SECOND))
    (file,) = live(lab)[str(SECOND)].open_files
    assert (file.process.pid, file.fd) == (lab.guest.module("os").getpid(), fd)
    lab.guest.module("os").close(fd)
    assert [(device.references, device.open_files, device.requests) for device in live(lab).values()] == [
        (1, (), ())
    ] * 3


@SYMBOLS
def test_an_unloaded_driver_has_no_devices(lab: Lab) -> None:
    lab.unload()
    try:
        assert live(lab) == {}
    finally:
        lab.load()


@SYMBOLS
def test_a_device_that_is_gone_is_seen_as_long_as_its_file_is_open(lab: Lab) -> None:
    fd = lab.work.hold_open(lab.node())
    lab.work.unbind(str(FIRST))
    try:
        with open_live(lab.machine.run_dir.debug_socket, Cache.open()) as program:
            (dead,) = [device for device in survey(program) if device.instance is None]
        assert (dead.state, dead.channel, dead.references, len(dead.open_files)) == ("dead", "none", 1, 1)
    finally:
        lab.guest.module("os").close(fd)
        lab.work.bind(str(FIRST))
        lab.work.wait_for_nodes(3)
    assert all(device.state == "open" for device in live(lab).values())


@SYMBOLS
def test_a_dump_of_a_live_guest(
    lab: Lab, held: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = tmp_path / "vmcore"
    lab.machine.dump(dump)
    devices = survey(open_dump(dump, Cache.open()))
    assert_holds({str(device.instance): device for device in devices}, held, lab)
    assert dump.stat().st_size < lab.machine.config.ram_mib << 20 >> 2, "pages of zeros take no room"
    assert cli.main(["inspect", str(dump)]) == Exit.OK
    text = capsys.readouterr().out
    assert text.count(" sent, ") == 2 and "orphaned" in text and f"python3[{held[0]}] fd" in text
    assert cli.main(["inspect", "--json", str(dump)]) == Exit.OK
    written = json.loads(capsys.readouterr().out)
    assert {device["instance"]: len(device["requests"]) for device in written} == {
        str(FIRST): 3,
        str(SECOND): 0,
        str(NULL): 0,
    }


@SYMBOLS
def test_what_a_crash_with_a_request_in_flight_leaves(config: MachineConfig, prepared: Prepared) -> None:
    devices = (BlobDevice(FIRST), BlobDevice(SECOND), BlobDevice(NULL, backend=False))
    with Machine(replace(config, blob_devices=devices, dump_on_crash=True)) as machine:
        with lab_on(machine, prepared.modules) as lab:
            lab.first.behaviour = lambda request: True
            caller = lab.work.start("waiter", lab.node(), 7, DATA_LEN)
            lab.first.wait_in_flight(1)
            pid = caller.pid
            with pytest.raises(GuestCrashed) as caught:
                machine.guest.module("pathlib").Path("/proc/sysrq-trigger").write_text("c")
        vmcore = machine.console.log.with_name("vmcore")
    assert str(vmcore) in caught.value.mend
    program = open_dump(vmcore, Cache.open())
    (first,) = [device for device in survey(program) if device.instance == FIRST]
    (request,) = first.requests
    assert (request.state, request.pinned_pages) == ("sent", PAGES)
    assert request.caller and request.caller.pid == pid
    frames = [frame.name for frame in program.crashed_thread().stack_trace()]
    assert "sysrq_handle_crash" in frames
    vmcore.unlink()


@pytest.mark.default_kernel_only("a debug kernel has symbols")
def test_a_kernel_without_symbols_is_named(lab: Lab) -> None:
    with pytest.raises(UsageError, match="does not say which kernel is in it") as caught:
        live(lab)
    assert "debug-6.12" in caught.value.mend
