# SPDX-License-Identifier: GPL-2.0-only
"""What of the client can be shown without the driver: errors, buffers, response heads."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from pyharness.client.blob import BlobClient
from pyharness.client.buffers import Buffer, BufferPool, pages_touched
from pyharness.client.device import BlobDevice, Response, max_data
from pyharness.client.errors import (
    BadAddress,
    DeviceError,
    DeviceGone,
    HostError,
    HostTimeout,
    InvalidRequest,
    NotABlobDevice,
    RequestRefused,
    ServiceUnreachable,
    TooManyPages,
    device_error,
    host_error,
)
from pyharness.client.http import parse_answer, request_head
from pyharness.client.isolated import IsolatedDevice
from pyharness.vsp.wire import Status

PAGE = mmap.PAGESIZE


def test_real_ioctl_on_something_else_is_enotty() -> None:
    with BlobDevice("/dev/null") as device, pytest.raises(NotABlobDevice) as caught:
        device.request(b"head", data_out=b"data")
    assert caught.value.errno == errno.ENOTTY
    assert "hv_azure_blob" in str(caught.value)
    assert caught.value.filename == "/dev/null"


def test_closed_device() -> None:
    device = BlobDevice("/dev/null")
    device.close()
    device.close()
    with pytest.raises(ValueError, match="descriptor"):
        device.request(b"head")


def test_node_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        BlobDevice(tmp_path / "azure_blob")


def test_node_is_not_inherited_by_programs() -> None:
    with BlobDevice("/dev/null") as device:
        assert not os.get_inheritable(device.fileno())


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENODEV, DeviceGone),
        (errno.EINVAL, InvalidRequest),
        (errno.EFAULT, BadAddress),
        (errno.EPERM, DeviceError),
    ],
)
def test_errno_to_exception(number: int, kind: type[DeviceError]) -> None:
    error = device_error(number, "/dev/azure_blob")
    assert type(error) is kind
    assert isinstance(error, OSError)
    assert error.errno == number
    assert kind.advice in str(error)


def test_data_that_does_not_fit_is_not_sent() -> None:
    with BlobDevice("/dev/null") as device, pytest.raises(ValueError, match="10 bytes to send in a data buffer of 9"):
        device.request(b"head", data_out=b"0123456789", data_in=bytearray(9))


def test_prepared_data_that_does_not_fit() -> None:
    with BlobDevice("/dev/null") as device, pytest.raises(ValueError, match="10 bytes to send in a data buffer of 9"):
        device.prepare(b"head", bytearray(9), valid=10)


def test_no_memory_of_the_caller_is_kept() -> None:
    room = bytearray(9)
    with BlobDevice("/dev/null") as device:
        with suppress(NotABlobDevice):
            device.request(b"head", data_in=room)
        # Raises BufferError while anyone has a view of it.
        room.extend(b"more")


def test_too_many_pages_is_told_from_other_invalid_requests() -> None:
    assert type(device_error(errno.EINVAL, "", too_many_pages=True)) is TooManyPages
    assert type(device_error(errno.EFAULT, "", too_many_pages=True)) is BadAddress


@pytest.mark.parametrize(
    ("head", "response", "pages"), [(1, 1, 8190), (PAGE, PAGE, 8190), (PAGE + 1, PAGE, 8189), (100, 16384, 8187)]
)
def test_largest_data_buffer(head: int, response: int, pages: int) -> None:
    assert max_data(head, response) == pages * PAGE


@pytest.mark.parametrize(
    ("status", "kind", "sent"),
    [
        (0xC000000D, RequestRefused, False),
        (0xC0000236, ServiceUnreachable, False),
        (0xC00000B5, HostTimeout, True),
        (0xC0001234, HostError, True),
    ],
)
def test_host_status(status: int, kind: type[HostError], sent: bool) -> None:
    assert Response(0, b"x").check().head == b"x"
    with pytest.raises(HostError, match=f"{status:#x}") as caught:
        Response(status, b"").check()
    assert type(caught.value) is kind
    assert not isinstance(caught.value, OSError)
    assert (caught.value.status, caught.value.sent) == (status, sent)
    assert kind.advice in str(caught.value)


def test_client_and_vsp_name_statuses_alike() -> None:
    """ACCESS_VIOLATION is a guest's doing that gave memory which it cannot write itself: it has no name for it."""
    unnamed = {Status.SUCCESS, Status.ACCESS_VIOLATION}
    assert {host_error(status).name for status in Status if status not in unnamed} == {
        status.name for status in Status if status not in unnamed
    }


