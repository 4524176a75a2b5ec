# SPDX-License-Identifier: GPL-2.0-only
"""What the transport makes of requests and of failures, against a device that does what the test says."""

from __future__ import annotations

import errno
import io
import mmap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from azure.core.exceptions import (
    AzureError,
    ServiceRequestError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
    StreamClosedError,
)
from azure.core.pipeline.transport import HttpRequest as LegacyRequest
from azure.core.rest import HttpRequest
from azure.storage.blob import BlobServiceClient

from pyharness.client.azure import SDK_OPTIONS, AzureBlobDeviceTransport, RequestTooLarge
from pyharness.client.buffers import Buffer, BufferPool
from pyharness.client.device import (
    DEFAULT_TIMEOUT_MS,
    BlobDevice,
    Readable,
    Response,
    Writable,
    as_view,
    max_data,
)
from pyharness.client.errors import device_error, host_error
from pyharness.vsp.wire import Status

URL = "http://account.example/c/b"
OK = b"HTTP/1.1 200 OK\r\n"


class Call(NamedTuple):
    """What reached the device."""

    head: bytes
    sent: bytes
    room: int
    timeout_ms: int


class CountingPool(BufferPool):
    """Knows how many buffers are out."""

    out = 0

    def take(self, size: int) -> Buffer:
        self.out += 1
        return super().take(size)

    def give(self, buffer: Buffer) -> None:
        self.out -= 1
        super().give(buffer)


class ScriptedDevice(BlobDevice):
    """Answers with a head and a body, or raises."""

    def __init__(self, *answers: tuple[bytes, bytes] | Exception) -> None:
        self.path, self._fd, self.pool = "scripted", -1, CountingPool()
        self.calls: list[Call] = []
        self._answers = list(answers)

    def request(
        self,
        head: Readable,
        *,
        data_out: Readable | None = None,
        data_in: Writable | None = None,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
        response_size: int = mmap.PAGESIZE,
        guid: uuid.UUID | None = None,
    ) -> Response:
        room = as_view(data_in) if data_in is not None else memoryview(bytearray())
        sent = bytes(as_view(data_out)) if data_out is not None else b""
        self.calls.append(Call(bytes(as_view(head)), sent, len(room), timeout_ms))
        answer = self._answers.pop(0) if self._answers else (OK + b"\r\n", b"")
        if isinstance(answer, Exception):
            raise answer
        room[: len(answer[1])] = answer[1]
        return Response(0, answer[0])


def sized(body: bytes, more: bytes = b"") -> tuple[bytes, bytes]:
    return OK + b"Content-Length: %d\r\n%b\r\n" % (len(body), more), body


def borrowed(device: ScriptedDevice) -> int:
    assert isinstance(device.pool, CountingPool)
    return device.pool.out


# -- requests


def test_head_is_of_the_url_and_the_headers() -> None:
    device = ScriptedDevice()
    request = HttpRequest("GET", "https://account.example:8443/c/ü%20b?comp=x&y=a/b", headers={"X-Ms-Date": "now"})
    AzureBlobDeviceTransport(device).send(request)
    assert device.calls[0].head == (
        b"GET /c/%C3%BC%20b?comp=x&y=a/b HTTP/1.1\r\nHost: account.example:8443\r\nX-Ms-Date: now\r\n\r\n"
    )


def pieces() -> Iterator[bytes]:
    yield b"ab"
    yield b""
    yield b"c"


