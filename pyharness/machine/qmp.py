# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's machine protocol for synchronous code: the asynchronous client lives on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError

from pyharness.errors import HarnessError, TimedOut

T = TypeVar("T")

_CALL_TIMEOUT_S = 30.0
_MIGRATION_POLL_S = 0.02
_MIGRATION_ENDS = ("completed", "failed", "cancelled")
_CLOSE_TIMEOUT_S = 5.0


class Qmp:
    """A connection to QEMU's QMP socket."""

    def __init__(self, path: Path) -> None:
        """Connect. Raises OSError or QMPError when nothing answers at `path` (QEMU may not listen yet)."""
        self.events: list[dict[str, Any]] = []
        """All events so far, in order."""
        self._news = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient("pyharness")
        self._client.logger.setLevel("CRITICAL")
        try:
            self._run(self._client.connect(str(path)))
            self._listener = self._run(self._listen())
        except BaseException:
            self._stop_loop()
            raise

    def execute(self, command: str, **arguments: Any) -> Any:
        """Execute a QMP command and return its result (underscores in argument names stand for hyphens).

        Raises HarnessError when QEMU refuses the command or is gone.
        """
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            return self._run(self._client.execute(command, named or None))
        except ExecuteError as error:
            raise HarnessError(f"QEMU refused {command}: {error}") from error
        except (QMPError, OSError, EOFError) as error:
            raise HarnessError(f"QEMU is gone: {command} got no answer") from error

    def save(self, state: Path, capabilities: Sequence[str]) -> None:
        """Stop the guest and write its state to a file. Raises HarnessError when QEMU cannot."""
        self.execute("stop")
        self._migrate("migrate", state, capabilities)

    def restore(self, state: Path, capabilities: Sequence[str]) -> None:
        """Let a QEMU that waits for a guest (`-incoming defer`) take that of a file, and run it. Raises as `save`."""
        self._migrate("migrate-incoming", state, capabilities)
        self.execute("cont")

    def _migrate(self, command: str, state: Path, capabilities: Sequence[str]) -> None:
        chosen = [{"capability": name, "state": True} for name in capabilities]
        self.execute("migrate-set-capabilities", capabilities=chosen)
        self.execute("migrate-set-parameters", max_bandwidth=0)  # no limit
        self.execute(command, uri=f"file:{state}")
        while (found := self.execute("query-migrate")).get("status") not in _MIGRATION_ENDS:
            time.sleep(_MIGRATION_POLL_S)
        if found["status"] != "completed":
            raise HarnessError(f"QEMU failed to {command} {state}: {found.get('error-desc', found['status'])}")

    def wait_event(self, name: str, timeout_s: float, *, after: int = 0, **data: Any) -> dict[str, Any]:
        """The first event `name` with `data`, past or to come, from event number `after` on. Raises TimedOut."""
        with self._news:
            if not self._news.wait_for(lambda: self._find(name, after, data) is not None, timeout_s):
                raise TimedOut(f"no QMP event {name} in {timeout_s:g} s")
            event = self._find(name, after, data)
        assert event is not None
        return event

    def close(self) -> None:
        """Disconnect; what QEMU sent before it went is in `events` afterwards."""
        if self._thread.is_alive():
            with suppress(Exception):
                self._run(self._client.disconnect(), _CLOSE_TIMEOUT_S)
            with suppress(Exception):
                self._run(self._end_listener(), _CLOSE_TIMEOUT_S)
            self._stop_loop()

    def _find(self, name: str, after: int, data: Mapping[str, Any]) -> dict[str, Any] | None:
        for event in self.events[after:]:
            if event["event"] == name and data.items() <= event.get("data", {}).items():
                return event
        return None

    async def _listen(self) -> asyncio.Task[None]:
        async def listen() -> None:
            async for event in self._client.events:
                with self._news:
                    self.events.append(dict(event))
                    self._news.notify_all()

        return asyncio.create_task(listen())

    async def _end_listener(self) -> None:
        self._listener.cancel()
        with suppress(asyncio.CancelledError):
            await self._listener

    def _run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float = _CALL_TIMEOUT_S) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError as error:
            future.cancel()
            raise TimedOut(f"QEMU did not answer on QMP within {timeout_s:g} s") from error
        except BaseException:
            future.cancel()  # interrupted
            raise

    def _stop_loop(self) -> None:
        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(_end_tasks(), self._loop).result(_CLOSE_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_TIMEOUT_S)
        if not self._thread.is_alive():
            self._loop.close()


async def _end_tasks() -> None:
    """Let what is under way end: a loop that is closed before complains of it."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
