# SPDX-License-Identifier: GPL-2.0-only
"""The agent over the real virtio-serial port."""

from __future__ import annotations

import os
import threading

import pytest

from pyharness.machine.vm import Machine

MIB = 1 << 20


@pytest.mark.default_kernel_only("how files come into the guest does not depend on its kernel")
def test_large_files_arrive_whole(machine: Machine) -> None:
    content = os.urandom(20 * MIB + 1)
    machine.guest.push(content, "/tmp/large")
    try:
        assert machine.guest.pull("/tmp/large") == content
    finally:
        machine.guest.module("os").unlink("/tmp/large")


def test_a_program_runs_beside_other_calls(machine: Machine) -> None:
    guest = machine.guest
    result = []
    thread = threading.Thread(
        target=lambda: result.append(guest.run("sh", "-c", "read line; echo $line", stdin=b"x\n"))
    )
    thread.start()
    for _ in range(20):
        assert guest.module("os").getpid() > 0
    thread.join(60)
    assert result[0].stdout == b"x\n"


def test_the_log_is_read_once_and_in_order(machine: Machine) -> None:
    log = machine.guest.dmesg()
    assert log[0].text.startswith("Linux version")
    assert log == machine.guest.dmesg()[: len(log)]
    kmsg = machine.guest.module("pathlib").Path("/dev/kmsg")
    for number in range(50):
        kmsg.write_text(f"<6>pyharness: {number}\n")
    news = [message.text for message in machine.guest.dmesg(len(log))]
    assert [text for text in news if text.startswith("pyharness: ")] == [f"pyharness: {n}" for n in range(50)]


def test_qmp_answers(machine: Machine) -> None:
    assert machine.qmp.execute("query-status")["running"] is True
    machine.qmp.execute("stop")
    assert machine.qmp.wait_event("STOP", 10)["event"] == "STOP"
    machine.qmp.execute("cont")
    assert machine.guest.module("os").getpid() > 0


def test_the_guest_can_write_where_it_should_and_only_there(machine: Machine) -> None:
    guest = machine.guest
    assert guest.run("sh", "-c", "echo x > /usr/file").status != 0
    assert guest.run("sh", "-c", "echo x > /tmp/file && echo x > /run/file && rm /tmp/file /run/file").status == 0
