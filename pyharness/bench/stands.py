# SPDX-License-Identifier: GPL-2.0-only
"""The backends that can be measured: one store each, reached by the VSP and over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from pyharness.bench.store_server import StoreServer
from pyharness.vsp.backends import Backend
from pyharness.vsp.backends.memory import MemoryBackend


@dataclass(frozen=True)
class Stand:
    """A running store.

    `backend` is for the VSP, `port` is where the store listens for HTTP on the host's loopback. `target` is the
    target of a request for the blob {blob} (with what authorises it); `write` and `read` reach blobs from the host.
    """

    backend: Backend
    port: int
    target: str
    write: Callable[[str, bytes], object]
    read: Callable[[str], bytes]


@contextmanager
def _memory() -> Iterator[Stand]:
    store = MemoryBackend()
    with StoreServer(store) as server:
        yield Stand(
            store,
            server.port,
            "/bench/{blob}",
            lambda blob, content: store.write(f"/bench/{blob}", content),
            lambda blob: store.read(f"/bench/{blob}"),
        )


STANDS: dict[str, Callable[[], AbstractContextManager[Stand]]] = {"memory": _memory}
"""By the names that --backend knows."""
