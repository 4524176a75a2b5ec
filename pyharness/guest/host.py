# SPDX-License-Identifier: GPL-2.0-only
"""The host's side of the guest's agent."""

from __future__ import annotations

import io
import socket
import struct
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rpyc
from rpyc.core.channel import Channel
from rpyc.core.protocol import Connection
from rpyc.core.service import VoidService
from rpyc.core.stream import SocketStream

import pyharness
from pyharness.errors import HarnessError, TimedOut

_PACKAGES = ("guest", "client")
_GREETING = "pyharness-agent "
_MAX_HELLO = 256
_PIECE = 1 << 20
_SLICE_S = 0.02
_MODULES = "/run/modules"
_WARNING = 4

# Messages of level warning that every run of a module of our own brings, and one that a loaded host brings.
HARMLESS = (
    "loading out-of-tree module taints kernel",
    "module verification failed: signature and/or required key",
    "hrtimer: interrupt took",
)


Explain = Callable[[Exception], HarnessError]
"""Turns the failure of a connection (EOFError, OSError; TimeoutError for a call that hangs) into its cause."""


class Hello:
    """The line with which the guest says that it is ready for the agent's code."""

    def __init__(self, agent: socket.socket) -> None:
        self._agent = agent
        self._line = b""
        agent.setblocking(False)

    def poll(self) -> bool | None:
        """True once the line is there, None before."""
        with suppress(BlockingIOError):
            self._line += self._agent.recv(_MAX_HELLO)
        return self._line.endswith(b"\n") or len(self._line) > _MAX_HELLO or None

    def check(self) -> None:
        """Raise HarnessError when the guest's agent does not fit this host."""
        line = self._line.decode(errors="replace").strip()
        facts = dict(part.partition("=")[::2] for part in line.removeprefix(_GREETING).split())
        if not line.startswith(_GREETING) or facts.get("rpyc") != rpyc.__version__:
            raise HarnessError(
                f"the guest's agent does not fit rpyc {rpyc.__version__} of this host: it said {line[:80]!r}",
                mend="rebuild the root image: `pyharness clean --cache`, then `pyharness build`",
            )


class GuestConnection(Connection):  # type: ignore[misc]
    """An rpyc connection whose failures name their cause; one call at a time, from any thread."""

    explain: Explain

    def __init__(self, root: Any, channel: Any, config: dict[str, Any]) -> None:
        super().__init__(root, channel, config)
        self._one_call = threading.RLock()
        self._timed_out: HarnessError | None = None

    def sync_request(self, handler: int, *args: Any) -> Any:
        """Call into the guest. Raises what the guest raised, or why there is no guest any more.

        After a call that did not return in its time none is made: it would have to wait for that one.
        """
        with self._one_call:
            if self._timed_out:
                raise self._timed_out
            try:
                return super().sync_request(handler, *args)
            except Exception as error:
                trace = vars(error).pop("_remote_tb", None)
                if trace is not None:
                    _tidy(error)
                    error.add_note(f"in the guest:\n{trace}")
                    raise
                if isinstance(error, EOFError | OSError):
                    explained = self.explain(error)
                    if isinstance(error, TimeoutError):
                        self._timed_out = explained
                    raise explained from error
                raise

    def close(self) -> None:
        """Hang up without a word: a port does not tell when the other side has closed it, so no answer would come."""
        if not self.closed:
            self._cleanup()


def _tidy(error: Exception) -> None:
    """Undo what rpyc's copying does to an exception: strings in place of methods, and None for what it had not."""
    for name in [name for name in vars(error) if callable(getattr(type(error), name, None))]:
        delattr(error, name)
    if isinstance(error, OSError):
        for name in ("errno", "strerror", "filename", "filename2"):
            if getattr(error, name, None) is None:
                delattr(error, name)


class _HostService(VoidService):  # type: ignore[misc]
    _protocol = GuestConnection


@dataclass(frozen=True)
class KernelMessage:
    """A record of the kernel's log; `level` as in syslog (3 error, 4 warning), `seconds` since the guest's boot."""

    level: int
    seconds: float
    text: str

    def __str__(self) -> str:
        return f"[{self.seconds:12.6f}] {self.text}"

    @property
    def is_warning(self) -> bool:
        """Whether it is of level warning or worse, and not one of the harmless."""
        return self.level <= _WARNING and not any(harmless in self.text for harmless in HARMLESS)


@dataclass(frozen=True)
class Completed:
    """A program that has ended in the guest; `status` is negative for a signal."""

    status: int
    stdout: bytes
    stderr: bytes


class Task:
    """A call that runs on a thread of the guest."""

    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy

    @property
    def done(self) -> bool:
        """Whether the call has ended."""
        return bool(self._proxy.wait(0))

    def result(self, timeout_s: float) -> Any:
        """Wait for what the call returns, or raise what it raised. Raises TimedOut."""
        _wait(lambda seconds: self._proxy.wait(seconds), timeout_s, "a task in the guest to end")
        return self._proxy.result()


class UeventWatch:
    """All uevents of the guest from some moment on."""

    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy

    def wait(self, matches: Callable[[dict[str, str]], bool], timeout_s: float) -> dict[str, str]:
        """The first event, past or to come, that `matches`. Raises TimedOut."""
        checked = 0
        found: dict[str, str] = {}

        def look(seconds: float) -> bool:
            nonlocal checked, found
            events = [dict(event) for event in self._proxy.since(checked, seconds)]
            checked += len(events)
            found = next((event for event in events if matches(event)), {})
            return bool(found)

        _wait(look, timeout_s, "a uevent")
        return found


