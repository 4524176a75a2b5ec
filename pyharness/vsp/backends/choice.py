# SPDX-License-Identifier: GPL-2.0-only
"""What a user names to stand behind the VSP: `memory`, or `http=URL`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from pyharness.vsp.backends import Backend
from pyharness.vsp.backends.http import WORKERS, HttpBackend
from pyharness.vsp.backends.memory import MemoryBackend


@dataclass(frozen=True)
class BackendChoice:
    """A backend, and how the guest addresses a container that it may use there."""

    name: str
    """For people: it holds no SAS."""
    endpoint: str = ""
    """Where the requests go; empty for an object store in this process."""
    host: str = "azure-blob"
    container: str = "/pyharness"
    sas: str = ""

    @property
    def workers(self) -> int:
        """For `VspServer`."""
        return WORKERS if self.endpoint else 0

    @contextmanager
    def running(self) -> Iterator[Backend]:
        """The backend, an object store being empty."""
        if self.endpoint:
            with HttpBackend(self.endpoint) as backend:
                yield backend
        else:
            yield MemoryBackend()


MEMORY = BackendChoice("memory")


def parse_backend(text: str) -> BackendChoice:
    """Raises ValueError, which says what is wrong."""
    if text == MEMORY.name:
        return MEMORY
    kind, _, url = text.partition("=")
    if kind != "http":
        raise ValueError(f"there is no backend {kind}")
    parts = urlsplit(url)
    endpoint = f"{parts.scheme}://{parts.netloc}"
    HttpBackend(endpoint).close()
    container = unquote(parts.path).rstrip("/")
    if not container:
        raise ValueError(f"{endpoint} names no container")
    return BackendChoice(f"{endpoint}{parts.path}", endpoint, parts.netloc, container, parts.query)
