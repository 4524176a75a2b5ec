# SPDX-License-Identifier: GPL-2.0-only
"""Blobs of any size over a BlobDevice, by the Azure Blob REST API: put, get, head, delete."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote, unquote, urlencode
from xml.etree import ElementTree

from pyharness.client.device import DEFAULT_TIMEOUT_MS, BlobDevice
from pyharness.client.http import Answer, parse_answer, request_head

CHUNK_BYTES = 31 << 20
"""The largest round size that leaves room for head and response within the driver's 8192 pages."""

API_VERSION = "2023-11-03"
_ERROR_ROOM = 4096
_LIST_ROOM = 64 << 10
_MESSAGE = re.compile(rb"<Message>(.*?)</Message>", re.DOTALL)

ProgressCallback = Callable[[int, int | None], None]
"""Called with the bytes done and, where it is known, the total."""


class BlobServiceError(Exception):
    """The blob service answered with an HTTP error."""

    def __init__(self, answer: Answer, body: bytes) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.code = answer.headers.get("x-ms-error-code", "")
        said = _MESSAGE.search(body)
        words = (str(answer.status), self.code or answer.reason, said.group(1).decode(errors="replace") if said else "")
        super().__init__(" ".join(filter(None, words)))


class Transfer(NamedTuple):
    """What was moved."""

    size: int
    sha256: str
    etag: str


class Entry(NamedTuple):
    """A blob in a list."""

    name: str
    size: int
    etag: str
    modified: str


class Range(NamedTuple):
    """What a ranged GET read: bytes, the blob's whole size, and its version."""

    length: int
    total: int
    etag: str


