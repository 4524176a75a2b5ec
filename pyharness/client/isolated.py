# SPDX-License-Identifier: GPL-2.0-only
"""Requests that can be given up.

Only a fatal signal ends a wait in the driver. So what a program may want to give up is asked by a process of its own,
over memory that both share; giving up kills that process. The host may still carry the request out, and still write to
that memory, which is therefore left to it: the next request gets another process and other memory.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from pyharness.client.abi import MAX_PAGES, AzBlobRequestSync
from pyharness.client.buffers import whole_pages
from pyharness.client.device import (
    DEFAULT_PATH,
    DEFAULT_TIMEOUT_MS,
    BlobDevice,
    Readable,
    Response,
    Writable,
    as_view,
    max_data,
)
from pyharness.client.errors import DeviceError, TooManyPages, device_error

_ORDER = struct.Struct("<5I16s")
"""Lengths of head, response, data and valid data, the timeout, the GUID."""
_OUTCOME = struct.Struct("<iIII")
"""errno, whether there were too many pages, status, length of the response."""
_MEMORY = MAX_PAGES * mmap.PAGESIZE
_START = "import sys; sys.path.insert(0, {top!r}); from pyharness.client.isolated import serve; serve({fds})"


class _Layout(NamedTuple):
    """Where in the shared memory the buffers lie, each from a page boundary on."""

    response: int
    data: int

    @classmethod
    def of(cls, head_size: int, response_size: int) -> _Layout:
        response = whole_pages(head_size)
        return cls(response, response + whole_pages(response_size))


class _Worker:
    """The process, and what is shared with it."""

    doomed = False

    def __init__(self, node: int) -> None:
        memory = os.memfd_create("azure-blob-request", os.MFD_CLOEXEC)
        self.socket, theirs = socket.socketpair()
        try:
            os.ftruncate(memory, _MEMORY)
            self.memory = mmap.mmap(memory, _MEMORY)
            fds = (node, memory, theirs.fileno())
            start = _START.format(top=str(Path(__file__).parents[2]), fds=", ".join(map(str, fds)))
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", start],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                # Not of the terminal's foreground: Ctrl-C is the caller's to act on.
                process_group=0,
            )
        except BaseException:
            self.socket.close()
            raise
        finally:
            os.close(memory)
            theirs.close()

    def receive(self, size: int) -> bytes:
        """Raises EOFError when the process has ended, TimeoutError."""
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def end(self) -> None:
        """Kill it and wait until it is gone: whatever it did in the driver has returned then."""
        self.process.kill()
        self.process.wait()
        self.socket.close()
        with suppress(BufferError):
            self.memory.close()


class IsolatedDevice:
    """One caller of the device that lives in a process of its own. Threads may share it; they take turns."""

    def __init__(self, path: str | os.PathLike[str] = DEFAULT_PATH) -> None:
        """The process starts with the first request. Raises OSError when the node cannot be opened."""
        self.path = os.fspath(path)
        self._node = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self._turn = threading.Lock()
        self._worker: _Worker | None = None

    def close(self) -> None:
        """End the process and close the node; a request in progress is given up."""
        self.cancel()
        with self._turn:
            if self._worker is not None:
                self._worker.end()
                self._worker = None
            if self._node >= 0:
                os.close(self._node)
                self._node = -1

    def __enter__(self) -> IsolatedDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def cancel(self) -> None:
        """Give up the request in progress, from any thread: its caller gets Interrupted. Without one, do nothing."""
        worker = self._worker
        if worker is not None:
            worker.doomed = True
            worker.process.kill()

    def request(
        self,
        head: Readable,
        *,
        data_out: Readable = b"",
        data_in: Writable | None = None,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
        response_size: int = mmap.PAGESIZE,
        guid: uuid.UUID | None = None,
        wait_s: float | None = None,
    ) -> Response:
        """As `BlobDevice.request`, but all data are copied, and the wait for the host has an end.

        The request is given up when `wait_s` seconds have passed, when `cancel` is called, and when the wait raises
        (KeyboardInterrupt): that leaves it unknown whether the host carries it out.

        Raises Interrupted when it was given up, what BlobDevice.request raises, and OSError when the process cannot be
        started.
        """
        sent = as_view(data_out)
        target = as_view(data_in) if data_in is not None else memoryview(bytearray())
        words = as_view(head)
        room = max(len(sent), len(target))
        if data_in is not None and len(sent) > len(target):
            raise ValueError(f"{len(sent)} bytes to send in a data buffer of {len(target)}")
        if room > max_data(len(words), response_size):
            raise device_error(errno.EINVAL, self.path, too_many_pages=True)
        order = _ORDER.pack(len(words), response_size, room, len(sent), timeout_ms, (guid or uuid.uuid4()).bytes_le)
        layout = _Layout.of(len(words), response_size)
        with self._turn:
            if self._node < 0:
                raise ValueError("the device is closed")
            if self._worker is not None and self._worker.doomed:
                self._worker.end()
                self._worker = None
            worker = self._worker = self._worker or _Worker(self._node)
            try:
                worker.memory[: len(words)] = words
                worker.memory[layout.data : layout.data + len(sent)] = sent
                worker.socket.settimeout(wait_s)
                worker.socket.sendall(order)
                number, too_many, status, length = _OUTCOME.unpack(worker.receive(_OUTCOME.size))
            except BaseException as error:
                self._worker = None
                worker.end()
                if isinstance(error, EOFError | OSError):
                    raise device_error(errno.EINTR, self.path) from None
                raise
            if number:
                raise device_error(number, self.path, too_many_pages=bool(too_many))
            with memoryview(worker.memory) as memory:
                target[:] = memory[layout.data : layout.data + len(target)]
                return Response(status, memory[layout.response : layout.response + length].tobytes())


def serve(node: int, memory: int, orders: int) -> None:
    """The process: make each request that is ordered, and die as soon as nobody listens any more."""
    mapping = mmap.mmap(memory, _MEMORY)
    base = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    device = BlobDevice.of(node)
    with socket.socket(fileno=orders) as channel:

        def carry_out(order: bytes) -> None:
            head_size, response_size, data_size, valid, timeout_ms, guid = _ORDER.unpack(order)
            layout = _Layout.of(head_size, response_size)
            sync = AzBlobRequestSync(
                timeout=timeout_ms,
                request_len=head_size,
                response_len=response_size,
                data_len=data_size,
                data_valid=valid,
                request_buffer=base,
                response_buffer=base + layout.response,
                data_buffer=base + layout.data,
            )
            ctypes.memmove(sync.guid, guid, len(guid))
            try:
                device.submit(sync)
                outcome = (0, False, sync.response.status, sync.response.response_len)
            except DeviceError as error:
                outcome = (error.errno or 0, isinstance(error, TooManyPages), 0, 0)
            channel.sendall(_OUTCOME.pack(*outcome))

        # This thread waits for orders and for the hang-up, which must be heard while another is in the driver.
        while order := channel.recv(_ORDER.size, socket.MSG_WAITALL):
            threading.Thread(target=carry_out, args=(order,)).start()
    os.kill(os.getpid(), signal.SIGKILL)
