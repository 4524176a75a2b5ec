# SPDX-License-Identifier: GPL-2.0-only
"""The ioctl fuzzer's programs: what is made of them for the guest, and as text."""

from __future__ import annotations

import ctypes
from random import Random

import pytest

from pyharness.client.abi import AZURE_BLOB_IOCTL, MAX_PAGES, AzBlobRequestSync
from pyharness.fuzz.program import KINDS, Program, Step, compiled, from_json, make_step, mutate, to_json
from pyharness.guest.fuzz import PAGE, PLACES, STEPS, VERDICTS, Executor


def some_programs(seed: int, count: int) -> list[Program]:
    rng = Random(seed)
    programs: list[Program] = [(Step.of("ioctl"),)]
    for _ in range(count):
        programs.append(mutate(rng, rng.choice(programs), rng.choice(programs)))
    return programs


def test_the_guest_knows_each_kind_of_step() -> None:
    assert KINDS.keys() == set(STEPS)
    assert all(callable(getattr(Executor, f"_{name}")) for name in STEPS)


def test_every_kind_of_step_is_made() -> None:
    rng = Random(1)
    assert {make_step(rng).kind for _ in range(20_000)} == KINDS.keys()


def test_the_same_seed_makes_the_same_programs() -> None:
    assert some_programs(2, 500) == some_programs(2, 500)
    assert some_programs(2, 500) != some_programs(3, 500)


def test_programs_are_the_same_when_read_back() -> None:
    programs = some_programs(4, 500)
    assert from_json(to_json(programs)) == tuple(programs)


@pytest.mark.parametrize(
    "text",
    ["", "[", "1", "[[1]]", '[[["ioctl"], 5]]', '[[["no such step"]]]', '[[["ioctl", {"no such argument": 1}]]]'],
)
def test_what_is_no_program_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        from_json(text)


def test_the_fuzzer_writes_only_where_it_may() -> None:
    """A write elsewhere would end the agent in the guest."""
    writable = [place for name, place in PLACES.items() if place.writable or name == "var"]
    writes = 0
    for program in some_programs(5, 3000):
        for name, *arguments in compiled(program):
            at, data = (arguments[3], arguments[4]) if name == "ioctl" else arguments if name == "fill" else (0, b"")
            if data:
                writes += 1
                assert any(
                    place.address <= at and at + len(data) <= place.address + place.pages * PAGE for place in writable
                )
    assert writes > 1000


def test_the_struct_is_that_of_the_header() -> None:
    step = Step.of(
        "ioctl", timeout=1, request_len=2, response_len=3, data_len=5, data_valid=4, request=("ro", 6), data=("null", 7)
    )
    ((_, _, _, command, at, fields, verdict),) = compiled((step,))
    sync = AzBlobRequestSync.from_buffer_copy(fields)
    assert (command, at, verdict) == (AZURE_BLOB_IOCTL, PLACES["rw"].address, "valid")
    assert ctypes.sizeof(sync) == len(fields)
    assert (sync.timeout, sync.request_len, sync.response_len, sync.data_len, sync.data_valid, sync.pad) == (
        *(1, 2, 3, 5, 4),
        0,
    )
    assert sync.request_buffer == PLACES["ro"].address + 6
    assert sync.response_buffer == PLACES["rw"].address + 2 * PAGE
    assert sync.data_buffer == 7


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        ("valid", {}),
        ("valid", {"gate": 32}),
        ("valid", {"data_len": (MAX_PAGES - 2) * PAGE}),
        ("valid", {"data": ("kernel", 0), "data_len": 1}),
        ("invalid", {"pad": 1}),
        ("invalid", {"request_len": 0}),
        ("invalid", {"response_len": 0}),
        ("invalid", {"data_valid": 1}),
        ("invalid", {"data_len": (MAX_PAGES - 2) * PAGE + 1}),
        ("invalid", {"data": ("big", 1), "data_len": (MAX_PAGES - 2) * PAGE}),
        ("invalid", {"response_len": 0xFFFFFFFF}),
        ("valid", {"command": AZURE_BLOB_IOCTL | 1 << 32}),
        ("other", {"command": 0}),
        ("unknown", {"at": ("ro", 0)}),
        ("unknown", {"at": ("null", 0)}),
        ("unknown", {"at": ("var", 0)}),
        ("unknown", {"at": ("rw", 16 * PAGE - 71)}),
    ],
)
def test_what_the_contract_says_of_a_struct(expected: str, arguments: dict[str, object]) -> None:
    ((*_, verdict),) = compiled((Step.of("ioctl", **arguments),))
    assert verdict == expected
    assert verdict in VERDICTS


def test_nothing_is_said_of_a_struct_that_a_thread_changes() -> None:
    *_, last = compiled((Step.of("thread"), Step.of("ioctl", pad=1), Step.of("ioctl")))
    assert last[-1] == "unknown"


def test_simpler_steps_end_at_the_simplest() -> None:
    step = Step.of("ioctl", pad=1, at=("none", 5))
    assert sorted(other.named["pad"] for other in step.simpler()) == [0, 1]
    while simpler := step.simpler():
        step = simpler[0]
    assert step == Step.of("ioctl")
