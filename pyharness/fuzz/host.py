# SPDX-License-Identifier: GPL-2.0-only
"""The host fuzzer: scripts of a hostile host, made and made smaller by hypothesis, against a guest under load.

Each request of the guest must return once, with the right data, a status that the host sent for it, or an errno that
the host provoked; the guest must be as it was after that, and the device must work.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import queue
import struct
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Self

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from pyharness.errors import CheckFailed, HarnessError, UsageError
from pyharness.fuzz.hostile import ACTIONS, RARE, Host, Operation, Script
from pyharness.fuzz.ioctl import StartRig
from pyharness.guest.load import Outcome
from pyharness.rig import INSTANCE, Rig

TOLERATED = (
    "ignored the completion of unknown request",
    "ignored a packet of type",
    "malformed completion of request",
    "callbacks suppressed",
    # It was taken away again while the guest's driver was being told of it.
    "hv_vmbus: probe failed for device",
    "ring indices out of range",
)
"""What the driver may say of such a host."""

PROCESSES = 6
_MOST_ACTIONS = 60
_COMMON = tuple(name for name in ACTIONS if name not in RARE)
# A script has one of those that take long in about two cases of three.
_COMMON_WEIGHT = 20
_EXAMPLES = 1000
_PLAYS_OF_A_VERDICT = 50
_PLAY_TIMEOUT_S = 110.0
# The guest drops what is left over between two rounds, so that the second is the last, most of the time.
_MOST_ROUNDS = 50
# Nothing else has come for that long: what is held is answered.
_IDLE_S = 0.03

SCRIPTS = st.lists(
    st.tuples(st.sampled_from(_COMMON * _COMMON_WEIGHT + RARE), st.integers(0, 2**32 - 1)),
    min_size=1,
    max_size=_MOST_ACTIONS,
)


@dataclass
class Progressed:
    """What the fuzzer has done so far."""

    seconds: float = 0.0
    executions: int = 0
    """Packets that the host sent."""
    requests: int = 0
    """Requests of the guest that came to an end."""
    scripts: int = 0

    @property
    def rate(self) -> float:
        """Executions per second."""
        return self.executions / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return (
            f"{self.executions:,} packets of the host in {self.seconds:.0f} s, {self.rate:.0f}/s, "
            f"{self.requests:,} requests, {self.scripts:,} scripts"
        )


class Found(Exception):
    """A script that the kernel, the judge or the guest's processes complained of."""

    def __init__(self, error: HarnessError, script: Script) -> None:
        super().__init__(str(error))
        self.error = error
        self.script = tuple(script)


def to_json(script: Script) -> str:
    """A line for each action."""
    return "[\n" + ",\n".join(f"  {json.dumps(list(action))}" for action in script) + "\n]\n"


def from_json(text: str) -> Script:
    """Raises ValueError for what is no script."""
    try:
        script = tuple((str(name), int(number)) for name, number in json.loads(text))
    except TypeError as error:
        raise ValueError(f"not a script: {error}") from error
    if unknown := {name for name, _ in script} - ACTIONS.keys():
        raise ValueError(f"there is no action {sorted(unknown)[0]!r}")
    return script


