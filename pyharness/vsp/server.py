# SPDX-License-Identifier: GPL-2.0-only
"""The VSP: attaches to the QEMU device's socket and has requests answered by a backend."""

from __future__ import annotations

import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from pyharness.errors import HarnessError, TimedOut
from pyharness.vsp import frames
from pyharness.vsp.backends import Backend
from pyharness.vsp.connection import Connection
from pyharness.vsp.frames import FrameType, Hello, PacketType, ProtocolError
from pyharness.vsp.memory import GuestMemory, ReadOnlyGuestRam
from pyharness.vsp.request import VspRequest
from pyharness.vsp.wire import Status

Behaviour = Callable[[VspRequest], bool | None]
"""Sees every request first, malformed ones too; one that returns True has taken it over."""

_CONNECT_INTERVAL_S = 0.02
_JOIN_TIMEOUT_S = 30.0
_FINISH_TIMEOUT_S = 2.0
"""How long a device may take to read the last packets; one whose guest is stopped never does."""
_KEPT_ERRORS = 256
_FLUSH_BYTES = 256 << 10


@dataclass
class Counters:
    """What a server has seen since it was made."""

    requests: int = 0
    bytes: int = 0
    """Guest memory that requests named, in bytes."""
    completions: int = 0
    errors: int = 0
    """Completions whose error field is not zero."""
    refused: int = 0
    """Requests refused by the VSP itself, before the backend."""
    backend_errors: int = 0
    """Exceptions of the backend or the behaviour."""
    voided: int = 0
    """Requests in flight when their channel or connection closed."""
    violations: int = 0
    """Connections ended by a ProtocolError."""


class ServerError(NamedTuple):
    """An exception in one of the server's threads."""

    transaction_id: int | None
    error: BaseException
    traceback: str


class _Session:
    """One attachment: its requests are answered on its own connection or not at all."""

    def __init__(self, server: VspServer, connection: Connection, hello: Hello, memory: GuestMemory) -> None:
        self.server = server
        self.connection = connection
        self.hello = hello
        self.memory = memory
        self.channel_open = hello.channel_open
        self.in_flight: dict[int, VspRequest] = {}

    def retire(self, request: VspRequest, error: int) -> bool:
        return self.server._retire(self, request, error)

    def send_packet(
        self, payload: bytes, *, packet_type: int, transaction_id: int, epoch: int, completion_requested: bool = False
    ) -> None:
        packet = frames.Packet(transaction_id, packet_type, payload, completion_requested, epoch)
        self.connection.send(frames.pack_frame(FrameType.PACKET, packet.pack()))


