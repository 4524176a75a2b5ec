# SPDX-License-Identifier: GPL-2.0-only
"""Azure's SDK over the device: pass `transport=AzureBlobDeviceTransport()` to a client of azure-storage-blob.

Needs azure-core, and nothing else of what the SDK needs. What another attempt may mend is raised as an `AzureError`,
because the SDK's retry policy repeats all of those; what none can mend is not one: `RequestTooLarge`, `HostError`,
`DeviceError`.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from os import PathLike
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

from azure.core.exceptions import (
    AzureError,
    DecodeError,
    ServiceRequestError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
    StreamClosedError,
)
from azure.core.pipeline.transport import HttpResponse, HttpTransport
from azure.core.rest import HttpRequest as RestRequest

# "An implementation that each of the sync transport responses can be built on", which the SDK gives no other name.
from azure.core.rest._http_response_impl import HttpResponseImpl
from azure.core.utils import CaseInsensitiveDict

from pyharness.client.buffers import Buffer, BufferPool
from pyharness.client.device import DEFAULT_PATH, BlobDevice, max_data
from pyharness.client.errors import (
    AnswerLost,
    BadAddress,
    DeviceError,
    DeviceGone,
    HostError,
    HostTimeout,
    Interrupted,
    InvalidRequest,
    NotABlobDevice,
    PinLimitExceeded,
    RequestRefused,
    ResponseTooLarge,
    ServiceUnreachable,
    WrongCredentials,
)
from pyharness.client.http import Answer, parse_answer, request_head

SDK_OPTIONS: Mapping[str, int] = {"max_single_put_size": 31 << 20, "max_single_get_size": 31 << 20}
"""For a client of the SDK, whose own defaults (64 and 32 MiB) exceed a request; those for blocks and chunks do not."""

_CONNECTION_TIMEOUT_S = 20.0
_READ_TIMEOUT_S = 60.0
_RESPONSE_ROOM = 16 << 10
"""Metadata alone may have 8 KiB."""
_ROOM = {"HEAD": 0, "GET": 64 << 10, "POST": 1 << 20}
_OTHER_ROOM = 16 << 10
_FIRST_ROOM = 4 << 20
"""What the first request for a range offers at most: a range says little of how much there is."""
_BLOCK = 4 << 20
_SAFE = "!#$%&'()*+,/:;=?@[]~"
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_MAX_U32 = 0xFFFFFFFF
_TOO_LARGE = 413

_OPTION_OF_COMP = {"block": "max_block_size", "appendblock": "max_block_size", "page": "max_page_size"}

_FINAL = (
    RequestRefused,
    ResponseTooLarge,
    NotABlobDevice,
    WrongCredentials,
    BadAddress,
    InvalidRequest,
)
_AS_AZURE: tuple[tuple[type[Exception], type[AzureError]], ...] = (
    (HostTimeout, ServiceResponseTimeoutError),
    (ServiceUnreachable, ServiceRequestError),
    (HostError, ServiceResponseError),
    (PinLimitExceeded, ServiceRequestError),
    (DeviceGone, ServiceResponseError),
    (Interrupted, ServiceResponseError),
    (AnswerLost, ServiceResponseError),
)


class RequestTooLarge(ValueError):
    """A body that one request cannot carry; the message names the option of the SDK that makes it smaller."""


class _Body:
    """A response body in a borrowed buffer, which goes back to the pool when the response is closed."""

    def __init__(self, pool: BufferPool, buffer: Buffer | None, length: int) -> None:
        self._pool = pool
        self._buffer = buffer
        self._length = length
        self._kept: bytes | None = None if length else b""

    @property
    def closed(self) -> bool:
        """Whether the bytes are gone."""
        return self._buffer is None and self._kept is None

    def keep(self) -> None:
        """Have the bytes outlive `close`."""
        if self._kept is None and self._buffer is not None:
            self._kept = self._buffer.view[: self._length].tobytes()

    def pieces(self) -> Iterator[bytes]:
        """Copies, so that they outlive the buffer."""
        for start in range(0, self._length, _BLOCK):
            if self._kept is not None:
                yield self._kept[start : start + _BLOCK]
            elif self._buffer is not None:
                yield self._buffer.view[start : min(start + _BLOCK, self._length)].tobytes()

    def close(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self._pool.give(buffer)


class _Stream:
    """What `stream_download` returns: the body's bytes, decompressed if that is wanted."""

    def __init__(self, pipeline: object, response: Any, *, decompress: bool = True) -> None:
        self.request = response.request
        self.response = response
        self.content_length = int(response.headers.get("Content-Length", 0))
        body: _Body = response.internal_response
        if body.closed:
            raise StreamClosedError(response)
        encoding = response.headers.get("Content-Encoding", "").lower()
        packed = decompress and encoding in ("gzip", "deflate")
        self._pieces = _unpacked(body.pieces()) if packed else body.pieces()

    def __len__(self) -> int:
        return self.content_length

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._pieces)
        except StopIteration:
            self.response.internal_response.close()
            raise