def test_isolated_device() -> None:
    """What the driver says comes through the other process, which is replaced when it was ended."""
    with IsolatedDevice("/dev/null") as device:
        for _ in range(2):
            with pytest.raises(NotABlobDevice, match="/dev/null"):
                device.request(b"head", data_out=b"data", data_in=bytearray(9))
            device.cancel()
        with pytest.raises(ValueError, match="10 bytes to send in a data buffer of 9"):
            device.request(b"head", data_out=b"0123456789", data_in=bytearray(9))
        with pytest.raises(TooManyPages):
            device.request(b"head", data_in=bytearray(max_data(4) + 1))
    with pytest.raises(ValueError, match="closed"):
        device.request(b"head")


@pytest.mark.parametrize(
    ("address", "length", "pages"),
    [(0, 0, 0), (4095, 0, 0), (0, 1, 1), (4095, 1, 1), (4095, 2, 2), (0, 4096, 1), (1, 4096, 2), (8191, 4098, 3)],
)
def test_pages_touched(address: int, length: int, pages: int) -> None:
    assert pages_touched(address, length) == pages


def test_buffer_is_page_aligned_and_in_place() -> None:
    buffer = Buffer(PAGE + 1)
    assert len(buffer) == 2 * PAGE
    assert buffer.address % PAGE == 0
    buffer.view[:3] = b"abc"
    assert ctypes.string_at(buffer.address, 3) == b"abc"
    buffer.close()


def test_pool_gives_the_same_memory_again() -> None:
    pool = BufferPool()
    first = pool.take(5000)
    second = pool.take(5000)
    assert first.address != second.address
    pool.give(first)
    assert pool.take(8192) is first
    assert pool.take(1) is not first
    assert len(pool.take(0)) == PAGE


def test_pool_keeps_no_more_than_told() -> None:
    pool = BufferPool(keep_bytes=PAGE)
    buffers = [pool.take(PAGE) for _ in range(2)]
    for buffer in buffers:
        pool.give(buffer)
    assert pool.take(PAGE) is buffers[0]
    with pytest.raises(ValueError, match="released"):
        len(buffers[1].view)


def test_pool_is_safe_under_threads() -> None:
    pool = BufferPool()
    wrong: list[int] = []

    def use(mark: int) -> None:
        for turn in range(300):
            with pool.borrow(PAGE << turn % 3) as buffer:
                buffer.view[:2] = bytes([mark, turn % 251])
                if bytes(buffer.view[:2]) != bytes([mark, turn % 251]):
                    wrong.append(mark)

    threads = [threading.Thread(target=use, args=(mark,)) for mark in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_answer_head() -> None:
    answer = parse_answer(b'HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nETag:  "x" \r\n\r\n')
    assert (answer.status, answer.reason, answer.length) == (206, "Partial Content", 5)
    assert answer.headers == {"content-length": "5", "etag": '"x"'}


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"\0\xff",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    ],
)
def test_what_is_no_answer_head(head: bytes) -> None:
    with pytest.raises(ValueError, match="response head"):
        parse_answer(head)


def test_answer_head_with_a_name_twice() -> None:
    answer = parse_answer(b"HTTP/1.1 200 OK\r\nVary: a\r\nvary: b\r\n\r\n")
    assert answer.headers == {"vary": "a, b"}


def test_request_head() -> None:
    head = request_head("PUT", "/a%20b?c=d", [("Host", "h"), ("x-ms-meta-a", "b \u00fc")])
    assert head == b"PUT /a%20b?c=d HTTP/1.1\r\nHost: h\r\nx-ms-meta-a: b \xfc\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        ("GET /", "/", ("A", "b")),
        ("", "/", ("A", "b")),
        ("GET", "/a b", ("A", "b")),
        ("GET", "/a\r\nB: c", ("A", "b")),
        ("GET", "/", ("A", "b\r\nC: d")),
        ("GET", "/", ("A\n", "b")),
        ("GET", "/", ("", "b")),
        ("GET", "/", ("A", "\u0416")),
    ],
)
def test_nothing_slips_into_a_request_head(method: str, target: str, header: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"request line|header"):
        request_head(method, target, [header])


def test_chunk_must_fit_into_a_request() -> None:
    with BlobDevice("/dev/null") as device:
        for size in (0, -1, (31 << 20) + 1):
            with pytest.raises(ValueError, match="chunk_bytes"):
                BlobClient(device, chunk_bytes=size)
