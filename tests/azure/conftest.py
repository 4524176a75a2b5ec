# SPDX-License-Identifier: GPL-2.0-only
"""A guest with Azure's SDK, whose devices lead to Azurite."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.guestsdk import GUEST_DIRECTORY, ensure_guest_sdk
from pyharness.artifacts.prepare import Prepared
from pyharness.azurite import ACCOUNT, KEY, Azurite
from pyharness.machine.config import BlobDevice, MachineConfig
from pyharness.progress import Progress
from pyharness.rig import INSTANCE, Rig, rig_on
from pyharness.vsp.backends.http import WORKERS, HttpBackend
from tests.unpacked import unpack

SECOND = uuid.UUID("0c9d2a6e-2f3b-4f8e-9a53-6d5f5b1e0a02")
_TESTS = "/run/pyharness-tests"
_SENT = ("__init__.py", "azure/__init__.py", "azure/scenario.py", "azure/guest.py")
# Ends only a wait that would last for ever.
PATIENCE_S = 600.0


@dataclass
class AzureGuest:
    """Its first device is served by the rig's VSP, the second by whoever attaches."""

    rig: Rig
    azurite: Azurite
    work: Any
    """Proxy of tests/azure/guest.py as imported in the guest."""

    @property
    def where(self) -> tuple[str, str, str]:
        """URL, account and key, for functions of the guest."""
        return self.azurite.account_url, ACCOUNT, KEY

    def call(self, function: Any, *args: Any) -> Any:
        """Call a function of the guest that may take long and returns JSON."""
        return json.loads(self.rig.machine.guest.spawn(function, *args).result(PATIENCE_S))


@pytest.fixture(scope="session")
def azure_guest(config: MachineConfig, prepared: Prepared, azurite: Azurite) -> Iterator[AzureGuest]:
    """One for all tests on a kernel; at its end the judge must find nothing left behind."""
    cache = Cache.open()
    sdk = ensure_guest_sdk(cache, Progress())
    config = replace(config, blob_devices=(BlobDevice(INSTANCE), BlobDevice(SECOND)))
    with (
        HttpBackend(azurite.endpoint) as backend,
        rig_on(config, prepared, Progress(), backend, workers=WORKERS) as rig,
    ):
        guest = rig.machine.guest
        guest.set_clock()
        unpack(guest, sdk, GUEST_DIRECTORY)
        tests = Path(__file__).parent.parent
        for name in _SENT:
            guest.push(tests / name, f"{_TESTS}/tests/{name}")
        path = guest.module("sys").path
        path.insert(0, _TESTS)
        path.insert(0, GUEST_DIRECTORY)
        guest.spawn(guest.module("importlib").import_module, "tests.azure.guest").result(PATIENCE_S)
        yield AzureGuest(rig, azurite, guest.module("tests.azure.guest"))
        rig.unload()
        rig.judge.verdict()
        rig.judge.finish()
    cache.close()