def _unpacked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Of gzip or zlib."""
    unpacker = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
    try:
        for piece in pieces:
            yield unpacker.decompress(piece)
        yield unpacker.flush()
    except zlib.error as error:
        raise DecodeError(f"the body is not what its Content-Encoding says: {error}", error=error) from error


def _headers_of(answer: Answer) -> MutableMapping[str, str]:
    """Any case finds them, and they show the case that they came in."""
    return CaseInsensitiveDict((name, answer.headers[name.lower()]) for name, _ in answer.fields)


class _RestResponse(HttpResponseImpl):
    def __init__(self, request: Any, answer: Answer, body: _Body) -> None:
        headers = _headers_of(answer)
        super().__init__(
            request=request,
            internal_response=body,
            block_size=_BLOCK,
            status_code=answer.status,
            reason=answer.reason,
            content_type=headers.get("content-type"),
            headers=headers,
            stream_download_generator=_Stream,
        )

    def read(self) -> bytes:
        """The whole body, which can then be read as often as wanted: the SDK does when it checks content."""
        self._internal_response.keep()
        if self._content is None:
            self._content = b"".join(_Stream(None, self))
        self.close()
        self._is_stream_consumed = True
        return self._content


class _LegacyResponse(HttpResponse):
    def __init__(self, request: Any, answer: Answer, body: _Body) -> None:
        super().__init__(request, body, _BLOCK)
        self.status_code = answer.status
        self.reason = answer.reason
        self.headers = _headers_of(answer)
        self.content_type = answer.headers.get("content-type")
        self._content: bytes | None = None

    def body(self) -> bytes:
        """The whole body."""
        self.internal_response.keep()
        if self._content is None:
            self._content = b"".join(_Stream(None, self))
        return self._content

    def stream_download(self, pipeline: Any, **kwargs: Any) -> Iterator[bytes]:
        """The body in pieces."""
        return _Stream(pipeline, self, **kwargs)


class _Loaded(NamedTuple):
    """A request's body in a buffer that has room for the answer's too."""

    buffer: Buffer | None
    size: int
    room: int


class AzureBlobDeviceTransport(HttpTransport[Any, Any]):
    """Carries the SDK's requests through a device node. Clients and threads may share it.

    The host, and not this, decides where the blob service is: of a client's URL only path, query and Host are sent. The
    SDK's `connection_timeout` and `read_timeout` add up to what the host is given for a request.
    """

    def __init__(
        self,
        device: str | PathLike[str] | BlobDevice = DEFAULT_PATH,
        *,
        connection_timeout: float = _CONNECTION_TIMEOUT_S,
        read_timeout: float = _READ_TIMEOUT_S,
    ) -> None:
        """A BlobDevice stays the caller's; a node is opened with the first request, and again when it had gone.

        Timeouts in seconds, for requests that bring none.
        """
        self._path = None if isinstance(device, BlobDevice) else device
        self._device = device if isinstance(device, BlobDevice) else None
        self._pool = device.pool if isinstance(device, BlobDevice) else BufferPool()
        self._gone: list[BlobDevice] = []
        self._lock = threading.Lock()
        self._timeouts = (connection_timeout, read_timeout)

    def open(self) -> None:
        """Open the node, unless that is done. Raises ServiceRequestError."""
        self._opened()

    def close(self) -> None:
        """Close the node; responses that are not read yet keep their buffers."""
        with self._lock:
            if self._path is None:
                return
            for device in (*self._gone, *filter(None, [self._device])):
                device.close()
            self._gone, self._device = [], None

    def __enter__(self) -> AzureBlobDeviceTransport:
        self.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()

    def send(self, request: Any, *, stream: bool = False, **kwargs: Any) -> Any:
        """Send a request of the SDK, of its older or its newer kind, and return a response of that kind.

        Raises AzureError for what another attempt may mend, else RequestTooLarge, HostError or DeviceError.
        """
        connect, read = self._timeouts
        seconds = kwargs.pop("connection_timeout", connect) + kwargs.pop("read_timeout", read)
        timeout_ms = min(max(1, round(seconds * 1000)), _MAX_U32)
        head_of, limit = _head_of(request)
        loaded = self._load(request, limit)
        try:
            head = head_of(loaded.size)
            answer = self._ask(request, head, loaded, timeout_ms)
            if answer.status == _TOO_LARGE and answer.length > loaded.room and "x-ms-error-code" not in answer.headers:
                # The host's word, not the service's: this is how much room the answer needs.
                if request.method != "GET" or answer.length > limit:
                    raise RequestTooLarge(_advice(request, answer.length, limit, "answer"))
                self._give(loaded.buffer)
                loaded = _Loaded(None, 0, 0)
                loaded = _Loaded(self._pool.take(answer.length), 0, answer.length)
                answer = self._ask(request, head, loaded, timeout_ms)
        except BaseException:
            self._give(loaded.buffer)
            raise
        if request.method == "HEAD" or not answer.length or answer.length > loaded.room:
            self._give(loaded.buffer)
            loaded, length = _Loaded(None, 0, 0), 0
        else:
            length = answer.length
        body = _Body(self._pool, loaded.buffer, length)
        if not isinstance(request, RestRequest):
            return _LegacyResponse(request, answer, body)
        response = _RestResponse(request, answer, body)
        if not stream:
            response.read()
        return response

    # -- parts

    def _opened(self) -> BlobDevice:
        with self._lock:
            if self._device is None:
                try:
                    self._device = BlobDevice(self._path or DEFAULT_PATH, pool=self._pool)
                except OSError as error:
                    raise ServiceRequestError(f"the device cannot be opened: {error}", error=error) from error
            return self._device

    def _ask(self, request: Any, head: bytes, loaded: _Loaded, timeout_ms: int) -> Answer:
        device = self._opened()
        data = loaded.buffer.view[: max(loaded.room, loaded.size)] if loaded.buffer else None
        try:
            response = device.request(
                head,
                data_out=data[: loaded.size] if data is not None and loaded.size else None,
                data_in=data,
                timeout_ms=timeout_ms,
                response_size=_RESPONSE_ROOM,
            )
            response.check()
        except _FINAL:
            raise
        except (HostError, DeviceError) as error:
            if isinstance(error, DeviceGone):
                self._retire(device)
            for kind, azure in _AS_AZURE:
                if isinstance(error, kind):
                    raise azure(str(error), error=error) from error
            raise
        try:
            return parse_answer(response.head)
        except ValueError as error:
            raise ServiceResponseError(f"the host's answer is none: {error}", error=error) from error

    def _retire(self, device: BlobDevice) -> None:
        """Have the next request open the node again. Others may still be in the driver with this descriptor."""
        with self._lock:
            if self._path is not None and self._device is device:
                self._gone.append(device)
                self._device = None

    def _give(self, buffer: Buffer | None) -> None:
        if buffer is not None:
            self._pool.give(buffer)

    def _load(self, request: Any, limit: int) -> _Loaded:
        """The body, and room for the answer. Raises RequestTooLarge, and ServiceRequestError for a body too short."""
        data = request.data
        room = _room_of(request)
        if request.files or isinstance(data, dict):
            raise ValueError("a form is nothing that a blob service takes")
        if isinstance(data, str):
            data = data.encode()
        announced = request.headers.get("Content-Length")
        if hasattr(data, "read") and announced is not None:
            return self._load_stream(request, data, int(announced), room, limit)
        if data is None:
            data = b""
        elif hasattr(data, "read"):
            data = _gathered(iter(lambda: data.read(_BLOCK), b""), request, limit)
        elif not isinstance(data, bytes | bytearray | memoryview):
            data = _gathered(data, request, limit)
        source = memoryview(data).cast("B") if len(data) else memoryview(b"")
        if len(source) > limit:
            raise RequestTooLarge(_advice(request, len(source), limit, "body"))
        buffer = self._pool.take(max(len(source), room)) if source or room else None
        if buffer is not None:
            buffer.view[: len(source)] = source
        return _Loaded(buffer, len(source), room)

    def _load_stream(self, request: Any, data: Any, size: int, room: int, limit: int) -> _Loaded:
        """Read a stream of known length straight into the buffer."""
        if size > limit:
            raise RequestTooLarge(_advice(request, size, limit, "body"))
        buffer = self._pool.take(max(size, room))
        at = 0
        try:
            while at < size:
                piece = data.read(size - at)
                if not piece:
                    raise ServiceRequestError(f"the body ended after {at} of {size} bytes")
                buffer.view[at : at + len(piece)] = piece
                at += len(piece)
        except BaseException:
            self._pool.give(buffer)
            raise
        return _Loaded(buffer, size, room)


def _gathered(pieces: Iterable[bytes], request: Any, limit: int) -> bytes:
    """All of a body whose length is not known. Raises RequestTooLarge as soon as it is."""
    gathered = bytearray()
    for piece in pieces:
        gathered += piece
        if len(gathered) > limit:
            raise RequestTooLarge(_advice(request, len(gathered), limit, "body"))
    return bytes(gathered)


def _head_of(request: Any) -> tuple[Callable[[int], bytes], int]:
    """What makes the head for a body of so many bytes, and how large a data buffer may be beside it."""
    url = urlsplit(request.url)
    target = quote((url.path or "/") + (f"?{url.query}" if url.query else ""), safe=_SAFE)
    fields = {str(name): str(value) for name, value in request.headers.items()}
    for name in list(fields):
        if name.lower() in ("content-length", "transfer-encoding"):
            del fields[name]
    if not any(name.lower() == "host" for name in fields):
        fields = {"Host": url.netloc.rpartition("@")[2], **fields}

    def head(size: int) -> bytes:
        length = {"Content-Length": str(size)} if size or request.method not in ("GET", "HEAD") else {}
        return request_head(request.method, target, {**fields, **length}.items())

    return head, max_data(len(head(_MAX_U32)), _RESPONSE_ROOM)


def _room_of(request: Any) -> int:
    """How many bytes of an answer to expect."""
    room = _ROOM.get(request.method, _OTHER_ROOM)
    asked = _RANGE.fullmatch(request.headers.get("x-ms-range") or request.headers.get("Range") or "")
    if request.method == "GET" and asked:
        room = min(max(room, int(asked[2]) - int(asked[1]) + 1), _FIRST_ROOM)
    return room


def _advice(request: Any, size: int, limit: int, what: str) -> str:
    """Why a body is too large, and which option of the SDK is for that."""
    if what == "answer":
        option = "max_single_get_size and max_chunk_get_size"
    else:
        comp = parse_qs(urlsplit(request.url).query).get("comp", [""])[0]
        option = _OPTION_OF_COMP.get(comp, "max_single_put_size")
    return f"the {what} has {size} bytes, a request carries {limit} at most: give the client a smaller {option}"