class Guest:
    """Python in the guest, and what is often needed of it.

    Whatever the guest raises is raised here; an OSError keeps its errno. When the guest crashes or QEMU dies, any call,
    one under way too, raises the GuestCrashed or HarnessError that says so. One call runs at a time: what
    blocks belongs into a `spawn`.
    """

    def __init__(self, agent: socket.socket, explain: Explain, call_timeout_s: float | None) -> None:
        """Send the agent's code over `agent` and connect. `explain` says why a call failed."""
        code = _pack_code()
        config = {
            "allow_public_attrs": True,
            # Of the guest's own exception classes those that this process knows; it imports none at its request.
            "import_custom_exceptions": False,
            "instantiate_custom_exceptions": True,
            "sync_request_timeout": call_timeout_s,
        }
        agent.setblocking(True)
        try:
            agent.sendall(struct.pack("<I", len(code)) + code)
        except OSError as error:
            raise explain(error) from error
        channel = Channel(SocketStream(agent), compress=False)
        self._connection: GuestConnection = _HostService()._connect(channel, config)
        self._connection.explain = explain
        self._log: list[KernelMessage] = []
        self._log_lock = threading.Lock()
        self._log_reader = self._own("kernel").LogReader()
        self._uevents: Any = None
        self.loaded: dict[str, Path] = {}
        """The host's file of each module that was loaded from one, to decode the kernel's stacks."""
        self.booted = len(self.dmesg())
        """Number of messages in the kernel's log when the guest was ready."""

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def module(self, name: str) -> Any:
        """A module of the guest's Python, as a proxy: what is called on it runs in the guest."""
        return self._connection.root.module(name)

    def push(self, source: bytes | Path, path: str, mode: int = 0o644) -> None:
        """Write bytes, or a file of the host, to `path` in the guest; its directory is made."""
        data = memoryview(source if isinstance(source, bytes) else source.read_bytes())
        files = self._own("files")
        files.create(path, mode)
        append = files.append
        for offset in range(0, len(data), _PIECE):
            append(path, bytes(data[offset : offset + _PIECE]))

    def pull(self, path: str) -> bytes:
        """Read a file of the guest."""
        pieces: list[bytes] = []
        piece = self._own("files").piece
        while data := piece(path, len(pieces) * _PIECE, _PIECE):
            pieces.append(data)
        return b"".join(pieces)

    def insmod(self, module: Path | bytes | str) -> None:
        """Load a module: a file of the host (Path), its bytes, or a file of the guest (str).

        Raises OSError with the kernel's errno; what the kernel logged meanwhile is its note.
        """
        mark = len(self.dmesg())
        name = (
            module
            if isinstance(module, str)
            else f"{_MODULES}/{module.name if isinstance(module, Path) else 'pushed.ko'}"
        )
        if not isinstance(module, str):
            self.push(module, name)
        if isinstance(module, Path):
            self.loaded[module.stem.replace("-", "_")] = module
        try:
            self._own("kernel").insmod(name)
        except OSError as error:
            error.add_note("\n".join(map(str, self.dmesg(mark))))
            raise

    def rmmod(self, name: str) -> None:
        """Unload a module. Raises OSError: EBUSY or EAGAIN while it is in use, ENOENT when it is not loaded."""
        self._own("kernel").rmmod(name)

    def dmesg(self, start: int = 0) -> list[KernelMessage]:
        """The kernel's log since boot, from message number `start` on."""
        with self._log_lock:
            news = self._log_reader.news()
            self._log += [KernelMessage(level, microseconds / 1e6, text) for level, microseconds, text in news]
            return self._log[start:]

    def warnings(self, start: int | None = None) -> list[KernelMessage]:
        """Messages of level warning or worse, less the harmless, since the guest was ready or from `start` on."""
        return [message for message in self.dmesg(self.booted if start is None else start) if message.is_warning]

    def set_clock(self) -> None:
        """Set the guest's time of day to the host's: a restored guest has that of its snapshot."""
        clock = self.module("time")
        clock.clock_settime(clock.CLOCK_REALTIME, time.time())

    def spawn(self, function: Any, *args: Any) -> Task:
        """Run a function of the guest on a thread there."""
        return Task(self._own("tasks").Task(function, args))

    def run(self, *argv: str, stdin: bytes = b"", timeout_s: float = 60.0) -> Completed:
        """Run a program in the guest. Raises TimedOut; the program goes on then."""
        return Completed(*self.spawn(self._own("tasks").run, argv, stdin).result(timeout_s))

    def uevents(self) -> UeventWatch:
        """Collect uevents from now on."""
        return UeventWatch(self._own("uevents").UeventWatch())

    def wait_for_node(self, path: str, timeout_s: float, *, present: bool = True) -> None:
        """Wait until the device node `path` is there, or gone. Raises TimedOut."""
        if self._own("files").exists(path) == present:
            return
        if self._uevents is None:
            self._uevents = self._own("uevents").UeventWatch()
        what = f"{path} to {'appear' if present else 'go'}"
        _wait(lambda seconds: self._uevents.wait_for_node(path, present, seconds), timeout_s, what)

    def _own(self, name: str) -> Any:
        return self.module(f"pyharness.guest.{name}")


def _wait(attempt: Callable[[float], bool], timeout_s: float, what: str) -> None:
    """Wait in slices, between which other threads of the host can call into the guest."""
    deadline = time.monotonic() + timeout_s
    while not attempt(_SLICE_S):
        if time.monotonic() > deadline:
            raise TimedOut(f"waited {timeout_s:g} s in vain for {what}")


def _pack_code() -> bytes:
    """The packages that run in the guest, as an archive of sources that Python imports from."""
    top = Path(pyharness.__file__).parent
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as pack:
        for path in (top / "__init__.py", *(path for name in _PACKAGES for path in sorted((top / name).rglob("*.py")))):
            pack.write(path, path.relative_to(top.parent))
    return archive.getvalue()