class VspServer:
    """Serves one `hv-azure-blob` device. As a context manager it is attached inside the block and gone after it."""

    def __init__(
        self,
        socket_path: Path | str,
        backend: Backend,
        *,
        behaviour: Behaviour | None = None,
        workers: int = 0,
        attach_timeout_s: float = 60.0,
    ) -> None:
        """With `workers` 0 the backend runs in the receiving thread: right for one that does not block.

        `behaviour` may be replaced at any time through the attribute of that name.
        """
        self.backend = backend
        self.behaviour = behaviour
        self.errors: deque[ServerError] = deque(maxlen=_KEPT_ERRORS)
        self._socket_path = str(socket_path)
        self._attach_timeout_s = attach_timeout_s
        self._changed = threading.Condition()
        self._counters = Counters()
        self._session: _Session | None = None
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None
        self._failure: HarnessError | None = None
        self._stopping = False
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="vsp-worker") if workers else None
        self._pool_room = threading.BoundedSemaphore(frames.MAX_IN_FLIGHT)

    # -- lifecycle

    def start(self) -> None:
        """Begin to attach in the background, and go on trying until closed: the socket need not exist yet."""
        if self._thread is not None:
            raise HarnessError("the VSP has been started already")
        self._stopping = False
        self._failure = None
        self._thread = threading.Thread(target=self._run, name=f"vsp {self._socket_path}", daemon=True)
        self._thread.start()

    def wait_attached(self) -> None:
        """Return once attached. Raises TimedOut after `attach_timeout_s`, ProtocolError, HarnessError."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._session is not None or self._failure is not None, self._attach_timeout_s
            )
            if self._session is not None:
                return
            if self._failure is not None:
                raise self._failure
            what = "no device listens" if self._connection is None else "the device says nothing"
        raise TimedOut(
            f"{what} at {self._socket_path} after {self._attach_timeout_s:g} s",
            mend="see the console log for why QEMU did not start, and whether another backend is attached",
        )

    def wait_channel(self, is_open: bool = True, timeout_s: float = 60.0) -> None:
        """Return once the guest has opened (or closed) the channel. Raises TimedOut."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.channel_open == is_open, timeout_s):
                raise TimedOut(f"the guest did not {'open' if is_open else 'close'} the channel in {timeout_s:g} s")

    def wait_in_flight(self, count: int, timeout_s: float = 60.0) -> list[VspRequest]:
        """Return what is in flight once that is at least `count` requests. Raises TimedOut."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.in_flight) >= count, timeout_s):
                raise TimedOut(f"{len(self.in_flight)} requests in flight after {timeout_s:g} s, not {count}")
            return self.in_flight

    def disconnect(self) -> None:
        """Detach once the device has what was sent; it answers what is in flight by itself.

        Does nothing when not started. Raises TimedOut when a backend or behaviour does not return.
        """
        with self._changed:
            self._stopping = True
            connection, thread = self._connection, self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            if connection is not None:
                if self.attached:
                    connection.finish()
                    thread.join(_FINISH_TIMEOUT_S)
                connection.shut()
            thread.join(_JOIN_TIMEOUT_S)
            if thread.is_alive():
                raise TimedOut("the VSP's thread does not end", mend="look for a backend or behaviour that blocks")
        self._thread = None

    def reconnect(self) -> None:
        """Detach and attach again. Raises what `wait_attached` raises."""
        self.disconnect()
        self.start()
        self.wait_attached()

    def close(self) -> None:
        """Detach for good and end all threads."""
        try:
            self.disconnect()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_attached()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what can be seen from outside

    @property
    def attached(self) -> bool:
        """Whether the device counts this server as its backend."""
        return self._session is not None

    @property
    def channel_open(self) -> bool:
        """Whether the guest's driver has the channel open."""
        session = self._session
        return session is not None and session.channel_open

    @property
    def hello(self) -> Hello | None:
        """The HELLO of the present attachment."""
        session = self._session
        return session.hello if session is not None else None

    @property
    def in_flight(self) -> list[VspRequest]:
        """Requests not yet answered, oldest first."""
        with self._changed:
            return list(self._session.in_flight.values()) if self._session is not None else []

    @property
    def counters(self) -> Counters:
        """A copy of the counters as they are now."""
        with self._changed:
            return replace(self._counters)

    def send_packet(
        self,
        payload: bytes,
        *,
        packet_type: int = PacketType.COMPLETION,
        transaction_id: int = 0,
        completion_requested: bool = False,
    ) -> None:
        """Send the VSC a packet that nobody asked for. Raises HarnessError when not attached."""
        session = self._session
        if session is None:
            raise HarnessError("the VSP is not attached")
        session.send_packet(
            payload,
            packet_type=packet_type,
            transaction_id=transaction_id,
            epoch=0,
            completion_requested=completion_requested,
        )

    # -- the receiving thread

    def _run(self) -> None:
        connection: Connection | None = None
        try:
            connection = self._connect()
            if connection is not None:
                self._attend(connection)
        except HarnessError as error:
            self._record(None, error)
            with self._changed:
                self._failure = error
                self._counters.violations += isinstance(error, ProtocolError)
        except Exception as error:
            self._record(None, error)
            with self._changed:
                self._failure = HarnessError(f"the VSP's thread died: {error}", detail=self.errors[-1].traceback)
        finally:
            with self._changed:
                self._connection = None
                self._changed.notify_all()
            if connection is not None:
                connection.shut()
                connection.close()

    def _connect(self) -> Connection | None:
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(self._socket_path)
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
            except OSError as error:
                sock.close()
                raise HarnessError(f"cannot connect to {self._socket_path}: {error}") from error
            else:
                connection = Connection(sock)
                with self._changed:
                    if not self._stopping:
                        self._connection = connection
                        return connection
                connection.close()
            with self._changed:
                if self._changed.wait_for(lambda: self._stopping, _CONNECT_INTERVAL_S):
                    return None

    def _attend(self, connection: Connection) -> None:
        greeting = connection.receive_hello()
        if greeting is None:
            if not self._stopping:
                raise HarnessError(f"the device hung up at {self._socket_path} before its HELLO")
            return
        hello, memory = greeting
        session = _Session(self, connection, hello, memory)
        connection.send(frames.pack_frame(FrameType.ATTACH, frames.Attach().pack()))
        connection.flush()
        try:
            for frame_type, payload in connection.frames():
                if self._stopping:
                    continue
                if frame_type == FrameType.REQUEST:
                    self._take_request(session, frames.Request.parse(payload))
                elif frame_type == FrameType.CHANNEL:
                    self._take_channel(session, frames.Channel.parse(payload))
                else:
                    raise ProtocolError(f"unexpected frame {frame_type.name}")
        finally:
            with self._changed:
                self._void(session)
                self._session = None
                self._changed.notify_all()
            memory.close()

    def _take_channel(self, session: _Session, channel: frames.Channel) -> None:
        with self._changed:
            if not channel.is_open:
                self._void(session)
            session.channel_open = channel.is_open
            # The device answers ATTACH with the state of the channel: from here on requests reach this backend.
            self._session = session
            self._changed.notify_all()

    def _void(self, session: _Session) -> None:
        self._counters.voided += len(session.in_flight)
        session.in_flight.clear()

    def _take_request(self, session: _Session, frame: frames.Request) -> None:
        request = VspRequest(frame, session.memory, session)
        with self._changed:
            self._counters.requests += 1
            self._counters.bytes += len(request.pages)
            if request.completion_requested:
                session.in_flight[id(request)] = request
                self._changed.notify_all()
        try:
            behaviour = self.behaviour
            if behaviour is not None and behaviour(request):
                return
        except Exception as error:
            self._fail(request, error)
            return
        if request.refusal is not None:
            with self._changed:
                self._counters.refused += 1
            request.complete(request.refusal.status)
        elif self._pool is None:
            self._serve(request)
            if len(request.pages) >= _FLUSH_BYTES:
                session.connection.flush()
        else:
            self._pool_room.acquire()
            self._pool.submit(self._serve_in_pool, request)

    def _serve_in_pool(self, request: VspRequest) -> None:
        try:
            self._serve(request)
        finally:
            self._pool_room.release()

    def _serve(self, request: VspRequest) -> None:
        try:
            self.backend.handle(request)
        except ReadOnlyGuestRam:
            request.complete(Status.ACCESS_VIOLATION)
        except Exception as error:
            self._fail(request, error)

    def _fail(self, request: VspRequest, error: Exception) -> None:
        self._record(request.transaction_id, error)
        with self._changed:
            self._counters.backend_errors += 1
        request.complete(Status.INTERNAL_ERROR)

    def _record(self, transaction_id: int | None, error: BaseException) -> None:
        self.errors.append(ServerError(transaction_id, error, "".join(traceback.format_exception(error))))

    def _retire(self, session: _Session, request: VspRequest, error: int) -> bool:
        with self._changed:
            if session.in_flight.pop(id(request), None) is None:
                return False
            self._counters.completions += 1
            self._counters.errors += error != 0
            self._changed.notify_all()
            return True
