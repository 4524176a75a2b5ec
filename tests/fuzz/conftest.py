# SPDX-License-Identifier: GPL-2.0-only
"""Guests for the fuzzers, and what a test that a fuzzer has printed needs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

import pytest

from pyharness.artifacts.modules import Module, Modules
from pyharness.artifacts.prepare import Prepared
from pyharness.fuzz import host
from pyharness.fuzz.ioctl import DEVICES, HonestHost, StartRig, replaying
from pyharness.fuzz.program import from_json
from pyharness.machine.config import MachineConfig
from pyharness.progress import Progress
from pyharness.rig import rig_on

Replay = Callable[[str], None]
StartWith = Callable[[Module], StartRig]


@pytest.fixture
def start(config: MachineConfig, prepared: Prepared) -> StartRig:
    """Starts a guest for a fuzzer."""
    return partial(rig_on, replace(config, blob_devices=DEVICES), prepared, Progress(quiet=True), HonestHost())


@pytest.fixture
def start_with(config: MachineConfig, prepared: Prepared) -> StartWith:
    """As `start`, for another build of the driver."""

    def start(driver: Module) -> StartRig:
        built: Future[Modules] = Future()
        built.set_result(replace(prepared.modules, driver=driver))
        other = replace(prepared, building=built)
        return partial(rig_on, replace(config, blob_devices=DEVICES), other, Progress(quiet=True), HonestHost())

    return start


@pytest.fixture
def replay_programs(start: StartRig) -> Replay:
    """Carries out programs as `pyharness fuzz ioctl` printed them, in a guest of their own."""

    def replay(text: str) -> None:
        with replaying(start) as replayer:
            if found := replayer.failure(from_json(text)):
                raise found.error

    return replay


@pytest.fixture
def replay_script(start: StartRig) -> Replay:
    """Plays a script as `pyharness fuzz host` printed it, in a guest of its own."""

    def replay(text: str) -> None:
        fuzzer = host.Fuzzer(start, 0)
        try:
            fuzzer.play(host.from_json(text))
            fuzzer.finish()
        finally:
            fuzzer.discard()

    return replay
