# SPDX-License-Identifier: GPL-2.0-only
"""An object store in this process's memory that speaks the part of the Azure Blob REST API that moves data.

| request | answer |
|---|---|
| `PUT /path` | 201; the body is the valid part of the data buffer |
| `PUT /path?comp=block&blockid=BASE64` | 201; stages a block |
| `PUT /path?comp=blocklist` | 201; makes the blob of the blocks that the XML body lists |
| `GET /path`, with `Range` or `x-ms-range` | 200, 206, 416; the body goes into the data buffer |
| `HEAD /path`, `DELETE /path` | 200, 202 |
| `GET /container?restype=container&comp=list`, with `prefix`, `marker`, `maxresults` | 200; the blobs, in XML |

`If-Match` and `If-None-Match` are honoured (412, 304; 409 for what is to be made and exists). A data buffer too small
for the body of a GET gives 413, with the length that is needed in Content-Length. Other failures carry the service's
XML error body when the data buffer has room for it. A response buffer too small for the head gives the status
BUFFER_TOO_SMALL; the operation is done then.
Containers need not be made and nothing is authenticated.
"""

from __future__ import annotations

import base64
import binascii
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import accumulate, count
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from pyharness.vsp.backends.reply import Failure, Reply, answer, check_length
from pyharness.vsp.http import BadHead, RequestHead, http_date, parse_range, parse_request_head
from pyharness.vsp.request import VspRequest

_MAX_BLOCK_ID = 64
_MAX_RESULTS = 5000


@dataclass(frozen=True, slots=True)
class Blob:
    """A committed blob: never changed, only replaced, so that readers need no lock."""

    etag: str
    modified: str
    content_type: str
    content_md5: str
    """As the client has given it; empty without."""
    blocks: Mapping[str, bytes]
    """Block id to content, in order; a blob put whole is one block with no name."""
    order: tuple[bytes, ...]
    ends: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.ends[-1] if self.ends else 0

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """The bytes [start, end) without a copy."""
        index = bisect_right(self.ends, start)
        while start < end:
            block = self.order[index]
            begin = self.ends[index] - len(block)
            yield memoryview(block)[start - begin : end - begin]
            start = self.ends[index]
            index += 1


