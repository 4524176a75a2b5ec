# SPDX-License-Identifier: GPL-2.0-only
"""What a backend says by itself, as the blob service would: a head and, in the data buffer, a body."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from itertools import count
from typing import NamedTuple
from uuid import uuid4
from xml.sax.saxutils import escape

from pyharness.vsp.http import format_response_head, http_date
from pyharness.vsp.request import VspRequest
from pyharness.vsp.wire import Status

_API_VERSION = "2023-11-03"
# Together they look like a GUID, which costs as much to draw for each answer as to parse its request's head.
_SERVER_ID = str(uuid4())[:23]
_answers = count(1)


class Reply(NamedTuple):
    """What goes into the response head and, with `body`, into the data buffer."""

    status: HTTPStatus
    headers: tuple[tuple[str, str], ...] = ()
    length: int = 0
    body: Callable[[], Iterator[memoryview]] | None = None


class Failure(Exception):
    """An answer of the service other than success."""

    def __init__(self, status: HTTPStatus, code: str, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers

    def reply(self) -> Reply:
        """With the service's XML body."""
        headers = (("x-ms-error-code", self.code), *self.headers)
        if self.status == HTTPStatus.NOT_MODIFIED:
            return Reply(self.status, headers)
        text = f"<Error><Code>{self.code}</Code><Message>{escape(self.message)}</Message></Error>"
        body = f'<?xml version="1.0" encoding="utf-8"?>{text}'.encode()
        return Reply(
            self.status, (*headers, ("Content-Type", "application/xml")), len(body), lambda: iter([memoryview(body)])
        )


def check_length(announced: str | None, request: VspRequest) -> None:
    """Raise Failure unless this Content-Length is that of the valid part of the data buffer."""
    valid = len(request.data_valid)
    if announced is None:
        raise Failure(HTTPStatus.LENGTH_REQUIRED, "MissingContentLengthHeader", "Content-Length is missing")
    if int(announced) != valid:
        message = f"Content-Length {announced}, but {valid} bytes in the data buffer"
        raise Failure(HTTPStatus.BAD_REQUEST, "InvalidHeaderValue", message)


def answer(request: VspRequest, reply: Reply, method: str = "", sent: Mapping[str, str] | None = None) -> None:
    """Answer with `reply`; `sent` are the request's headers, by lower-case names, as far as they are known.

    A body that does not fit into the data buffer is left out: of an error for good, else with 413 and its length.
    """
    status, length = reply.status, reply.length
    if reply.body is not None and method != "HEAD":
        if length <= len(request.data):
            offset = 0
            for piece in reply.body():
                offset += request.data.write(piece, offset)
        elif status < HTTPStatus.BAD_REQUEST:
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        else:
            length = 0
    sent = sent or {}
    client_id = sent.get("x-ms-client-request-id")
    headers = [
        ("Content-Length", str(length)),
        ("Date", http_date()),
        ("x-ms-request-id", f"{_SERVER_ID}-{next(_answers):012x}"),
        ("x-ms-version", sent.get("x-ms-version", _API_VERSION)),
        *((("x-ms-client-request-id", client_id),) if client_id else ()),
        *reply.headers,
    ]
    answer_head(request, format_response_head(status, headers))


def answer_head(request: VspRequest, head: bytes) -> None:
    """Complete the request with this response head, or with BUFFER_TOO_SMALL."""
    if len(head) > len(request.response):
        request.complete(Status.BUFFER_TOO_SMALL)
        return
    request.response.write(head)
    request.complete(response_len=len(head))
