# SPDX-License-Identifier: GPL-2.0-only
"""The SDK in the guest, over the driver, to Azurite; and what becomes of its users when a part of the way dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from azure.storage.blob import ContainerClient

from pyharness import repository
from tests.azure import scenario
from tests.azure.conftest import PATIENCE_S, AzureGuest
from tests.azure.scenario import STEPS, Outcome
from tests.azure.test_scenario import assert_equal, client
from tests.examples import examples

CLIENTS = 6
TIMEOUT_S = 20.0
SERVE = """
import signal, sys
from pyharness.vsp.backends.http import WORKERS, HttpBackend
from pyharness.vsp.server import VspServer
with HttpBackend(sys.argv[2]) as backend, VspServer(sys.argv[1], backend, workers=WORKERS):
    print("attached", flush=True)
    signal.pause()
"""


def test_the_driver_does_what_http_does(azure_guest: AzureGuest) -> None:
    told = azure_guest.call(azure_guest.work.run_scenario, azure_guest.rig.node, *azure_guest.where, "")
    over_http = scenario.run(partial(client, azure_guest.azurite), "over-http")
    over_driver = [
        Outcome(
            one["name"],
            one["value"],
            [(what, status, tuple(map(tuple, fields))) for what, status, fields in one["exchanges"]],
        )
        for one in told
    ]
    assert len(over_driver) == len(STEPS)
    assert_equal(over_http, over_driver)


def test_example_of_the_documentation(azure_guest: AzureGuest) -> None:
    (code,) = examples("client.md", "azure.storage")
    assert azure_guest.call(azure_guest.work.run_example, code, *azure_guest.where)


# -- the way breaks


def until(crowd: Any, mark: Any, what: str, each: Callable[[list[str]], bool]) -> list[list[str]]:
    """Wait until it is so for each client; returns what became of their requests since the mark."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        said = [list(one) for one in json.loads(crowd.since(mark))]
        if all(each(one) for one in said):
            return said
        assert time.monotonic() < deadline, f"waited in vain for {what}: {said}"
        time.sleep(0.1)


def works(said: list[str]) -> bool:
    return said.count("done") >= 2


def fails(said: list[str]) -> bool:
    return any(one != "done" for one in said)


def of_the_way(said: list[list[str]]) -> set[str]:
    """What has been raised."""
    return {one for each in said for one in each} - {"done"}


@pytest.fixture
def crowd(azure_guest: AzureGuest, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Clients at work; the parameter is the device's number."""
    container(azure_guest)
    node = azure_guest.rig.node + getattr(request, "param", "")
    crowd = azure_guest.work.Crowd(node, *azure_guest.where, CLIENTS, TIMEOUT_S)
    yield crowd
    assert azure_guest.rig.machine.guest.spawn(crowd.stop).result(PATIENCE_S)


def container(azure_guest: AzureGuest) -> None:
    """Azurite forgets what it was told in its last seconds before it was killed."""
    with ContainerClient(azure_guest.azurite.account_url, "crowd", azure_guest.azurite.credential) as container:
        if not container.exists():
            container.create_container()


def test_azurite_dies(azure_guest: AzureGuest, crowd: Any) -> None:
    until(crowd, crowd.mark(), "the start", works)
    mark = crowd.mark()
    azure_guest.azurite.kill()
    raised = of_the_way(until(crowd, mark, "errors", fails))
    assert raised <= {"ServiceRequestError", "ServiceResponseError", "HttpResponseError"}, raised
    assert crowd.longest() < TIMEOUT_S
    azure_guest.azurite.start()
    container(azure_guest)
    until(crowd, crowd.mark(), "the return", works)


def test_azurite_hangs(azure_guest: AzureGuest, crowd: Any) -> None:
    until(crowd, crowd.mark(), "the start", works)
    mark = crowd.mark()
    pid = azure_guest.azurite.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        raised = of_the_way(until(crowd, mark, "errors", fails))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert raised <= {"ServiceResponseTimeoutError", "HttpResponseError"}, raised
    assert crowd.longest() < 2 * TIMEOUT_S
    until(crowd, crowd.mark(), "the return", works)


def serve(azure_guest: AzureGuest) -> subprocess.Popen[str]:
    """A VSP in a process of its own, for the second device."""
    socket = str(azure_guest.rig.machine.vsp_socket(1))
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-c", SERVE, socket, azure_guest.azurite.endpoint],
        cwd=repository.ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "attached\n"
    return process


@pytest.fixture
def second(azure_guest: AzureGuest) -> Iterator[list[subprocess.Popen[str]]]:
    """The VSP of the second device, the last of the list being the one that serves it."""
    processes = [serve(azure_guest)]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("crowd", ["1"], indirect=True)
def test_vsp_is_killed(second: list[subprocess.Popen[str]], azure_guest: AzureGuest, crowd: Any) -> None:
    until(crowd, crowd.mark(), "the start", works)
    mark = crowd.mark()
    second[-1].kill()
    raised = of_the_way(until(crowd, mark, "errors", fails))
    assert raised <= {"ServiceResponseError", "HttpResponseError"}, raised
    assert crowd.longest() < TIMEOUT_S
    second.append(serve(azure_guest))
    until(crowd, crowd.mark(), "the return", works)