@dataclass
class MemoryBackend:
    """Blobs by path; many requests may be handled at once."""

    blobs: dict[str, Blob] = field(default_factory=dict)
    _staged: dict[str, dict[str, bytes]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _revisions: Iterator[int] = field(default_factory=lambda: count(1))

    # -- from the host

    def read(self, path: str) -> bytes:
        """A blob's content. Raises KeyError."""
        return b"".join(self.blobs[path].order)

    def write(self, path: str, content: bytes, content_type: str = "application/octet-stream") -> Blob:
        """Make or replace a blob."""
        return self._commit(path, {"": content} if content else {}, content_type, (content,) if content else ())

    # -- from the guest

    def handle(self, request: VspRequest) -> None:
        """See `Backend.handle`."""
        head: RequestHead | None = None
        try:
            head = parse_request_head(request.request.read())
            reply = self._route(head, request)
        except BadHead as error:
            reply = Failure(HTTPStatus.BAD_REQUEST, "InvalidInput", str(error)).reply()
        except Failure as failure:
            reply = failure.reply()
        method, sent = (head.method, head.headers) if head is not None else ("", {})
        answer(request, reply, method, sent)

    def _route(self, head: RequestHead, request: VspRequest) -> Reply:
        if head.method not in _METHODS:
            allowed = ", ".join(sorted(_METHODS))
            raise Failure(
                HTTPStatus.METHOD_NOT_ALLOWED, "UnsupportedHttpVerb", f"no {head.method}", (("Allow", allowed),)
            )
        kind = " ".join(filter(None, (head.query.get("restype"), head.query.get("comp"))))
        route = _ROUTES.get((head.method, kind))
        if route is None or "transfer-encoding" in head.headers:
            raise Failure(HTTPStatus.NOT_IMPLEMENTED, "NotImplemented", f"{head.method} {dict(head.query)}")
        return route(self, head, request)

    # -- operations

    def _put_blob(self, head: RequestHead, request: VspRequest) -> Reply:
        kind = head.headers.get("x-ms-blob-type", "BlockBlob")
        if kind != "BlockBlob":
            raise Failure(HTTPStatus.NOT_IMPLEMENTED, "NotImplemented", f"blob type {kind}")
        body = self._body(head, request)
        content_type = head.headers.get("content-type", "application/octet-stream")
        return self._created(
            self._commit(head.path, {"": body} if body else {}, content_type, (body,) if body else (), head)
        )

    def _put_block(self, head: RequestHead, request: VspRequest) -> Reply:
        block_id = head.query.get("blockid", "")
        try:
            decoded = base64.b64decode(block_id, validate=True)
        except (binascii.Error, ValueError):
            decoded = b""
        if not 0 < len(decoded) <= _MAX_BLOCK_ID:
            raise Failure(HTTPStatus.BAD_REQUEST, "InvalidQueryParameterValue", "blockid is not base64 of 1-64 bytes")
        body = self._body(head, request)
        with self._lock:
            self._staged.setdefault(head.path, {})[block_id] = body
        return Reply(HTTPStatus.CREATED)

    def _put_block_list(self, head: RequestHead, request: VspRequest) -> Reply:
        try:
            listed = [
                (element.tag, (element.text or "").strip())
                for element in ElementTree.fromstring(self._body(head, request))
            ]
        except ElementTree.ParseError as error:
            raise Failure(HTTPStatus.BAD_REQUEST, "InvalidXmlDocument", str(error)) from error
        with self._lock:
            staged = self._staged.get(head.path, {})
            blob = self.blobs.get(head.path)
            committed = blob.blocks if blob is not None else {}
            sources: dict[str, tuple[Mapping[str, bytes], ...]] = {
                "Committed": (committed,),
                "Uncommitted": (staged,),
                "Latest": (staged, committed),
            }
            order = []
            blocks = {}
            for tag, block_id in listed:
                found = next((source[block_id] for source in sources.get(tag, ()) if block_id in source), None)
                if found is None or not block_id:
                    raise Failure(HTTPStatus.BAD_REQUEST, "InvalidBlockList", f"no block {tag} {block_id}")
                blocks[block_id] = found
                order.append(found)
        content_type = head.headers.get("x-ms-blob-content-type", "application/octet-stream")
        return self._created(self._commit(head.path, blocks, content_type, tuple(order), head))

    def _get(self, head: RequestHead, request: VspRequest) -> Reply:
        blob = self._existing(head)
        asked = parse_range(head.headers.get("x-ms-range") or head.headers.get("range"), blob.size)
        start, end = asked or (0, blob.size)
        if asked and start >= end:
            raise Failure(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                "InvalidRange",
                "the range starts past the end",
                (("Content-Range", f"bytes */{blob.size}"),),
            )
        headers = self._describe(blob)
        if asked:
            headers = (*headers, ("Content-Range", f"bytes {start}-{end - 1}/{blob.size}"))
        return Reply(
            HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK,
            headers,
            end - start,
            lambda: blob.pieces(start, end),
        )

    def _head(self, head: RequestHead, request: VspRequest) -> Reply:
        blob = self._existing(head)
        return Reply(HTTPStatus.OK, self._describe(blob), blob.size)

    def _list(self, head: RequestHead, request: VspRequest) -> Reply:
        container = head.path.rstrip("/") + "/"
        prefix, marker = head.query.get("prefix", ""), head.query.get("marker", "")
        try:
            count = int(head.query.get("maxresults", _MAX_RESULTS))
        except ValueError:
            count = 0
        if not 0 < count <= _MAX_RESULTS:
            raise Failure(HTTPStatus.BAD_REQUEST, "OutOfRangeQueryParameterValue", "maxresults is not in 1..5000")
        found = {
            path.removeprefix(container): blob for path, blob in list(self.blobs.items()) if path.startswith(container)
        }
        names = sorted(name for name in found if name.startswith(prefix) and name >= marker)
        blobs = "".join(_listed(name, found[name]) for name in names[:count])
        following = escape(names[count]) if len(names) > count else ""
        asked = f"<Prefix>{escape(prefix)}</Prefix><MaxResults>{count}</MaxResults>"
        text = f"{asked}<Blobs>{blobs}</Blobs><NextMarker>{following}</NextMarker>"
        body = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults>{text}</EnumerationResults>'.encode()
        return Reply(HTTPStatus.OK, (("Content-Type", "application/xml"),), len(body), lambda: iter([memoryview(body)]))

    def _delete(self, head: RequestHead, request: VspRequest) -> Reply:
        with self._lock:
            self._existing(head)
            del self.blobs[head.path]
        return Reply(HTTPStatus.ACCEPTED)

    # -- parts of operations

    @staticmethod
    def _body(head: RequestHead, request: VspRequest) -> bytes:
        check_length(head.headers.get("content-length"), request)
        return request.data_valid.read()

    def _existing(self, head: RequestHead) -> Blob:
        blob = self.blobs.get(head.path)
        if blob is None:
            raise Failure(HTTPStatus.NOT_FOUND, "BlobNotFound", "The specified blob does not exist.")
        self._check_conditions(head, blob)
        return blob

    @staticmethod
    def _check_conditions(head: RequestHead, blob: Blob | None) -> None:
        wanted, unwanted = head.headers.get("if-match"), head.headers.get("if-none-match")
        if wanted is not None and not _matches(wanted, blob):
            raise Failure(HTTPStatus.PRECONDITION_FAILED, "ConditionNotMet", "If-Match does not hold")
        if unwanted is not None and _matches(unwanted, blob):
            if head.method in ("GET", "HEAD"):
                raise Failure(HTTPStatus.NOT_MODIFIED, "ConditionNotMet", "not modified")
            if head.method == "PUT" and unwanted.strip() == "*":
                raise Failure(HTTPStatus.CONFLICT, "BlobAlreadyExists", "The specified blob already exists.")
            raise Failure(HTTPStatus.PRECONDITION_FAILED, "ConditionNotMet", "If-None-Match does not hold")

    def _commit(
        self,
        path: str,
        blocks: Mapping[str, bytes],
        content_type: str,
        order: tuple[bytes, ...],
        head: RequestHead | None = None,
    ) -> Blob:
        order = tuple(block for block in order if block)
        with self._lock:
            if head is not None:
                self._check_conditions(head, self.blobs.get(path))
            etag = f'"0x{next(self._revisions):016X}"'
            md5 = head.headers.get("x-ms-blob-content-md5", "") if head is not None else ""
            blob = Blob(etag, http_date(), content_type, md5, blocks, order, tuple(accumulate(map(len, order))))
            self.blobs[path] = blob
            self._staged.pop(path, None)
        return blob

    @staticmethod
    def _describe(blob: Blob) -> tuple[tuple[str, str], ...]:
        return (
            ("ETag", blob.etag),
            ("Last-Modified", blob.modified),
            ("Content-Type", blob.content_type),
            ("Accept-Ranges", "bytes"),
            ("x-ms-blob-type", "BlockBlob"),
            *((("Content-MD5", blob.content_md5),) if blob.content_md5 else ()),
        )

    @staticmethod
    def _created(blob: Blob) -> Reply:
        return Reply(HTTPStatus.CREATED, (("ETag", blob.etag), ("Last-Modified", blob.modified)))


def _listed(name: str, blob: Blob) -> str:
    properties = {
        "Last-Modified": blob.modified,
        "Etag": blob.etag,
        "Content-Length": str(blob.size),
        "Content-Type": blob.content_type,
        "BlobType": "BlockBlob",
    }
    told = "".join(f"<{key}>{escape(value)}</{key}>" for key, value in properties.items())
    return f"<Blob><Name>{escape(name)}</Name><Properties>{told}</Properties></Blob>"


def _matches(condition: str, blob: Blob | None) -> bool:
    if blob is None:
        return False
    return condition.strip() == "*" or blob.etag in (tag.strip() for tag in condition.split(","))


_Operation = Callable[[MemoryBackend, RequestHead, VspRequest], Reply]

_ROUTES: Mapping[tuple[str, str], _Operation] = {
    ("PUT", ""): MemoryBackend._put_blob,
    ("PUT", "block"): MemoryBackend._put_block,
    ("PUT", "blocklist"): MemoryBackend._put_block_list,
    ("GET", ""): MemoryBackend._get,
    ("HEAD", ""): MemoryBackend._head,
    ("DELETE", ""): MemoryBackend._delete,
    ("GET", "container list"): MemoryBackend._list,
}
_METHODS = frozenset(method for method, _ in _ROUTES)
