# SPDX-License-Identifier: GPL-2.0-only
"""The VSP: attaches to the QEMU device's socket and has requests answered by a backend."""

from __future__ import annotations

import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from pyharness.errors import HarnessError, TimedOut
from pyharness.vsp import frames
from pyharness.vsp.backends import Backend
from pyharness.vsp.connection import Connection
from pyharness.vsp.frames import FrameType, Hello, Packet, PacketType, ProtocolError
from pyharness.vsp.memory import GuestMemory, ReadOnlyGuestRam
from pyharness.vsp.play import Behaviour, Play
from pyharness.vsp.request import VspRequest
from pyharness.vsp.wire import DESCRIPTOR_SIZE, Descriptor, Status

Hook = Callable[[VspRequest], bool | None]
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

    def answer(self, request: VspRequest, error: int, packet: Packet) -> bool:
        due = self.server._retire(self, request, error)
        if due:
            self._send(packet)
        return due

    def awaits(self, request: VspRequest) -> bool:
        return id(request) in self.in_flight

    def _send(self, packet: Packet) -> None:
        self.connection.send(frames.pack_frame(FrameType.PACKET, packet.pack()))

    def send_anything(self, packet: Packet) -> None:
        packet_type, transaction_id = packet.packet_type, packet.transaction_id
        if packet.raw and len(packet.payload) >= DESCRIPTOR_SIZE:
            descriptor = Descriptor.parse(packet.payload)
            packet_type, transaction_id = descriptor.packet_type, descriptor.transaction_id
        if packet_type == PacketType.COMPLETION:
            self.server._retire_as_the_guest_does(self, transaction_id, packet.epoch)
        self._send(packet)


