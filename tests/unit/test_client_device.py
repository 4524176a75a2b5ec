# SPDX-License-Identifier: GPL-2.0-only
"""What of the client can be shown without the driver: errors, buffers, response heads."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from pathlib import Path

import pytest

from pyharness.client.blob import BlobClient, parse_answer
from pyharness.client.buffers import Buffer, BufferPool, pages_touched
from pyharness.client.device import (
    BadAddress,
    BlobDevice,
    DeviceError,
    DeviceGone,
    HostError,
    InvalidRequest,
    NotABlobDevice,
    Response,
    device_error,
)

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


def test_host_status() -> None:
    assert Response(0, b"x").check().head == b"x"
    with pytest.raises(HostError, match="0xc000000d"):
        Response(0xC000000D, b"").check()


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


@pytest.mark.parametrize("head", [b"", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\0\xff", b"HTTP/1.1 200 OK"])
def test_what_is_no_answer_head(head: bytes) -> None:
    with pytest.raises(ValueError, match="response head"):
        parse_answer(head)


def test_chunk_must_fit_into_a_request() -> None:
    with BlobDevice("/dev/null") as device:
        for size in (0, -1, (31 << 20) + 1):
            with pytest.raises(ValueError, match="chunk_bytes"):
                BlobClient(device, chunk_bytes=size)
