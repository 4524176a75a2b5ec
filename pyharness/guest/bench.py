# SPDX-License-Identifier: GPL-2.0-only
"""Clients of the benchmark, a process each: the same requests through the driver's ioctl or over a TCP connection.

All paths send the same heads, read into the same page-aligned buffer and look at the same parts of the answer, so
that they differ in nothing but the way.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import multiprocessing
import os
import pickle
import re
import socket
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from pyharness.client.abi import AZURE_BLOB_IOCTL, AzBlobRequestSync
from pyharness.client.buffers import Buffer
from pyharness.client.device import BlobDevice, PreparedRequest, address_of
from pyharness.client.errors import host_error

T = TypeVar("T")

HOST = "10.0.2.2"
"""Where slirp has the host's loopback."""

_HEAD_ROOM = 64 << 10
_HEAD_END = b"\r\n\r\n"
_ANSWER = re.compile(rb"HTTP/1\.1 2\d\d .*?\r\nContent-Length: (\d+)\r\n", re.DOTALL | re.IGNORECASE)
_NO_SUCH_IOCTL = AZURE_BLOB_IOCTL + 1
_WARM_UP_BYTES = 4096
_UNIT = 4099
"""The period of the content, in bytes: a prime, so no two pages of a request are equal."""


class Setup(NamedTuple):
    """What every client needs to know."""

    served: str
    """The node of the device that a VSP serves."""
    floor: str
    """The node of the device that answers by itself."""
    largest: int
    """Bytes of the largest request."""


class Job(NamedTuple):
    """One cell of the benchmark."""

    path: str
    """A key of `_PATHS`."""
    op: str
    """A key of `_HEADS`."""
    size: int
    target: str
    """Of the request line, with {blob} for the blob's name."""
    port: int
    """Of the HTTP server on the host."""
    seconds: float
    """Each client begins no request after so long."""
    sampled: int
    """So many clients make one more request, all of whose bytes are hashed."""


class Sample(NamedTuple):
    """A request whose bytes are known: the blob, and what of its content is in the guest."""

    blob: str
    sha256: str


class Outcome(NamedTuple):
    """What one client did; times in nanoseconds of CLOCK_MONOTONIC."""

    began: int
    ended: int
    latencies: array[int]
    sample: Sample | None


class Figures(NamedTuple):
    """What the clients of a job did together."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    cpu_seconds: float
    """Of all the guest's CPUs."""
    samples: tuple[Sample, ...]


class Verified(NamedTuple):
    """What a client has written and read back, every byte of it hashed."""

    requests: int
    bytes: int
    wrong: int


Exchange = Callable[[], int]
"""Makes one request; the Content-Length of the answer. Raises OSError, HostError, ValueError."""


class _Path(Protocol):
    """A way to the store."""

    def prepare(self, head: bytes, data: memoryview, upload: bool) -> Exchange:
        """All that can be done once for a request that is made many times."""
        ...


class _Driver:
    """Through the driver, to the VSP."""

    def __init__(self, node: str) -> None:
        self._device = BlobDevice(node)

    def prepare(self, head: bytes, data: memoryview, upload: bool) -> Exchange:
        send = self._prepare(head, data, upload).send
        return lambda: _length(send().check().head)

    def _prepare(self, head: bytes, data: memoryview, upload: bool) -> PreparedRequest:
        return self._device.prepare(head, data, valid=len(data) if upload else 0)


class _Request(_Driver):
    """As `_Driver`, with nothing prepared: each request is laid out anew."""

    def prepare(self, head: bytes, data: memoryview, upload: bool) -> Exchange:
        device = self._device
        request = (
            partial(device.request, head, data_out=data) if upload else partial(device.request, head, data_in=data)
        )
        return lambda: _length(request().check().head)


class _Floor(_Driver):
    """Through the driver, to a device that says yes to everything and moves nothing."""

    def prepare(self, head: bytes, data: memoryview, upload: bool) -> Exchange:
        send, length = self._prepare(head, data, upload).send, len(data)

        def exchange() -> int:
            send().check()
            return length

        return exchange


class _Bare(_Driver):
    """As `_Floor`, without the client library: nothing but the ioctl."""

    def prepare(self, head: bytes, data: memoryview, upload: bool) -> Exchange:
        rooms = Buffer(_HEAD_ROOM), Buffer(_HEAD_ROOM)
        request, response = rooms
        request.view[: len(head)] = head
        sync = AzBlobRequestSync(
            request_len=len(head),
            response_len=4096,
            data_len=len(data),
            request_buffer=request.address,
            response_buffer=response.address,
            data_buffer=address_of(data),
        )
        submit, length = self._device.submit, len(data)

        def exchange(rooms: object = rooms) -> int:
            submit(sync)
            if sync.response.status:
                raise host_error(sync.response.status)
            return length

        return exchange