class BlobClient:
    """One client of a blob service behind `device`; threads may share it."""

    def __init__(
        self,
        device: BlobDevice,
        *,
        host: str = "azure-blob",
        sas: str = "",
        headers: dict[str, str] | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
    ) -> None:
        """`sas` is a shared access signature, `headers` go with each request (Authorization, ...).

        Raises ValueError for a chunk size that cannot be.
        """
        if not 0 < chunk_bytes <= CHUNK_BYTES:
            raise ValueError(f"chunk_bytes is {chunk_bytes}, not between 1 and {CHUNK_BYTES}")
        self.device = device
        self._headers = {"Host": host, "x-ms-version": API_VERSION, **(headers or {})}
        self._sas = sas.removeprefix("?")
        self._chunk = chunk_bytes
        self._timeout_ms = timeout_ms

    def put(
        self,
        path: str,
        source: bytes | Path | BinaryIO,
        *,
        checksum: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Transfer:
        """Upload, in blocks when it is more than one request carries.

        With `checksum` the blob keeps its MD5, which `head` shows as content-md5.

        Raises DeviceError, HostError, BlobServiceError, and OSError of the source.
        """
        digest = hashlib.sha256()
        md5 = hashlib.md5(usedforsecurity=False) if checksum else None
        blocks: list[str] = []
        size = 0

        def account(piece: memoryview) -> None:
            nonlocal size
            digest.update(piece)
            size += len(piece)
            if progress:
                progress(size, total)

        def kept() -> dict[str, str]:
            return {"x-ms-blob-content-md5": base64.b64encode(md5.digest()).decode()} if md5 else {}

        with _reader(source) as (stream, total):
            # One byte of room beyond a source that is small shows that it has ended.
            room_size = self._chunk if total is None else min(total + 1, self._chunk)
            with self.device.pool.borrow(room_size) as buffer:
                room = buffer.view[:room_size]
                while (count := _fill(stream, room)) == room_size:
                    if md5:
                        md5.update(room)
                    blocks.append(self.put_block(path, len(blocks), room))
                    account(room)
                rest = room[:count]
                if md5:
                    md5.update(rest)
                if not blocks:
                    answer = self._send("PUT", path, headers={"x-ms-blob-type": "BlockBlob", **kept()}, data=rest)
                else:
                    if count:
                        blocks.append(self.put_block(path, len(blocks), rest))
                    answer = self.put_block_list(path, blocks, kept())
                account(rest)
        return Transfer(size, digest.hexdigest(), answer.headers.get("etag", ""))

    def put_block(self, path: str, index: int, content: bytes | memoryview) -> str:
        """Stage one block, at most a chunk, for `put_block_list`; returns its id. Raises as `put` does."""
        block = base64.b64encode(f"{index:08d}".encode()).decode()
        self._send("PUT", path, query=f"comp=block&blockid={quote(block, safe='')}", data=content)
        return block

    def put_block_list(self, path: str, blocks: Iterable[str], headers: dict[str, str] | None = None) -> Answer:
        """Make the blob of staged blocks, in this order. Raises as `put` does."""
        listed = "".join(f"<Latest>{block}</Latest>" for block in blocks)
        content = f"<BlockList>{listed}</BlockList>".encode()
        return self._send("PUT", path, query="comp=blocklist", headers=headers, data=content)

    def get(self, path: str, sink: Path | BinaryIO | None, *, progress: ProgressCallback | None = None) -> Transfer:
        """Download by ranges of one version of the blob; with no sink it is only hashed.

        A Path appears only when all of it has arrived. Raises as `put` does; a blob replaced meanwhile is a
        BlobServiceError 412.
        """
        digest = hashlib.sha256()
        size = 0
        total: int | None = None
        etag = ""
        with _writer(sink) as stream, self.device.pool.borrow(self._chunk) as buffer:
            room = buffer.view[: self._chunk]
            while total is None or size < total:
                length, total, etag = self.get_range(path, size, room, etag)
                piece = room[:length]
                digest.update(piece)
                if stream is not None:
                    stream.write(piece)
                size += length
                if progress:
                    progress(size, total)
        return Transfer(size, digest.hexdigest(), etag)

    def get_range(self, path: str, start: int, room: memoryview, etag: str = "") -> Range:
        """Read from `start` into `room`, which it fills unless the blob ends before. Raises as `get` does."""
        headers = {"x-ms-range": f"bytes={start}-{start + len(room) - 1}"}
        if etag:
            headers["If-Match"] = etag
        try:
            answer = self._send("GET", path, headers=headers, room=room)
        except BlobServiceError as error:
            # No range of an empty blob can be satisfied.
            if start == 0 and error.headers.get("content-range") == "bytes */0":
                return Range(0, 0, error.headers.get("etag", ""))
            raise
        if not 0 < answer.length <= len(room):
            raise ValueError(f"{answer.length} bytes in answer to a range of {len(room)}")
        return Range(answer.length, _total_of(answer), answer.headers.get("etag", ""))

    def head(self, path: str) -> Answer:
        """Properties; `length` is the blob's size. Raises as `put` does."""
        return self._send("HEAD", path)

    def list(self, container: str, prefix: str = "") -> Iterator[Entry]:
        """The blobs of a container whose names begin with `prefix`, sorted by name. Raises as `put` does."""
        marker = ""
        while True:
            asked = {"restype": "container", "comp": "list", "prefix": prefix, "marker": marker}
            page = ElementTree.fromstring(self._text(container, urlencode(asked, quote_via=quote)))
            for blob in page.iterfind("Blobs/Blob"):
                name = blob.find("Name")
                assert name is not None
                text = name.text or ""
                yield Entry(
                    unquote(text) if name.get("Encoded") == "true" else text,
                    int(blob.findtext("Properties/Content-Length", "0")),
                    blob.findtext("Properties/Etag", ""),
                    blob.findtext("Properties/Last-Modified", ""),
                )
            marker = page.findtext("NextMarker", "")
            if not marker:
                return

    def _text(self, path: str, query: str) -> bytes:
        """The body of an answer whose length is not known before."""
        size = _LIST_ROOM
        while True:
            with self.device.pool.borrow(size) as buffer:
                room = buffer.view[:size]
                try:
                    answer = self._send("GET", path, query=query, room=room)
                    return room[: answer.length].tobytes()
                except BlobServiceError as error:
                    needed = int(error.headers.get("content-length", "0"))
                    if error.status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE or not size < needed <= CHUNK_BYTES:
                        raise
                    size = needed

    def delete(self, path: str) -> None:
        """Raises as `put` does."""
        self._send("DELETE", path)

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        headers: dict[str, str] | None = None,
        data: bytes | memoryview = b"",
        room: memoryview | None = None,
    ) -> Answer:
        """One request; what the service has to say in a body goes to `room`, or to memory of its own."""
        query = "&".join(filter(None, (query, self._sas)))
        url = quote(path) + (f"?{query}" if query else "")
        fields = {**self._headers, **(headers or {}), "Content-Length": str(len(data))}
        head = request_head(method, url, fields.items())
        with self.device.pool.borrow(_ERROR_ROOM) as buffer:
            if room is None:
                # An upload's body needs to be the data buffer itself: there the service finds no room for words.
                room = memoryview(data) if data else buffer.view
            response = self.device.request(
                head,
                data_out=data or None,
                data_in=None if data else room,
                timeout_ms=self._timeout_ms,
            )
            answer = parse_answer(response.check().head)
            if answer.status >= HTTPStatus.BAD_REQUEST:
                raise BlobServiceError(answer, bytes(room[: answer.length]) if method != "HEAD" else b"")
        return answer


def _total_of(answer: Answer) -> int:
    """The blob's size, from the answer to a ranged GET. Raises ValueError."""
    if answer.status == HTTPStatus.OK:
        return answer.length
    total = answer.headers.get("content-range", "").rpartition("/")[2]
    if not total.isdecimal():
        raise ValueError(f"no size in Content-Range: {answer.headers.get('content-range')}")
    return int(total)


def _fill(stream: BinaryIO, room: memoryview) -> int:
    """Read until `room` is full or the stream ends: a pipe gives less than asked."""
    count = 0
    while count < len(room):
        piece = stream.read(len(room) - count)
        if not piece:
            break
        room[count : count + len(piece)] = piece
        count += len(piece)
    return count


@contextmanager
def _reader(source: bytes | Path | BinaryIO) -> Iterator[tuple[BinaryIO, int | None]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source), len(source)
    elif isinstance(source, Path):
        with source.open("rb") as stream:
            yield stream, os.fstat(stream.fileno()).st_size
    else:
        yield source, None


@contextmanager
def _writer(sink: Path | BinaryIO | None) -> Iterator[BinaryIO | None]:
    if not isinstance(sink, Path):
        yield sink
        return
    aside = sink.with_name(f".{sink.name}.part")
    try:
        with aside.open("wb") as stream:
            yield stream
        aside.replace(sink)
    finally:
        aside.unlink(missing_ok=True)