def read_script(path: Path) -> Script:
    """The script of a file. Raises UsageError."""
    try:
        return from_json(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read a script from {path}: {error}", mend="name a file of build/fuzz/host") from error


def name_of(script: Script) -> str:
    """A name that tells this script from others."""
    return hashlib.sha256(to_json(script).encode()).hexdigest()[:12]


class Theatre:
    """A guest under load, in which scripts are played."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._guest = rig.machine.guest
        self._load: Any = self._guest.module("pyharness.guest.load").Load(str(INSTANCE), PROCESSES)
        self._device = rig.machine.blob_device(0)
        self._statuses = count(1)
        self._serial = 1
        self._plays = 0
        self._pool = ThreadPoolExecutor(1, "load")
        rig.judge.begin("the fuzzing")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False)  # it may wait for a guest that is to end now

    def finish(self) -> None:
        """End the processes. Raises what is wrong with them or the guest, leaks too."""
        self.verdict()
        self._load.close()
        self._rig.judge.finish()

    def play(self, script: Script) -> tuple[int, int]:
        """Play it; returns how many packets were sent and how many requests came to an end. Raises what is wrong."""
        host = Host(self._rig.vsp, deque(script), statuses=self._statuses)
        requests, ended = -(-len(script) // PROCESSES) + 1, 0
        for _ in range(_MOST_ROUNDS):
            departures = host.departures
            outcomes, serials = self._run(host, requests)
            ended += len(outcomes)
            if fault := host.fault(outcomes, serials):
                raise CheckFailed(fault, detail="\n".join(map(str, self._guest.dmesg()[-20:])))
            # Once more when the device went, for those processes that have not noticed.
            if host.settled(outcomes) and host.departures == departures:
                break
            requests = 1
            host.script.clear()
        else:
            raise CheckFailed(f"in {_MOST_ROUNDS} rounds of honest answers the last one has not been got by anybody")
        if self._rig.vsp.errors:
            error = self._rig.vsp.errors[0]
            raise HarnessError(f"the host's script failed: {error.error}", detail=error.traceback)
        self._rig.judge.glance(TOLERATED)
        self._plays += 1
        if self._plays % _PLAYS_OF_A_VERDICT == 0:
            self.verdict()
        return host.packets, ended

    def verdict(self) -> None:
        """Raise what is wrong with the guest."""
        self._rig.judge.verdict(TOLERATED)
        self._rig.judge.begin("the fuzzing")

    def _run(self, host: Host, requests: int) -> tuple[list[Outcome], range]:
        """Let each process make so many requests."""
        serials = range(self._serial, self._serial + requests * PROCESSES)
        self._serial = serials.stop
        self._rig.vsp.behaviour = host.act
        task = self._guest.spawn(self._load.run, serials.start, requests)
        done = self._pool.submit(task.result, _PLAY_TIMEOUT_S)
        done.add_done_callback(lambda _: host.operations.put(None))
        while True:
            try:
                operation = host.operations.get(timeout=_IDLE_S)
            except queue.Empty:
                host.release()
                continue
            if operation is None:
                break
            OPERATIONS[operation.name](self, host, operation)
        if host.killed:
            self._load.replace_killed()
        return [Outcome(*row) for row in pickle.loads(done.result())], serials

    # -- what actions have the operator do

    def _kill(self, host: Host, operation: Operation) -> None:
        host.killed = True
        self._load.kill(operation.number % PROCESSES)

    def _disconnect(self, host: Host, operation: Operation) -> None:
        host.disconnected = True
        host.forget()
        self._rig.vsp.reconnect()
        host.forget()

    def _unplug(self, host: Host, operation: Operation) -> None:
        host.departures += 1
        host.disconnected = True
        host.forget()
        self._device.unplug()
        self._device.plug()
        self._rig.vsp.reconnect()
        self._rig.vsp.wait_channel()
        host.forget()

    def _signal(self, host: Host, operation: Operation) -> None:
        self._device.signal()

    def _spoil(self, host: Host, operation: Operation) -> None:
        """A word in a ring's header, and then another device: nobody could go on with that ring."""
        host.spoilt = True
        host.forget()
        word, value = divmod(operation.number, len(_SPOILT_VALUES))
        ring, name = _SPOILT_WORDS[word % len(_SPOILT_WORDS)]
        setattr(getattr(self._device, ring), name, _SPOILT_VALUES[value])
        self._device.signal()
        self._unplug(host, operation)

    def _raw(self, host: Host, operation: Operation) -> None:
        """Packets whose descriptors lie, and then another device: VMBus may have lost its place in the ring."""
        host.spoilt = True
        host.forget()
        rng = Random(operation.number)
        for _ in range(rng.randrange(1, 8)):
            size = rng.choice((0, 8, 16, 24, 32, 4096 - 8))
            words = (rng.choice((0, 1, 2, 3, 4, 5, 511, 512, 513, 0x7FFF, 0xFFFF)) for _ in range(2))
            descriptor = struct.pack("<HHHHQ", rng.choice((6, 9, 11)), *words, rng.randrange(2), rng.randrange(8))
            self._rig.vsp.send_raw(descriptor + rng.randbytes(max(0, size - len(descriptor))))
        self._device.signal()
        self._unplug(host, operation)


OPERATIONS: dict[str, Callable[[Theatre, Host, Operation], None]] = {
    "kill": Theatre._kill,
    "disconnect": Theatre._disconnect,
    "unplug": Theatre._unplug,
    "signal": Theatre._signal,
    "spoil": Theatre._spoil,
    "raw": Theatre._raw,
}

_SPOILT_WORDS = (
    ("inbound", "write_index"),
    ("outbound", "read_index"),
    ("inbound", "interrupt_mask"),
    ("outbound", "interrupt_mask"),
    ("inbound", "pending_send_size"),
    ("outbound", "feature_bits"),
)
_SPOILT_VALUES = (0, 8, 1 << 16, 0x1EFF8, 0x1F000, 0x20000, 0x80000000, 0xFFFFFFFF)


@dataclass
class Fuzzer:
    """Plays scripts in guests that are made anew whenever one has been spoilt."""

    start: StartRig
    seed: int

    def __post_init__(self) -> None:
        self.progressed = Progressed()
        self._stack = ExitStack()
        self._theatre: Theatre | None = None
        self._failed: Found | None = None

    def fuzz(self, enough: Callable[[Progressed], bool], tell: Callable[[Progressed], None] = lambda _: None) -> None:
        """Go on until there was `enough`; `tell` hears of each script. Raises Found, with the smallest script."""
        started = time.monotonic()

        def play(script: Script) -> None:
            if self._failed is None and enough(self.progressed):
                return
            self.play(script)
            self.progressed.seconds = time.monotonic() - started
            tell(self.progressed)

        try:
            for round_number in count():
                if enough(self.progressed):
                    return
                self._round(play, self.seed + round_number)
        except (HarnessError, Flaky) as error:
            if self._failed is None:
                raise
            raise self._failed from error

    def _round(self, play: Callable[[Script], None], seed: int) -> None:
        settings = hypothesis.settings(
            database=None,
            deadline=None,
            max_examples=_EXAMPLES,
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
            suppress_health_check=tuple(HealthCheck),
            verbosity=Verbosity.quiet,
        )
        hypothesis.seed(seed)(settings(hypothesis.given(SCRIPTS)(play)))()

    def play(self, script: Script) -> None:
        """Play one script. Raises what is wrong."""
        try:
            packets, requests = self._fit().play(script)
        except HarnessError as error:
            self.discard()
            if self._failed is None or len(script) <= len(self._failed.script):
                self._failed = Found(error, script)
            raise
        self.progressed.executions += packets
        self.progressed.requests += requests
        self.progressed.scripts += 1

    def finish(self) -> None:
        """End the guest. Raises what the judge has found out at last."""
        with self._stack:
            if self._theatre:
                theatre, self._theatre = self._theatre, None
                theatre.finish()

    def discard(self) -> None:
        """End the guest without a word."""
        self._theatre = None
        self._stack.close()

    def _fit(self) -> Theatre:
        if self._theatre is None:
            self._theatre = self._stack.enter_context(Theatre(self._stack.enter_context(self.start())))
        return self._theatre
