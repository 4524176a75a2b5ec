# SPDX-License-Identifier: GPL-2.0-only
"""HTTP/1.1 message heads as they lie in a VSP request's buffers: the head alone, the body is elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)

# RFC 9110, sections 5.5 and 5.6.2, and RFC 9112, sections 3 and 5; without the line folding that is obsolete.
_TOKEN = r"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_FIELD = rf"{_TOKEN}:[^\x00-\x08\x0a-\x1f\x7f]*\r\n"
_HEAD = re.compile(rf"({_TOKEN}) ([\x21-\x7e]+) HTTP/1\.1\r\n((?:{_FIELD})*)\r\n")
_FIELDS = re.compile(r"([^:]+):[ \t]*((?:[^\r]*[^\r \t])?)[ \t]*\r\n")
_HEAD_END = b"\r\n\r\n"
_ONLY_ONCE = ("host", "content-length")
_STATUS_LINES = {status: f"HTTP/1.1 {status.value} {status.phrase}" for status in HTTPStatus}
_LENGTH = re.compile(r"\d{1,20}", re.ASCII)


class BadHead(ValueError):
    """The bytes are not the head of one HTTP/1.1 request."""


class RequestHead(NamedTuple):
    """A parsed request head. Header names are lower case; the path is unquoted and starts with a slash."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


class RawHead(NamedTuple):
    """A request head as it came: the target as it is, names in the case that they have."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    headers: dict[str, str]
    """The fields by their lower-case names; of one that is repeated, the last."""


def read_request_head(head: bytes) -> RawHead:
    """Raises BadHead, also for bytes after the blank line: a body belongs into the data buffer."""
    end = head.find(_HEAD_END)
    if end < 0:
        raise BadHead("the head has no end")
    if end + len(_HEAD_END) < len(head):
        raise BadHead("bytes follow the head")
    match = _HEAD.fullmatch(head.decode("latin-1"))
    if match is None:
        raise BadHead("this is not the head of an HTTP/1.1 request")
    method, target, lines = match.groups()
    fields = _FIELDS.findall(lines)
    return RawHead(method, target, fields, _headers(fields))


def parse_request_head(head: bytes) -> RequestHead:
    """As `read_request_head`, with the target taken apart."""
    method, url, _, headers = read_request_head(head)
    try:
        target = urlsplit(url)
        query = dict(parse_qsl(target.query, keep_blank_values=True, strict_parsing=True)) if target.query else {}
    except ValueError as error:
        raise BadHead(f"bad target: {error}") from error
    if not target.path.startswith("/"):
        raise BadHead("the target has no path")
    return RequestHead(method, unquote(target.path), query, headers)


def _headers(fields: Collection[tuple[str, str]]) -> dict[str, str]:
    """Raises BadHead when what says where the message ends or whose it is is repeated, missing, or no number."""
    headers = {name.lower(): value for name, value in fields}
    if len(headers) < len(fields):
        names = [name.lower() for name, _ in fields]
        for name in _ONLY_ONCE:
            if names.count(name) > 1:
                raise BadHead(f"{name} is repeated")
    if "host" not in headers:
        raise BadHead("there is no host")
    if not _LENGTH.fullmatch(headers.get("content-length", "0")):
        raise BadHead("the content-length is no number")
    return headers


def format_response_head(status: HTTPStatus, headers: Iterable[tuple[str, str]]) -> bytes:
    """Status line, headers and the blank line. Header values must be free of line breaks."""
    lines = [_STATUS_LINES[status], *[f"{name}: {value}" for name, value in headers], "", ""]
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