class Trickle(io.RawIOBase):
    """Gives a byte at a time, and has no length."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self._content.read(1)


@pytest.mark.parametrize("kind", [HttpRequest, LegacyRequest])
@pytest.mark.parametrize(
    ("make", "headers"),
    [
        (lambda: b"abc", {}),
        (lambda: "abc", {}),
        (lambda: io.BytesIO(b"abc"), {}),
        (lambda: io.BytesIO(b"abcdef"), {"Content-Length": "3"}),
        (lambda: Trickle(b"abc"), {}),
        (lambda: Trickle(b"abc"), {"content-length": "3"}),
        (pieces, {}),
        (pieces, {"Transfer-Encoding": "chunked"}),
    ],
)
def test_kinds_of_bodies(kind: Callable[..., Any], make: Callable[[], Any], headers: dict[str, str]) -> None:
    device = ScriptedDevice()
    AzureBlobDeviceTransport(device).send(kind("PUT", URL, headers=headers, data=make()))
    assert device.calls[0].sent == b"abc"
    assert device.calls[0].head.lower().count(b"content-length: 3\r\n") == 1
    assert b"transfer-encoding" not in device.calls[0].head.lower()
    assert borrowed(device) == 0


def test_request_without_a_body_says_so() -> None:
    device = ScriptedDevice()
    transport = AzureBlobDeviceTransport(device)
    for method in ("PUT", "DELETE", "POST", "GET", "HEAD"):
        transport.send(HttpRequest(method, URL))
    said = [call.head.endswith(b"\r\nContent-Length: 0\r\n\r\n") for call in device.calls]
    assert said == [True, True, True, False, False]


def test_stream_that_ends_early_is_not_sent() -> None:
    device = ScriptedDevice()
    stream: Any = io.BytesIO(b"abc")
    request = LegacyRequest("PUT", URL, headers={"Content-Length": "5"}, data=stream)
    with pytest.raises(ServiceRequestError, match="3 of 5"):
        AzureBlobDeviceTransport(device).send(request)
    assert not device.calls
    assert borrowed(device) == 0


@pytest.mark.parametrize(
    ("query", "option"),
    [
        ("", "max_single_put_size"),
        ("?comp=block&blockid=QQ", "max_block_size"),
        ("?comp=appendblock", "max_block_size"),
        ("?comp=page", "max_page_size"),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_body_that_no_request_carries(query: str, option: str, streamed: bool) -> None:
    device = ScriptedDevice()
    content = bytes(32 << 20)
    headers = {"Content-Length": str(len(content))}
    data: Any = io.BytesIO(content) if streamed else content
    with pytest.raises(RequestTooLarge, match=f"33554432 bytes.*{option}") as caught:
        AzureBlobDeviceTransport(device).send(LegacyRequest("PUT", URL + query, headers=headers, data=data))
    assert not isinstance(caught.value, AzureError), "the SDK would try it again"
    assert not device.calls
    assert borrowed(device) == 0


def test_largest_body() -> None:
    device = ScriptedDevice()
    size = max_data(100, 16 << 10)
    AzureBlobDeviceTransport(device).send(LegacyRequest("PUT", URL, data=bytes(size)))
    assert len(device.calls[0].sent) == size


def test_options_for_the_sdk_fit() -> None:
    device = ScriptedDevice()
    transport = AzureBlobDeviceTransport(device)
    for size in SDK_OPTIONS.values():
        transport.send(LegacyRequest("PUT", URL, headers={"x-ms-meta-a": "b" * 2000}, data=bytes(size)))
    assert len(device.calls) == len(SDK_OPTIONS)


# -- answers


@pytest.mark.parametrize("kind", [HttpRequest, LegacyRequest])
def test_body_in_pieces(kind: Callable[..., Any]) -> None:
    content = bytes(range(256)) * 40_000
    device = ScriptedDevice(sized(content[: 4 << 20]), sized(content[: 4 << 20]))
    transport = AzureBlobDeviceTransport(device)
    request = kind("GET", URL, headers={"x-ms-range": f"bytes=0-{len(content) - 1}"})
    response = transport.send(request, stream=True)
    assert b"".join(response.stream_download(None)) == content[: 4 << 20]
    assert borrowed(device) == 0
    whole = transport.send(request, stream=True)
    assert (whole.content if kind is HttpRequest and whole.read() else whole.body()) == content[: 4 << 20]


def test_response_that_is_closed_unread_gives_its_buffer_back() -> None:
    device = ScriptedDevice(sized(b"x" * 100))
    response = AzureBlobDeviceTransport(device).send(HttpRequest("GET", URL), stream=True)
    assert borrowed(device) == 1
    response.close()
    assert borrowed(device) == 0
    with pytest.raises(StreamClosedError):
        list(response.stream_download(None))


def test_answer_that_needs_more_room_is_asked_for_again() -> None:
    needs = b"HTTP/1.1 413 Too Large\r\nContent-Length: 300000\r\n\r\n"
    device = ScriptedDevice((needs, b""), sized(b"y" * 300_000))
    response = AzureBlobDeviceTransport(device).send(HttpRequest("GET", URL + "?comp=list"))
    assert response.content == b"y" * 300_000
    assert [call.room for call in device.calls] == [64 << 10, 300_000]
    assert borrowed(device) == 0


@pytest.mark.parametrize(("method", "length"), [("GET", 33 << 20), ("POST", 2 << 20)])
def test_answer_that_no_request_carries(method: str, length: int) -> None:
    needs = b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n" % length
    device = ScriptedDevice((needs, b""))
    with pytest.raises(RequestTooLarge, match="max_single_get_size and max_chunk_get_size"):
        AzureBlobDeviceTransport(device).send(HttpRequest(method, URL))
    assert len(device.calls) == 1
    assert borrowed(device) == 0


def test_413_of_the_service_is_passed_on() -> None:
    answer = b"HTTP/1.1 413 Too Large\r\nx-ms-error-code: RequestBodyTooLarge\r\nContent-Length: 300000\r\n\r\n"
    device = ScriptedDevice((answer, b""))
    response = AzureBlobDeviceTransport(device).send(HttpRequest("PUT", URL))
    assert (response.status_code, response.content) == (413, b"")
    assert len(device.calls) == 1


@pytest.mark.parametrize(
    ("asked", "room"),
    [("bytes=0-33554431", 4 << 20), ("bytes=10-99999", 99_990), ("bytes=0-9", 64 << 10), ("", 64 << 10)],
)
def test_room_that_a_range_is_offered(asked: str, room: int) -> None:
    device = ScriptedDevice()
    AzureBlobDeviceTransport(device).send(HttpRequest("GET", URL, headers={"x-ms-range": asked}))
    assert device.calls[0].room == room


# -- failures


def test_timeouts_add_up() -> None:
    device = ScriptedDevice()
    transport = AzureBlobDeviceTransport(device, connection_timeout=1.5, read_timeout=2)
    transport.send(HttpRequest("GET", URL))
    transport.send(HttpRequest("GET", URL), connection_timeout=0.25, read_timeout=0.5)
    transport.send(HttpRequest("GET", URL), read_timeout=10**9)
    assert [call.timeout_ms for call in device.calls] == [3500, 750, 0xFFFFFFFF]


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (host_error(Status.IO_TIMEOUT), ServiceResponseTimeoutError),
        (host_error(Status.CONNECTION_REFUSED), ServiceRequestError),
        (host_error(Status.CONNECTION_RESET), ServiceResponseError),
        (host_error(Status.CONNECTION_DISCONNECTED), ServiceResponseError),
        (host_error(Status.INTERNAL_ERROR), ServiceResponseError),
        (device_error(errno.ENODEV, "n"), ServiceResponseError),
        (device_error(errno.EIO, "n"), ServiceResponseError),
        (device_error(errno.EINTR, "n"), ServiceResponseError),
        (device_error(errno.ENOMEM, "n"), ServiceRequestError),
    ],
)
def test_what_another_attempt_may_mend(failure: Exception, raised: type[AzureError]) -> None:
    device = ScriptedDevice(failure)
    transport = AzureBlobDeviceTransport(device)
    with pytest.raises(AzureError) as caught:
        transport.send(LegacyRequest("PUT", URL, data=b"abc"))
    assert type(caught.value) is raised
    assert caught.value.inner_exception is failure
    assert borrowed(device) == 0
    assert transport.send(LegacyRequest("PUT", URL, data=b"abc")).status_code == 200


@pytest.mark.parametrize(
    "failure",
    [
        host_error(Status.INVALID_PARAMETER),
        host_error(Status.BUFFER_TOO_SMALL),
        device_error(errno.ENOTTY, "n"),
        device_error(errno.EACCES, "n"),
        device_error(errno.EFAULT, "n"),
        device_error(errno.EINVAL, "n"),
        device_error(errno.EPERM, "n"),
    ],
)
def test_what_no_attempt_mends(failure: Exception) -> None:
    """The SDK does not try it again, with as many retries as it has by default."""
    device = ScriptedDevice(failure)
    client = BlobServiceClient("http://account.example", transport=AzureBlobDeviceTransport(device))
    with pytest.raises(type(failure)):
        client.get_blob_client("c", "b").get_blob_properties()
    assert len(device.calls) == 1
    assert borrowed(device) == 0


def test_answer_that_is_none() -> None:
    device = ScriptedDevice((b"\0\0", b""))
    with pytest.raises(ServiceResponseError, match="not a response head"):
        AzureBlobDeviceTransport(device).send(HttpRequest("GET", URL))
    assert borrowed(device) == 0


def test_the_sdk_tries_again_what_it_may() -> None:
    made = b'HTTP/1.1 201 Created\r\nETag: "1"\r\nLast-Modified: Sat, 01 Nov 2025 00:00:00 GMT\r\n\r\n'
    device = ScriptedDevice(host_error(Status.CONNECTION_REFUSED), host_error(Status.IO_TIMEOUT), (made, b""))
    transport = AzureBlobDeviceTransport(device)
    at_once: dict[str, Any] = {"initial_backoff": 0, "increment_base": 0, "random_jitter_range": 0}
    client = BlobServiceClient("http://account.example", transport=transport, **at_once)
    client.get_blob_client("c", "b").upload_blob(io.BytesIO(b"abc"), overwrite=True)
    assert [call.sent for call in device.calls] == [b"abc"] * 3


# -- the node


def test_node_that_cannot_be_opened_yet(tmp_path: Path) -> None:
    transport = AzureBlobDeviceTransport(tmp_path / "azure_blob")
    with pytest.raises(ServiceRequestError, match="cannot be opened"):
        transport.send(HttpRequest("GET", URL))


def test_node_that_had_gone_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def request(device: BlobDevice, *args: object, **kwargs: object) -> Response:
        if len(opened) == 1:
            raise device_error(errno.ENODEV, device.path)
        return Response(0, OK + b"\r\n")

    class Node(BlobDevice):
        def __init__(self, path: str, *, pool: BufferPool) -> None:
            super().__init__("/dev/null", pool=pool)
            opened.append(path)

    monkeypatch.setattr(Node, "request", request)
    monkeypatch.setattr("pyharness.client.azure.BlobDevice", Node)
    with AzureBlobDeviceTransport("/dev/azure_blob7") as transport:
        with pytest.raises(ServiceResponseError):
            transport.send(HttpRequest("GET", URL))
        assert transport.send(HttpRequest("GET", URL)).status_code == 200
    assert opened == ["/dev/azure_blob7"] * 2
