# SPDX-License-Identifier: GPL-2.0-only
"""Forwards each request to a blob service, Azurite for one, and brings its answer back.

The guest's head goes on as it is, less what concerns one connection only (Connection, Transfer-Encoding, ...); Host and
Authorization stay the guest's. So does the service's, with the Content-Length of the body that it came with.

| what happens | answer |
|---|---|
| the body of a success does not fit into the data buffer | 413; Content-Length is what it needs |
| the body of an error does not fit | the error without it |
| the head does not fit into the response buffer | status BUFFER_TOO_SMALL; the service has carried the request out |
| nobody listens, or there is no way there | CONNECTION_REFUSED, NETWORK_UNREACHABLE, HOST_UNREACHABLE: not sent |
| the request's timeout passes, counted from its arrival | IO_TIMEOUT |
| the service hangs up in the middle | CONNECTION_RESET |
| the service does not speak HTTP/1.1 | INVALID_NETWORK_RESPONSE |

A connection is kept for the next request; one that the service has closed meanwhile is not used. What the guest does
not wait for any more, because its channel closed, is given up, and guest memory left alone.
"""

from __future__ import annotations

import errno
import ssl
import threading
from collections.abc import Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from pyharness.vsp.backends.link import BadResponse, Endpoint, Link, NoWay, Patience, ResponseHead, Unwanted
from pyharness.vsp.backends.reply import Failure, answer, answer_head, check_length
from pyharness.vsp.frames import MAX_IN_FLIGHT
from pyharness.vsp.http import BadHead, RawHead, read_request_head
from pyharness.vsp.request import VspRequest
from pyharness.vsp.wire import Status

WORKERS = MAX_IN_FLIGHT
"""For `VspServer`: no request waits for the thread of another, so that each has its own timeout."""

_DEFAULT_TIMEOUT_S = 60.0
_KEPT_LINKS = 128
_PORTS = {"http": 80, "https": 443}
_OF_ONE_CONNECTION = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade expect".split()
)
_AGAIN = ("GET", "HEAD")
"""What may be sent twice: a kept connection may end in the moment in which it is used."""

_NO_WAY: Mapping[int | None, Status] = {
    errno.ECONNREFUSED: Status.CONNECTION_REFUSED,
    errno.ENETUNREACH: Status.NETWORK_UNREACHABLE,
}


class HttpBackend:
    """Forwards to one endpoint. As a context manager it hangs up its kept connections at the end."""

    def __init__(self, url: str, *, timeout_s: float = _DEFAULT_TIMEOUT_S) -> None:
        """`url` is `http://HOST[:PORT]` or `https://...`; `timeout_s` is for requests that leave it to the host.

        Raises ValueError for another URL: a path would be one that the guest has not signed.
        """
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
            raise ValueError(f"not the URL of an endpoint: {url}")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._endpoint = Endpoint(parts.hostname, parts.port or _PORTS[parts.scheme], tls)
        self._timeout_s = timeout_s
        self._kept: list[Link] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Hang up connections that no request uses."""
        with self._lock:
            kept, self._kept = self._kept, []
        for link in kept:
            link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def handle(self, request: VspRequest) -> None:
        """See `Backend.handle`."""
        try:
            self._forward(request)
        except BadHead as error:
            answer(request, Failure(HTTPStatus.BAD_REQUEST, "InvalidInput", str(error)).reply())
        except Failure as failure:
            answer(request, failure.reply())
        except Unwanted:
            return
        except TimeoutError:
            request.complete(Status.IO_TIMEOUT)
        except NoWay as error:
            cause = error.__cause__
            number = cause.errno if isinstance(cause, OSError) else None
            request.complete(_NO_WAY.get(number, Status.HOST_UNREACHABLE))
        except (ConnectionError, EOFError):
            request.complete(Status.CONNECTION_RESET)
        except BadResponse:
            request.complete(Status.INVALID_NETWORK_RESPONSE)
        except OSError:
            request.complete(Status.UNEXPECTED_NETWORK_ERROR)

    def _forward(self, request: VspRequest) -> None:
        asked = read_request_head(request.request.read())
        sent = asked.headers
        if "transfer-encoding" in sent:
            raise Failure(HTTPStatus.NOT_IMPLEMENTED, "NotImplemented", "a body lies in the data buffer as it is")
        if "content-length" in sent or len(request.data_valid):
            check_length(sent.get("content-length"), request)
        timeout_ms = request.header.timeout_ms if request.header else 0
        limit = timeout_ms / 1000 if timeout_ms else self._timeout_s
        patience = Patience(request.arrived + limit, lambda: request.awaited)
        method = asked.method
        link = self._link(patience)
        try:
            head = self._exchange(link, asked, request, patience)
        except (ConnectionError, EOFError):
            link.close()
            if not (link.used and method in _AGAIN and not link.heard):
                raise
            link = Link.open(self._endpoint, patience)
            try:
                head = self._exchange(link, asked, request, patience)
            except BaseException:
                link.close()
                raise
        except BaseException:
            link.close()
            raise
        self._bring(link, method, head, request, patience)

    def _link(self, patience: Patience) -> Link:
        """One that is kept and still open, the youngest first, or a new one."""
        while True:
            with self._lock:
                link = self._kept.pop() if self._kept else None
            if link is None:
                return Link.open(self._endpoint, patience)
            if not link.stale:
                return link
            link.close()

    def _exchange(self, link: Link, asked: RawHead, request: VspRequest, patience: Patience) -> ResponseHead:
        fields = [f"{name}: {value}" for name, value in asked.fields if name.lower().encode() not in _OF_ONE_CONNECTION]
        lines = [f"{asked.method} {asked.target} HTTP/1.1", *fields, "", ""]
        try:
            link.send("\r\n".join(lines).encode("latin-1"), request.data_valid, patience)
        except ConnectionError:
            # A service that refuses a body need not read it: what it has to say may be there all the same.
            try:
                return link.receive_head(patience)
            except (OSError, EOFError):
                pass
            raise
        return link.receive_head(patience)

    def _bring(self, link: Link, method: str, head: ResponseHead, request: VspRequest, patience: Patience) -> None:
        try:
            body = link.receive_body(method, head, request.data, patience)
        except BaseException:
            link.close()
            raise
        status, reason, length = head.status, head.reason, body.length
        if not body.fits:
            if status < HTTPStatus.BAD_REQUEST:
                status, reason = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"Request Entity Too Large"
            else:
                length = 0
        self._keep(link)
        fields = [field for field in head.fields if field[0].lower() not in (*_OF_ONE_CONNECTION, b"content-length")]
        announced = head.values(b"content-length")
        if method != "HEAD" and head.status != HTTPStatus.NOT_MODIFIED:
            fields.append((b"Content-Length", str(length).encode()))
        elif announced:
            fields.append((b"Content-Length", announced[0]))
        lines = [b"HTTP/1.1 %d %b" % (status, reason), *(b"%b: %b" % field for field in fields), b"", b""]
        patience.check()
        answer_head(request, b"\r\n".join(lines))

    def _keep(self, link: Link) -> None:
        if link.reusable:
            link.used = True
            with self._lock:
                if len(self._kept) < _KEPT_LINKS:
                    self._kept.append(link)
                    return
        link.close()
