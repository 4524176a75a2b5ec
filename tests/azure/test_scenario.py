# SPDX-License-Identifier: GPL-2.0-only
"""The SDK scenario over the transport equals the same over plain HTTP; what `memory` serves of it equals that too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobServiceClient

from pyharness.azurite import Azurite
from pyharness.client.azure import AzureBlobDeviceTransport
from pyharness.vsp.backends.http import HttpBackend
from pyharness.vsp.backends.memory import MemoryBackend
from tests.azure import scenario
from tests.azure.peer import served_by
from tests.azure.scenario import OF_MEMORY, STEPS, Outcome


def client(azurite: Azurite, **options: Any) -> BlobServiceClient:
    """No retries: each attempt counts."""
    return BlobServiceClient(azurite.account_url, credential=azurite.credential, retry_total=0, **options)


@pytest.fixture(scope="module")
def over_http(azurite: Azurite) -> list[Outcome]:
    return scenario.run(partial(client, azurite), "over-http")


def assert_equal(left: Sequence[Outcome], right: Sequence[Outcome]) -> None:
    """Step by step, so that a difference is told by the first step that has one."""
    assert [outcome.name for outcome in left] == [outcome.name for outcome in right]
    for one, other in zip(left, right, strict=True):
        assert one.value == other.value, one.name
        assert one.exchanges == other.exchanges, one.name


def test_every_step_works_over_http(over_http: list[Outcome]) -> None:
    assert len(over_http) == len(STEPS)
    assert not [outcome for outcome in over_http if outcome.value.startswith("failed:") or not outcome.exchanges]


def test_transport_does_what_http_does(azurite: Azurite, over_http: list[Outcome], tmp_path: Path) -> None:
    with HttpBackend(azurite.endpoint) as backend, served_by(backend, tmp_path) as (device, server):
        transport = AzureBlobDeviceTransport(device)
        over_device = scenario.run(partial(client, azurite, transport=transport), "over-device")
        assert_equal(over_http, over_device)
        assert server.counters.requests >= sum(len(outcome.exchanges) for outcome in over_device)
        assert server.counters.errors == 0


def test_memory_does_what_it_covers(azurite: Azurite, over_http: list[Outcome], tmp_path: Path) -> None:
    with served_by(MemoryBackend(), tmp_path) as (device, _):
        transport = AzureBlobDeviceTransport(device)
        make = partial(client, azurite, transport=transport)
        of_memory = scenario.run(make, "in-memory", OF_MEMORY, with_container=False)
    expected = [outcome for outcome in over_http if outcome.name in OF_MEMORY]
    assert [(outcome.name, outcome.value) for outcome in of_memory] == [
        (outcome.name, outcome.value) for outcome in expected
    ]
    # Its heads have fewer headers, but the same statuses.
    assert [[exchange[:2] for exchange in outcome.exchanges] for outcome in of_memory] == [
        [exchange[:2] for exchange in outcome.exchanges] for outcome in expected
    ]