class VspServer:
    """Serves one `hv-azure-blob` device. As a context manager it is attached inside the block and gone after it."""

    def __init__(
        self,
        socket_path: Path | str,
        backend: Backend,
        *,
        behaviour: Hook | None = None,
        workers: int = 0,
        attach_timeout_s: float = 60.0,
    ) -> None:
        """With `workers` 0 the backend runs in the receiving thread: right for one that does not block.

        `behaviour` may be replaced at any time through the attribute of that name; `behaving` does so for a block.
        """
        self.backend = backend
        self.behaviour = behaviour
        self.errors: deque[ServerError] = deque(maxlen=_KEPT_ERRORS)
        self._socket_path = str(socket_path)
        self._attach_timeout_s = attach_timeout_s
        # The lock of `_changed`, which takes less by itself: each request takes it twice.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._counters = Counters()
        self._session: _Session | None = None
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None
        self._failure: HarnessError | None = None
        self._stopping = False
        self._reading = True
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="vsp-worker") if workers else None
        self._pool_room = threading.BoundedSemaphore(frames.MAX_IN_FLIGHT)

    # -- lifecycle

    def start(self) -> None:
        """Begin to attach in the background, and go on trying until closed: the socket need not exist yet.

        When the device hangs up, because it is unplugged, this waits for the next one at the same socket.
        """
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

    # -- misbehaviour

    @contextmanager
    def behaving(self, *behaviours: Behaviour) -> Iterator[Play]:
        """Behave like that inside the block: see `pyharness.vsp.behaviours` for how, and `Play` for what it yields.

        When the block ends, what was held goes on, what was dropped or answered wrongly is answered, a backend that
        had gone comes back, and what `behaviour` was before is in force again. Raises what `wait_attached` raises.
        """
        play, before = Play(self, behaviours), self.behaviour
        self.behaviour = play.take
        try:
            yield play
        finally:
            self.behaviour = before
            came_back = play.end()
        if came_back:
            self.wait_attached()

    def serve(self, request: VspRequest) -> None:
        """Have the backend answer, as if no behaviour had seen the request. From any thread."""
        if request.refusal is not None:
            with self._changed:
                self._counters.refused += 1
            request.complete(request.refusal.status)
        elif self._pool is None:
            self._serve(request)
        else:
            self._pool_room.acquire()
            self._pool.submit(self._serve_in_pool, request)

    def fail(self, request: VspRequest, error: Exception) -> None:
        """Record a fault of the backend or a behaviour, and answer INTERNAL_ERROR."""
        self._record(request.transaction_id, error)
        with self._changed:
            self._counters.backend_errors += 1
        request.complete(Status.INTERNAL_ERROR)

    def record(self, error: Exception) -> None:
        """Keep what a behaviour raised that belongs to no request."""
        self._record(None, error)

    def send(self, packet: Packet) -> None:
        """Send the VSC any packet. Raises HarnessError when not attached."""
        session = self._session
        if session is None:
            raise HarnessError("the VSP is not attached")
        session.send_anything(packet)

    def send_raw(self, packet: bytes) -> None:
        """Put a whole VMBus packet into the guest's ring. Raises HarnessError when not attached."""
        self.send(Packet(0, 0, packet, raw=True))

    def stop_reading(self) -> None:
        """Take nothing more from the socket until `resume_reading`: it fills up, and then the guest's ring."""
        with self._changed:
            self._reading = False

    def resume_reading(self) -> None:
        """Go on where `stop_reading` stopped."""
        with self._changed:
            self._reading = True
            self._changed.notify_all()

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
        self.send(Packet(transaction_id, packet_type, payload, completion_requested))

    # -- the receiving thread

    def _run(self) -> None:
        try:
            while (connection := self._connect()) is not None:
                try:
                    self._attend(connection)
                finally:
                    with self._changed:
                        self._connection = None
                        self._changed.notify_all()
                    connection.shut()
                    connection.close()
        except HarnessError as error:
            self._record(None, error)
            with self._changed:
                self._failure = error
                self._counters.violations += isinstance(error, ProtocolError)
                self._changed.notify_all()
        except Exception as error:
            self._record(None, error)
            with self._changed:
                self._failure = HarnessError(f"the VSP's thread died: {error}", detail=self.errors[-1].traceback)
                self._changed.notify_all()

    def _connect(self) -> Connection | None:
        """The next connection; None when this is to end."""
        while not self._stopping:
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
                self._changed.wait_for(lambda: self._stopping, _CONNECT_INTERVAL_S)
        return None

    def _attend(self, connection: Connection) -> None:
        greeting = connection.receive_hello()
        if greeting is None:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, _CONNECT_INTERVAL_S)
            return
        hello, memory = greeting
        session = _Session(self, connection, hello, memory)
        connection.send(frames.pack_frame(FrameType.ATTACH, frames.Attach().pack()))
        connection.flush()
        try:
            for frame_type, payload in connection.frames():
                if not self._reading:
                    self._wait_to_read(connection)
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

    def _wait_to_read(self, connection: Connection) -> None:
        connection.flush()
        with self._changed:
            self._changed.wait_for(lambda: self._reading or self._stopping)

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
        size = len(request.pages)
        with self._lock:
            self._counters.requests += 1
            self._counters.bytes += size
            if request.completion_requested:
                session.in_flight[id(request)] = request
                self._changed.notify_all()
        try:
            hook = self.behaviour
            if hook is not None and hook(request):
                return
        except Exception as error:
            self.fail(request, error)
            return
        self.serve(request)
        if size >= _FLUSH_BYTES:
            session.connection.flush()

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
            self.fail(request, error)

    def _record(self, transaction_id: int | None, error: BaseException) -> None:
        self.errors.append(ServerError(transaction_id, error, "".join(traceback.format_exception(error))))

    def _retire_as_the_guest_does(self, session: _Session, transaction_id: int, epoch: int) -> None:
        with self._changed:
            for request in session.in_flight.values():
                if request.transaction_id == transaction_id and epoch in (0, request.epoch):
                    self._retire(session, request, Status.SUCCESS)
                    return

    def _retire(self, session: _Session, request: VspRequest, error: int) -> bool:
        with self._lock:
            if session.in_flight.pop(id(request), None) is None:
                return False
            self._counters.completions += 1
            self._counters.errors += error != 0
            self._changed.notify_all()
            return True
