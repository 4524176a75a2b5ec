# SPDX-License-Identifier: GPL-2.0-only
"""The Python client in the guest against the object store on the host."""

from __future__ import annotations

import hashlib

import pytest

from pyharness.vsp.backends.memory import MemoryBackend
from pyharness.vsp.request import VspRequest
from pyharness.vsp.server import VspServer
from pyharness.vsp.wire import Status
from tests.driver.lab import Lab
from tests.driver.pattern import pattern
from tests.examples import examples

MIB = 1 << 20
PATH = "/container/a blob?with #odd name"


@pytest.mark.parametrize(
    ("size", "chunk"),
    [
        (0, MIB),
        (1, MIB),
        (99_999, 100_000),
        (100_000, 100_000),
        (100_001, 100_000),
        (1_000_000, 77_777),
        (40 * MIB, 31 * MIB),
    ],
)
def test_put_and_get(lab: Lab, node: str, store: MemoryBackend, size: int, chunk: int) -> None:
    content = pattern(size, size)
    digest = hashlib.sha256(content).hexdigest()
    sent, said, told = lab.work.blob_put(node, PATH, size, size, chunk)
    assert (sent, said) == (size, digest)
    assert list(told) == sorted(told)
    assert told[-1] == size
    assert store.read(PATH) == content
    assert tuple(lab.work.blob_get(node, PATH, chunk, "/tmp/sink")) == (size, digest, digest)


def test_files(lab: Lab, node: str, store: MemoryBackend) -> None:
    assert lab.work.blob_file_round_trip(node, PATH, 5 * MIB + 17, MIB) == ""
    assert not store.blobs


def test_missing_blob_leaves_no_file(lab: Lab, node: str, store: MemoryBackend) -> None:
    assert tuple(lab.work.blob_get_failure(node, "/no", MIB, "/tmp/empty/sink")) == (404, "BlobNotFound", False)


def test_blob_that_changes_meanwhile_is_not_torn(lab: Lab, node: str, vsp: VspServer, store: MemoryBackend) -> None:
    store.write("/b", bytes(300_000))
    seen = 0

    def replace(request: VspRequest) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            store.write("/b", bytes(300_001))

    vsp.behaviour = replace
    assert tuple(lab.work.blob_get_failure(node, "/b", 100_000, "/tmp/empty/sink")) == (412, "ConditionNotMet", False)


def test_threads_share_a_device(lab: Lab, node: str, store: MemoryBackend) -> None:
    lab.work.blob_clients(node, 16, 250_000)
    assert not store.blobs


def test_failures_are_exceptions_that_say_what(lab: Lab, node: str, vsp: VspServer) -> None:
    assert lab.work.client_failure(node, "too many pages") == "TooManyPages"
    assert lab.work.client_failure(node, "no response buffer") == "InvalidRequest"
    vsp.behaviour = lambda request: request.complete(error=Status.INVALID_PARAMETER)
    assert lab.work.client_failure(node, "host") == "RequestRefused"

    def lose(request: VspRequest) -> bool:
        request.complete_raw(b"")
        return True

    vsp.behaviour = lose
    lab.tolerated = ("malformed completion", "callbacks suppressed")
    assert lab.work.client_failure(node, "host") == "AnswerLost"


def test_in_place(lab: Lab, node: str) -> None:
    assert tuple(lab.work.client_in_place(node)) == (True, True)


def test_prepared(lab: Lab, node: str, vsp: VspServer) -> None:
    guids = []
    vsp.behaviour = lambda request: guids.append(request.header and request.header.guid)
    assert lab.work.client_prepared(node)
    assert len(set(guids)) == len(guids) == 6


def test_request_that_is_given_up(lab: Lab, node: str, vsp: VspServer) -> None:
    """Its caller is free at once and goes on with the next, while the host still has the first and its memory."""
    caller = lab.work.IsolatedCaller(node)
    assert caller.ask() == "right"
    vsp.behaviour = lambda request: True
    asking = lab.guest.spawn(caller.ask)
    vsp.wait_in_flight(1)
    caller.device.cancel()
    assert asking.result(60) == "Interrupted"
    assert caller.ask(0.1) == "Interrupted"
    vsp.behaviour = None
    assert caller.ask() == "right"
    assert vsp.in_flight
    caller.device.close()


def test_examples_of_the_documentation(lab: Lab, node: str, store: MemoryBackend) -> None:
    for code in examples("client.md", "Device()", "azure.storage"):
        lab.work.run_example(code.replace("Device()", f"Device({node!r})"))
    assert list(store.blobs) == ["/container/greeting"]
