# SPDX-License-Identifier: GPL-2.0-only
"""Copying between this process's input and output and a guest's console, and how it ends."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyharness.machine.terminal import Terminal

LONG_S = 600.0
"""Longer than any test may take: a copy with this must end by itself."""

pytestmark = pytest.mark.timeout(60)


class Joined:
    """A terminal that copies between pipes and a console, with the other ends of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stdin, self.keyboard = os.pipe()
        self.screen, stdout = os.pipe()
        self.files = [os.fdopen(stdin), os.fdopen(stdout, "w")]
        self.console, self.guest = socket.socketpair()
        self._monkeypatch = monkeypatch

    def copy(self, seconds: float) -> None:
        """Copy as an interactive shell does. pytest has its own idea of stdin and stdout until the test has begun."""
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", self.files[0])
            patch.setattr(sys, "stdout", self.files[1])
            Terminal(self.console, (24, 80), "linux").copy(seconds)

    def close(self) -> None:
        for file in self.files:
            file.close()
        self.guest.close()
        self.console.close()
        os.close(self.screen)
        os.close(self.keyboard)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    joined = Joined(monkeypatch)
    yield joined
    joined.close()


def test_both_directions(joined: Joined) -> None:
    os.write(joined.keyboard, b"typed")
    joined.guest.sendall(b"shown")
    joined.copy(0)
    assert joined.guest.recv(100) == b"typed"
    assert os.read(joined.screen, 100) == b"shown"


def test_input_that_ends_is_asked_once(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[bytes] = []
    read = os.read

    def count(fd: int, size: int) -> bytes:
        reads.append(data := read(fd, size))
        return data

    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), joined.files[0].fileno())
    joined.guest.sendall(b"shown")
    monkeypatch.setattr(os, "read", count)
    joined.copy(0.1)
    assert reads == [b""]
    assert read(joined.screen, 100) == b"shown"


def test_a_console_that_is_closed_ends_the_copy(joined: Joined) -> None:
    joined.guest.sendall(b"last words")
    joined.guest.shutdown(socket.SHUT_WR)
    joined.copy(LONG_S)
    assert os.read(joined.screen, 100) == b"last words"


def test_a_console_that_is_reset_ends_the_copy(joined: Joined) -> None:
    joined.console.sendall(b"never read")
    joined.guest.close()
    joined.copy(LONG_S)


def test_typing_into_a_console_that_is_gone_ends_the_copy(joined: Joined) -> None:
    joined.guest.shutdown(socket.SHUT_RD)
    os.write(joined.keyboard, b"typed")
    joined.copy(LONG_S)
