# SPDX-License-Identifier: GPL-2.0-only
"""The guest's agent: serves Python to the host over virtio-serial."""

from __future__ import annotations

import importlib
from types import ModuleType

from rpyc.core.channel import Channel
from rpyc.core.service import Service
from rpyc.core.stream import PipeStream

# The host owns the guest: it may do everything.
CONFIG = {
    "allow_all_attrs": True,
    "allow_public_attrs": True,
    "allow_setattr": True,
    "allow_delattr": True,
    "import_custom_exceptions": True,
    "instantiate_custom_exceptions": True,
    "sync_request_timeout": None,
}


class AgentService(Service):  # type: ignore[misc]
    """What the host can call by name; all else it reaches through modules."""

    def exposed_module(self, name: str) -> ModuleType:
        """A module of the guest's Python."""
        return importlib.import_module(name)


def serve(port: int) -> None:
    """Answer the host's calls, one at a time, until it hangs up."""
    with open(port, "r+b", buffering=0) as stream:
        # Compression costs more under TCG than the bytes that it saves.
        channel = Channel(PipeStream(stream, stream), compress=False)
        AgentService()._connect(channel, CONFIG).serve_all()
