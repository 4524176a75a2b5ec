# SPDX-License-Identifier: GPL-2.0-only
"""HTTP/1.1 message heads as they lie in a VSP request's buffers: the head alone, the body is elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import h11

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


class BadHead(ValueError):
    """The bytes are not the head of one HTTP/1.1 request."""


class RequestHead(NamedTuple):
    """A parsed request head. Header names are lower case; the path is unquoted and starts with a slash."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


def read_request_head(head: bytes) -> h11.Request:
    """Raises BadHead, also for bytes after the blank line: a body belongs into the data buffer."""
    # A fresh state machine for each head, because h11 insists on seeing the body before the next request.
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head) + 1)
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise BadHead(str(error)) from error
    if not isinstance(event, h11.Request):
        raise BadHead("the head has no end")
    if event.http_version != b"1.1":
        raise BadHead(f"HTTP/{event.http_version.decode('ascii')} is not served")
    if connection.trailing_data[0]:
        raise BadHead("bytes follow the head")
    return event


def parse_request_head(head: bytes) -> RequestHead:
    """As `read_request_head`, taken apart."""
    event = read_request_head(head)
    try:
        target = urlsplit(event.target.decode("ascii"))
        query = dict(parse_qsl(target.query, keep_blank_values=True, strict_parsing=bool(target.query)))
    except ValueError as error:
        raise BadHead(f"bad target: {error}") from error
    if not target.path.startswith("/"):
        raise BadHead("the target has no path")
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
    return RequestHead(event.method.decode("ascii"), unquote(target.path), query, headers)


def format_response_head(status: HTTPStatus, headers: Iterable[tuple[str, str]]) -> bytes:
    """Status line, headers and the blank line. Header values must be free of line breaks."""
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def http_date() -> str:
    """The time of day as the Date header gives it."""
    return _format_date(int(time.time()))


@lru_cache(maxsize=2)
def _format_date(second: int) -> str:
    return formatdate(second, usegmt=True)


def parse_range(value: str | None, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) that a Range header selects of `size` bytes; None when it is to be ignored.

    RFC 9110 section 14.2. An unsatisfiable range comes back with start >= end.
    """
    match = _RANGE.fullmatch(value.strip()) if value else None
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size
