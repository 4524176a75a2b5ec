# SPDX-License-Identifier: GPL-2.0-only
"""The host's side of the guest's agent."""

from __future__ import annotations

import io
import socket
import struct
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rpyc
from rpyc.core.async_ import AsyncResultTimeout
from rpyc.core.channel import Channel
from rpyc.core.protocol import Connection
from rpyc.core.service import VoidService
from rpyc.core.stream import SocketStream

import pyharness
from pyharness.errors import HarnessError, TimedOut

_PACKAGES = ("guest", "client")
_GREETING = "pyharness-agent "
_MAX_HELLO = 256


class Hello:
    """The line with which the guest says that it is ready for the agent's code."""

    def __init__(self, agent: socket.socket) -> None:
        self._agent = agent
        self._line = b""
        agent.setblocking(False)

    def poll(self) -> bool | None:
        """True once the line is there, None before."""
        try:
            self._line += self._agent.recv(_MAX_HELLO)
        except BlockingIOError:
            pass
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

    lost: Callable[[], HarnessError]

    def __init__(self, root: Any, channel: Any, config: dict[str, Any]) -> None:
        super().__init__(root, channel, config)
        self._one_call = threading.RLock()

    def sync_request(self, handler: int, *args: Any) -> Any:
        """Call into the guest. Raises what the guest raised, or why there is no guest any more."""
        with self._one_call:
            try:
                return super().sync_request(handler, *args)
            except AsyncResultTimeout as error:
                raise TimedOut(
                    f"a call into the guest did not return in {self._config['sync_request_timeout']:g} s"
                ) from error
            except EOFError as error:
                raise self.lost() from error

    def close(self) -> None:
        """Hang up without a word: a port does not tell when the other side has closed it, so no answer would come."""
        if not self.closed:
            self._cleanup()


class _HostService(VoidService):  # type: ignore[misc]
    _protocol = GuestConnection


class Guest:
    """Python in the guest."""

    def __init__(self, agent: socket.socket, lost: Callable[[], HarnessError], call_timeout_s: float) -> None:
        """Send the agent's code over `agent` and connect. `lost` says why the guest no longer answers."""
        code = _pack_code()
        agent.setblocking(True)
        agent.sendall(struct.pack("<I", len(code)) + code)
        config = {
            "allow_public_attrs": True,
            "import_custom_exceptions": True,
            "instantiate_custom_exceptions": True,
            "sync_request_timeout": call_timeout_s,
        }
        self._connection: GuestConnection = _HostService()._connect(
            Channel(SocketStream(agent), compress=False), config
        )
        self._connection.lost = lost

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def module(self, name: str) -> Any:
        """A module of the guest's Python, as a proxy: what is called on it runs in the guest."""
        return self._connection.root.module(name)


def _pack_code() -> bytes:
    """The packages that run in the guest, as an archive of sources that Python imports from."""
    top = Path(pyharness.__file__).parent
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as pack:
        for path in (top / "__init__.py", *(path for name in _PACKAGES for path in sorted((top / name).rglob("*.py")))):
            pack.write(path, path.relative_to(top.parent))
    return archive.getvalue()
