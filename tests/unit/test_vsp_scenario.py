# SPDX-License-Identifier: GPL-2.0-only
"""Scenario files: what they come to, and what is said of a wrong one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from pyharness import cli, repository
from pyharness.errors import Exit, UsageError
from pyharness.machine.vmbus import MessageType, VmbusDevice
from pyharness.vsp.behaviours import BEHAVIOURS, CONDITIONS
from pyharness.vsp.parameters import Parameter, Signature
from pyharness.vsp.scenario import CHOICES, HONEST, MESSAGES, REFUSABLE, Scenario
from pyharness.vsp.server import VspServer
from pyharness.vsp.wire import Status
from tests.unit.test_vsp_behaviours import errors, post
from tests.unit.test_vsp_server import Echo
from tests.unit.vsp_peer import PAGE, DevicePeer

EXAMPLES = sorted((repository.ROOT / "docs/scenarios").glob("*.toml"))
DOCUMENT = repository.ROOT / "docs/behaviours.md"


def load(tmp_path: Path, text: str) -> Scenario:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    return Scenario.load(path)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[DevicePeer]:
    with DevicePeer(tmp_path / "vsp.sock") as device:
        yield device


@pytest.fixture
def vsp(peer: DevicePeer) -> Iterator[VspServer]:
    server = VspServer(peer.path, Echo(), attach_timeout_s=20)
    server.start()
    peer.serve()
    server.wait_attached()
    yield server
    server.close()


# -- what they come to


def test_an_empty_file_is_an_honest_host(tmp_path: Path) -> None:
    assert load(tmp_path, "") == HONEST


FAIL = '[[behaviour]]\ndo = "fail"\n'
TIMEOUT = int(Status.IO_TIMEOUT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FAIL, [int(Status.INTERNAL_ERROR)] * 6),
        (FAIL + 'status = "IO_TIMEOUT"', [TIMEOUT] * 6),
        (FAIL + "status = 0x1234", [0x1234] * 6),
        (FAIL + "status = 1\nevery = 3", [0, 0, 1, 0, 0, 1]),
        (FAIL + "status = 1\nfirst = 2", [1, 1, 0, 0, 0, 0]),
        (FAIL + "status = 1\nnth = 2", [0, 1, 0, 0, 0, 0]),
        (FAIL + "status = 1\nafter = 4", [0, 0, 0, 0, 1, 1]),
        (FAIL + "status = 1\nafter = 2\nevery = 2", [0, 0, 0, 1, 0, 1]),
        (FAIL + "status = 1\nevery = 2\nfirst = 4", [0, 1, 0, 1, 0, 0]),
        (FAIL + f"status = 1\nlarger = {PAGE}", [0] * 6),
        (FAIL + f"status = 1\nlarger = {PAGE - 1}", [1] * 6),
        (FAIL + "status = 1\nchance = 1.0", [1] * 6),
        (FAIL + "status = 1\nchance = { probability = 0.0, seed = 9 }", [0] * 6),
        (FAIL + "status = 1\nfirst = 1\n" + FAIL + "status = 2\nfirst = 1", [1, 2, 0, 0, 0, 0]),
        ('[[behaviour]]\ndo = "duplicate"\nbesides = true\n' + FAIL + "status = 3", [3] * 6),
        ('[[behaviour]]\ndo = "delay"\nseconds = 0\n', [0] * 6),
    ],
)
def test_behaviours(tmp_path: Path, peer: DevicePeer, vsp: VspServer, text: str, expected: list[int]) -> None:
    with vsp.behaving(*load(tmp_path, text).behaviours):
        assert [errors(post(peer, 1))[0] for _ in expected] == expected


def value_of(parameter: Parameter) -> str:
    """Any value that the parameter may have, in TOML."""
    if parameter.choices:
        return f'"{parameter.choices[0]}"'
    if parameter.within is None:
        return '"text"' if parameter.kind is str else "true"
    return str(parameter.within.least)


@pytest.mark.parametrize("name", CHOICES)
def test_every_behaviour_can_be_named_with_all_its_parameters(tmp_path: Path, name: str) -> None:
    parameters = [f"{key} = {value_of(parameter)}" for key, parameter in CHOICES[name].signature.parameters.items()]
    conditions = [f"{key} = 1" for key in CONDITIONS]
    text = "\n".join(["[[behaviour]]", f'do = "{name}"', *parameters, *conditions, "besides = true"])
    (behaviour,) = load(tmp_path, text).behaviours
    assert behaviour.name == next(iter(CONDITIONS))


def test_no_name_means_two_things() -> None:
    for maker in BEHAVIOURS.values():
        assert not {*maker.signature.parameters} & {*CONDITIONS, "do", "besides"}


def test_the_rest_of_a_file(tmp_path: Path) -> None:
    text = 'summary = "s"\ntolerate = ["a", "b"]\n[device]\nignore = ["gpadl"]\nrefuse = ["open"]\n'
    scenario = load(tmp_path, text)
    assert scenario == Scenario("s", (), ("a", "b"), ("gpadl",), ("open",))

    class Device:
        def __init__(self) -> None:
            self.told: list[tuple[str, Sequence[MessageType]]] = []

        def ignore(self, *messages: MessageType) -> None:
            self.told.append(("ignore", messages))

        def refuse(self, *messages: MessageType) -> None:
            self.told.append(("refuse", messages))

    device = Device()
    scenario.prepare(cast(VmbusDevice, device))
    assert device.told == [("ignore", (MessageType.GPADL_HEADER,)), ("refuse", (MessageType.OPENCHANNEL,))]
    honest = Device()
    HONEST.prepare(cast(VmbusDevice, honest))
    assert honest.told == [], "a device that nobody speaks of is not touched"


def test_the_machine_knows_the_messages() -> None:
    assert {*MESSAGES.values()} == {*MessageType}
    assert {*REFUSABLE} < {*MESSAGES}


# -- wrong files


@pytest.mark.parametrize(
    ("text", "key", "allowed"),
    [
        ("behaviours = []", "behaviours: there is no such key", "summary, tolerate, behaviour, device"),
        ("summary = 1", "summary: 1 cannot be", "a string"),
        ('tolerate = "x"', "tolerate: 'x' cannot be", "a list of strings"),
        ('tolerate = [""]', "tolerate: [''] cannot be", "not empty"),
        ("behaviour = 3", "behaviour: 3 cannot be", "[[behaviour]]"),
        ('[behaviour]\ndo = "fail"', "behaviour: {'do': 'fail'} cannot be", "[[behaviour]]"),
        ("device = []", "device: [] cannot be", "[device]"),
        ("[device]\nbreak = []", "device.break: there is no such key", "ignore, refuse"),
        ('[device]\nrefuse = ["close"]', "device.refuse: ['close'] cannot be", "open, gpadl"),
        (
            '[device]\nignore = "open"',
            "device.ignore: 'open' cannot be",
            "open, close, gpadl, gpadl_teardown, released",
        ),
        ("[[behaviour]]\nevery = 3", "behaviour[1].do: it is missing", "serve, fail, drop"),
        ('[[behaviour]]\ndo = "explode"', "behaviour[1].do: there is no behaviour 'explode'", "serve, fail, drop"),
        ('[[behaviour]]\ndo = "hold"', "behaviour[1].do: there is no behaviour 'hold'", "serve, fail, drop"),
        ("[[behaviour]]\ndo = []", "behaviour[1].do: there is no behaviour []", "serve, fail, drop"),
        (
            FAIL + FAIL + "seconds = 3",
            "behaviour[2].seconds: fail has no such key",
            "do, status, text, besides, larger",
        ),
        (FAIL + 'status = "FINE"', "behaviour[1].status: 'FINE' cannot be", "or one of SUCCESS, ACCESS_VIOLATION"),
        (FAIL + "status = -1", "behaviour[1].status: -1 cannot be", "a whole number 0 to 0xffffffff"),
        (FAIL + "status = 1.0", "behaviour[1].status: 1.0 cannot be", "a whole number"),
        (FAIL + "status = true", "behaviour[1].status: True cannot be", "a whole number"),
        (FAIL + "text = 1", "behaviour[1].text: 1 cannot be", "a string"),
        (FAIL + "besides = 1", "behaviour[1].besides: 1 cannot be", "true or false"),
        (FAIL + "every = 0", "behaviour[1].every.n: 0 cannot be", "a whole number 1 to"),
        (FAIL + 'every = "3"', "behaviour[1].every.n: '3' cannot be", "a whole number 1 to"),
        (FAIL + "chance = 2", "behaviour[1].chance.probability: 2 cannot be", "a number 0 to 1"),
        (FAIL + "chance = nan", "behaviour[1].chance.probability: nan cannot be", "a number 0 to 1"),
        (FAIL + "chance = { seed = 1 }", "behaviour[1].chance.probability: it is missing", "a number 0 to 1"),
        (
            FAIL + "chance = { probability = 1, sed = 1 }",
            "behaviour[1].chance.sed: there is no such parameter",
            "probability, seed",
        ),
        ('[[behaviour]]\ndo = "delay"', "behaviour[1].seconds: it is missing", "a number 0 to 3600"),
        ('[[behaviour]]\ndo = "delay"\nseconds = inf', "behaviour[1].seconds: inf cannot be", "a number 0 to 3600"),
        (
            '[[behaviour]]\ndo = "reorder"\ncount = 2\norder = "up"',
            "behaviour[1].order: 'up' cannot be",
            "one of reversed, shuffled, same",
        ),
    ],
)
def test_wrong_keys_and_values(tmp_path: Path, text: str, key: str, allowed: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    assert caught.value.message == f"{tmp_path / 'scenario.toml'}: {key}"
    assert caught.value.mend.startswith("allowed: ")
    assert allowed in caught.value.mend
    assert "\n" not in caught.value.message + caught.value.mend


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read {}: no such file or directory"),
        (b"this is no TOML", "{} is not TOML: Expected '='"),
        (b"summary = '\xff'", "{} is not TOML: 'utf-8'"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "scenario.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        Scenario.load(path)
    assert caught.value.message.startswith(reason.format(path))
    assert caught.value.mend


@pytest.mark.parametrize("command", ["run", "shell"])
def test_commands_look_at_the_file_first(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyharness.commands.shell.require_terminal", lambda: None)
    assert cli.main([command, "--scenario", str(tmp_path)]) == Exit.USAGE
    assert (
        capsys.readouterr().err == f"pyharness: cannot read {tmp_path}: is a directory\n  mend: name a scenario file\n"
    )


# -- what the documents say


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_right(path: Path) -> None:
    scenario = Scenario.load(path)
    assert scenario.summary
    assert scenario.behaviours or scenario.ignore or scenario.refuse


def test_the_document_lists_all_with_their_parameters() -> None:
    tables = DOCUMENT.read_text().partition("## What is not in the tables")[0]
    rows = [line.split("|")[1].strip() for line in tables.splitlines() if line.startswith("| `")]
    signatures = {name: maker.signature for name, maker in BEHAVIOURS.items()}
    signatures |= {name: Signature(condition) for name, condition in CONDITIONS.items()}
    for name, signature in signatures.items():
        (row,) = (row for row in rows if row.startswith(f"`{name}("))
        words = row.removeprefix(f"`{name}(").removesuffix(")`").replace("...", "").split(", ")
        assert {word.partition("=")[0] for word in words if word} == {*signature.parameters}, row
    assert len(rows) == len(signatures) + 1, "where() has no signature"


def test_the_scenario_of_the_document_is_right(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    scenario = load(tmp_path, text)
    assert len(scenario.behaviours) == 2 and scenario.tolerate and scenario.refuse and scenario.ignore
