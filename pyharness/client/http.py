# SPDX-License-Identifier: GPL-2.0-only
"""HTTP/1.1 message heads as the buffers of a request carry them: the head alone, a body is in the data buffer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(r"[!-~]+")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")


class Answer(NamedTuple):
    """A parsed response head; in `headers` names are lower case, and values of one name are joined by commas."""

    status: int
    reason: str
    headers: dict[str, str]
    fields: tuple[tuple[str, str], ...] = ()
    """The headers as they came: names of metadata have a case that somebody chose."""

    @property
    def length(self) -> int:
        """Content-Length, 0 without one."""
        return int(self.headers.get("content-length", "0"))


def parse_answer(head: bytes) -> Answer:
    """Raises ValueError when `head` is no HTTP/1.1 response head."""
    status_line, _, rest = head.partition(b"\r\n")
    version, _, outcome = status_line.decode("latin-1").partition(" ")
    code, _, reason = outcome.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or not code.isdecimal() or not rest.endswith(b"\r\n"):
        raise ValueError(f"not a response head: {head[:60]!r}")
    headers: dict[str, str] = {}
    fields = []
    for line in filter(None, rest.decode("latin-1").split("\r\n")):
        name, _, value = (part.strip() for part in line.partition(":"))
        fields.append((name, value))
        known = headers.get(name.lower())
        headers[name.lower()] = value if known is None else f"{known}, {value}"
    if not headers.get("content-length", "0").isdecimal():
        raise ValueError(f"not a response head: Content-Length is {headers['content-length']!r}")
    return Answer(int(code), reason, headers, tuple(fields))


def request_head(method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """The head of a request. Raises ValueError for what would make another head of it, such as a line break."""
    fields = list(headers)
    if not _TOKEN.fullmatch(method) or not _TARGET.fullmatch(target):
        raise ValueError(f"not a request line: {method!r} {target!r}")
    for name, value in fields:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"not a header: {name!r}: {value!r}")
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode("latin-1")
