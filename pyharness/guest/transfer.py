# SPDX-License-Identifier: GPL-2.0-only
"""Move a file of the host's through the device in pieces, so that neither the guest's memory nor one call limits it."""

from __future__ import annotations

import hashlib
import time

from pyharness.client.blob import CHUNK_BYTES, BlobClient
from pyharness.client.device import BlobDevice


class Transfer:
    """One blob on its way up and down again, through the device node `path`."""

    def __init__(self, path: str, blob: str, host: str, sas: str) -> None:
        self._device = BlobDevice(path)
        self._client = BlobClient(self._device, host=host, sas=sas)
        self._blob = blob
        self._blocks: list[str] = []
        self._digest = hashlib.sha256()
        self._etag = ""
        self._size = 0
        self.upload_seconds = 0.0
        """Spent in requests that carried data up; the way of the data into the guest is not in it."""
        self.download_seconds = 0.0
        """Spent in requests that carried data down, without the hashing."""

    def upload(self, piece: bytes) -> None:
        """Stage the next piece, at most `CHUNK_BYTES`. Raises as BlobClient.put does."""
        started = time.monotonic()
        self._blocks.append(self._client.put_block(self._blob, len(self._blocks), piece))
        self.upload_seconds += time.monotonic() - started

    def commit(self) -> int:
        """Make the blob of the staged pieces; returns the size that the service reports, in bytes."""
        self._client.put_block_list(self._blob, self._blocks)
        return self._client.head(self._blob).length

    def download(self) -> tuple[int, int]:
        """Read the next piece and hash it; returns the bytes read so far and the blob's size."""
        with self._device.pool.borrow(CHUNK_BYTES) as buffer:
            room = buffer.view[:CHUNK_BYTES]
            started = time.monotonic()
            length, total, self._etag = self._client.get_range(self._blob, self._size, room, self._etag)
            self.download_seconds += time.monotonic() - started
            self._digest.update(room[:length])
        self._size += length
        return self._size, total

    def sha256(self) -> str:
        """Hex digest of what was downloaded."""
        return self._digest.hexdigest()

    def delete(self) -> None:
        """Delete the blob. Raises as BlobClient.delete does."""
        self._client.delete(self._blob)

    def close(self) -> None:
        """Close the device."""
        self._device.close()