class _Ioctl:
    """Into the driver and back: a command that it does not know."""

    def __init__(self, node: str) -> None:
        self._file = os.open(node, os.O_RDWR)

    def prepare(self, head: bytes, data: memoryview, upload: bool) -> Exchange:
        file, length = self._file, len(data)

        def exchange() -> int:
            with suppress(OSError):
                fcntl.ioctl(file, _NO_SUCH_IOCTL)
            return length

        return exchange


class _Http:
    """Over TCP, on a connection that is kept for as long as the server keeps it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = self._connect()

    def _connect(self) -> socket.socket:
        connected = socket.create_connection((HOST, self._port))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected

    def prepare(self, head: bytes, data: memoryview, upload: bool) -> Exchange:
        return lambda: self._exchange(head, data, upload)

    def _ask(self, head: bytes, data: memoryview, upload: bool) -> bytes:
        """Send it all; the first bytes of the answer, none when the server has hung up instead."""
        try:
            if upload:
                sent = self._socket.sendmsg([head, data])
                if sent < len(head) + len(data):
                    self._socket.sendall(data[sent - len(head) :])
            else:
                self._socket.sendall(head)
            return self._socket.recv(_HEAD_ROOM)
        except ConnectionError:
            return b""

    def _exchange(self, head: bytes, data: memoryview, upload: bool) -> int:
        received = self._ask(head, data, upload)
        if not received:
            # Azurite hangs up when nothing has been asked for 5 s; RFC 9112, 9.3.1 has a client ask anew then.
            self._socket.close()
            self._socket = self._connect()
            received = self._more(self._ask(head, data, upload))
        while (end := received.find(_HEAD_END)) < 0:
            received += self._more(self._socket.recv(_HEAD_ROOM))
        end += len(_HEAD_END)
        length = _length(received[:end])
        done = len(received) - end
        data[:done] = received[end:]
        while done < length:
            done += self._more(self._socket.recv_into(data[done:length]))
        return length

    @staticmethod
    def _more(received: T) -> T:
        if not received:
            raise ConnectionError("the server hung up")
        return received


def _length(head: bytes) -> int:
    match = _ANSWER.match(head)
    if match is None:
        raise ValueError(f"not the answer of a success: {head[:200]!r}")
    return int(match[1])


_PATHS: dict[str, Callable[[Setup, Job], _Path]] = {
    "driver": lambda setup, job: _Driver(setup.served),
    "request": lambda setup, job: _Request(setup.served),
    "null": lambda setup, job: _Driver(setup.served),
    "floor": lambda setup, job: _Floor(setup.floor),
    "bare": lambda setup, job: _Bare(setup.floor),
    "ioctl": lambda setup, job: _Ioctl(setup.floor),
    "http": lambda setup, job: _Http(job.port),
}


def _read_head(target: str, size: int) -> str:
    return f"GET {target} HTTP/1.1\r\nHost: bench\r\nx-ms-version: 2023-11-03\r\nContent-Length: 0\r\n\r\n"


def _write_head(target: str, size: int) -> str:
    return (
        f"PUT {target} HTTP/1.1\r\nHost: bench\r\nx-ms-version: 2023-11-03\r\nx-ms-blob-type: BlockBlob\r\n"
        f"Content-Length: {size}\r\n\r\n"
    )


_HEADS = {"read": _read_head, "write": _write_head}


class _Client:
    """One process: it keeps a connection of each kind that it has used, and one buffer for all of them."""

    def __init__(self, setup: Setup, number: int) -> None:
        self._setup = setup
        self._number = number
        self._paths: dict[tuple[str, int], _Path] = {}
        self._buffer = Buffer(setup.largest)
        self._fill(self._buffer.view)

    def _fill(self, data: memoryview) -> None:
        data[:] = (os.urandom(_UNIT) * (len(data) // _UNIT + 1))[: len(data)]

    def _blob(self, op: str, size: int) -> str:
        return f"written-{self._number}" if op == "write" else f"size-{size}"

    def _head(self, job: Job, op: str, blob: str) -> bytes:
        return _HEADS[op](job.target.format(blob=blob), job.size).encode()

    def _path(self, job: Job) -> _Path:
        key = (job.path, job.port)
        if key not in self._paths:
            self._paths[key] = _PATHS[job.path](self._setup, job)
        return self._paths[key]

    def prepare(self, job: Job) -> None:
        """Whatever is done once: the connection, and the first request, a small one."""
        small = job._replace(size=min(job.size, _WARM_UP_BYTES), op="write")
        head, data = self._head(small, "write", f"warm-{self._number}"), self._buffer.view[: small.size]
        self._path(job).prepare(head, data, upload=True)()

    def run(self, job: Job) -> Outcome:
        """Make requests until the time is up."""
        blob = self._blob(job.op, job.size)
        head, data, upload = self._head(job, job.op, blob), self._buffer.view[: job.size], job.op == "write"
        exchange, clock = self._path(job).prepare(head, data, upload), time.monotonic_ns
        latencies = array("Q")
        began = now = clock()
        until = began + int(job.seconds * 1e9)
        while now < until:
            if exchange() != job.size and not upload:
                raise ValueError(f"an answer of another length than {job.size}")
            then, now = now, clock()
            latencies.append(now - then)
        sample = None
        if self._number < job.sampled:
            # Other bytes than before: what an earlier request has left would be taken for right.
            self._fill(data)
            sent = hashlib.sha256(data).hexdigest()
            exchange()
            sample = Sample(blob, sent if upload else hashlib.sha256(data).hexdigest())
        return Outcome(began, now, latencies, sample)

    def repeat(self, job: Job, times: int) -> None:
        """Make so many requests."""
        head, data = self._head(job, job.op, self._blob(job.op, job.size)), self._buffer.view[: job.size]
        exchange = self._path(job).prepare(head, data, job.op == "write")
        for _ in range(times):
            exchange()

    def verify(self, job: Job, total: int) -> Verified:
        """Write and read back blobs, each with other bytes, until `total` bytes have been moved."""
        path, data = self._path(job), self._buffer.view[: job.size]
        blob = f"verified-{self._number}"
        write = path.prepare(self._head(job, "write", blob), data, upload=True)
        read = path.prepare(self._head(job, "read", blob), data, upload=False)
        requests = wrong = 0
        while requests * job.size < total:
            self._fill(data)
            sent = hashlib.sha256(data).digest()
            write()
            data[:] = bytes(job.size)
            read()
            wrong += hashlib.sha256(data).digest() != sent
            requests += 2
        return Verified(requests, requests * job.size, wrong)


class Repeated:
    """A client in this process, for who counts what its requests take."""

    def __init__(self, setup: bytes) -> None:
        """`setup` is a pickled tuple of Setup."""
        self._client = _Client(Setup(*pickle.loads(setup)), 0)
        # A collection takes as much as ten requests.
        gc.disable()

    def run(self, job: bytes, times: int) -> None:
        """Do a pickled tuple of Job so many times."""
        self._client.repeat(Job(*pickle.loads(job)), times)


def _serve(setup: Setup, number: int, control: Connection, gate: int) -> None:
    """The process of a client: take work, say when ready, begin with the others."""
    client = _Client(setup, number)
    control.send(None)
    while True:
        job, total = control.recv()
        try:
            client.prepare(job)
            control.send(None)
            os.read(gate, 1)
            control.send(client.verify(job, total) if total else client.run(job))
        except Exception as error:
            control.send(error)


class Bench:
    """The clients."""

    def __init__(self, setup: bytes, clients: int) -> None:
        """`setup` is a pickled tuple of Setup; start so many processes."""
        fork = multiprocessing.get_context("fork")
        self._gate, self._open = os.pipe()
        self._controls: list[Connection] = []
        self._processes = []
        for number in range(clients):
            ours, theirs = fork.Pipe()
            arguments = (Setup(*pickle.loads(setup)), number, theirs, self._gate)
            process = fork.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._controls.append(ours)
            self._processes.append(process)
        _collect(self._controls)

    def run(self, job: bytes, clients: int) -> bytes:
        """Have the first `clients` of them do a pickled tuple of Job; Figures, likewise. Raises what they raise."""
        work = Job(*pickle.loads(job))
        controls = self._controls[:clients]
        self._hand_out(controls, work, 0)
        cpu = _cpu_seconds()
        outcomes: list[Outcome] = self._let_go(controls)
        cpu = _cpu_seconds() - cpu
        latencies = sorted(latency for outcome in outcomes for latency in outcome.latencies)
        began, ended = min(outcome.began for outcome in outcomes), max(outcome.ended for outcome in outcomes)
        return pickle.dumps(
            tuple(
                Figures(
                    requests=len(latencies),
                    seconds=(ended - began) / 1e9,
                    p50_us=latencies[len(latencies) // 2] / 1e3,
                    p99_us=latencies[len(latencies) * 99 // 100] / 1e3,
                    cpu_seconds=cpu,
                    samples=tuple(tuple(outcome.sample) for outcome in outcomes if outcome.sample),  # type: ignore[misc]
                )
            )
        )

    def verify(self, job: bytes, clients: int, total: int) -> bytes:
        """Have them move `total` bytes together, every one hashed; Verified, as `run` returns Figures."""
        controls = self._controls[:clients]
        self._hand_out(controls, Job(*pickle.loads(job)), total // clients)
        done: list[Verified] = self._let_go(controls)
        return pickle.dumps(tuple(map(sum, zip(*done, strict=True))))

    def _hand_out(self, controls: list[Connection], job: Job, total: int) -> None:
        for control in controls:
            control.send((job, total))
        _collect(controls)

    def _let_go(self, controls: list[Connection]) -> list[T]:
        os.write(self._open, b"g" * len(controls))
        return _collect(controls)

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.join()


def _collect(controls: list[Connection]) -> list[T]:
    answers = [control.recv() for control in controls]
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _cpu_seconds() -> float:
    """Time that all CPUs together have not been idle."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
