# SPDX-License-Identifier: GPL-2.0-only
"""A BlobDevice without a guest: its requests go to a VSP in this process as the driver would send them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyharness.client.buffers import BufferPool
from pyharness.client.device import DEFAULT_TIMEOUT_MS, BlobDevice, Readable, Response, Writable, as_view
from pyharness.vsp.backends import Backend
from pyharness.vsp.backends.http import WORKERS
from pyharness.vsp.server import VspServer
from tests.unit.vsp_peer import PAGE, DevicePeer, GuestRam

_RAM = 512 << 20


class PeerDevice(BlobDevice):
    """Its ioctl is `DevicePeer.call`."""

    def __init__(self, peer: DevicePeer) -> None:
        self.path, self.pool, self._fd = "peer", BufferPool(), -1
        self._peer = peer

    def request(
        self,
        head: Readable,
        *,
        data_out: Readable | None = None,
        data_in: Writable | None = None,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
        response_size: int = PAGE,
        guid: uuid.UUID | None = None,
    ) -> Response:
        room = as_view(data_in) if data_in is not None else memoryview(bytearray())
        answer = self._peer.call(
            bytes(as_view(head)),
            bytes(as_view(data_out)) if data_out is not None else b"",
            room=len(room),
            response_room=response_size,
            timeout_ms=timeout_ms,
        )
        room[:] = answer.data
        return Response(answer.completion.error, answer.head)


@contextmanager
def served_by(backend: Backend, directory: Path) -> Iterator[tuple[PeerDevice, VspServer]]:
    """A device with this backend."""
    with DevicePeer(directory / "vsp.sock", GuestRam(_RAM)) as peer:
        server = VspServer(peer.path, backend, workers=WORKERS, attach_timeout_s=20)
        server.start()
        peer.serve()
        server.wait_attached()
        yield PeerDevice(peer), server
        server.close()
        assert not server.errors, server.errors[0].traceback
