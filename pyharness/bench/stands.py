# SPDX-License-Identifier: GPL-2.0-only
"""The backends that can be measured: one store each, reached by the VSP and over HTTP."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from azure.storage.blob import BlobServiceClient, ContainerSasPermissions, generate_container_sas

from pyharness.artifacts.azurite import ensure_azurite
from pyharness.artifacts.cache import Cache
from pyharness.azurite import ACCOUNT, KEY, Azurite
from pyharness.bench.store_server import StoreServer
from pyharness.progress import Progress
from pyharness.vsp.backends import Backend
from pyharness.vsp.backends.http import WORKERS, HttpBackend
from pyharness.vsp.backends.memory import MemoryBackend
from pyharness.vsp.request import VspRequest

_CONTAINER = "bench"
_SAS_LIFE = timedelta(days=1)


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


class _Threaded:
    """A backend that waits for others, each request on a thread of its own; the VSP goes on meanwhile."""

    def __init__(self, backend: Backend, pool: ThreadPoolExecutor) -> None:
        self._backend = backend
        self._pool = pool

    def handle(self, request: VspRequest) -> None:
        self._pool.submit(self._backend.handle, request)


@contextmanager
def _azurite() -> Iterator[Stand]:
    installation = ensure_azurite(Cache.open(), Progress())
    with (
        tempfile.TemporaryDirectory(prefix="pyharness-") as data,
        Azurite(installation, Path(data)) as emulator,
        HttpBackend(emulator.endpoint) as backend,
        ThreadPoolExecutor(WORKERS, "azurite") as pool,
    ):
        service = BlobServiceClient(emulator.account_url, credential=emulator.credential)
        container = service.create_container(_CONTAINER)
        sas = generate_container_sas(
            ACCOUNT,
            _CONTAINER,
            KEY,
            permission=ContainerSasPermissions(read=True, write=True, create=True),
            expiry=datetime.now(UTC) + _SAS_LIFE,
        )
        yield Stand(
            _Threaded(backend, pool),
            emulator.port,
            f"/{ACCOUNT}/{_CONTAINER}/{{blob}}?{sas}",
            lambda blob, content: container.upload_blob(blob, content, overwrite=True),
            lambda blob: container.download_blob(blob).readall(),
        )


STANDS: dict[str, Callable[[], AbstractContextManager[Stand]]] = {
    "memory": _memory,
    "azurite": _azurite,
}
"""By the names that --backend knows."""
