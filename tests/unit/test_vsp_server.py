# SPDX-License-Identifier: GPL-2.0-only
"""The VSP on a real socket with real shared memory; the other end of the socket is `vsp_peer`."""

from __future__ import annotations

import contextlib
import gc
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyharness.errors import HarnessError, TimedOut
from pyharness.vsp.frames import (
    Channel,
    FrameType,
    Hello,
    Packet,
    PacketType,
    ProtocolError,
    Region,
    pack_frame,
)
from pyharness.vsp.request import VspRequest
from pyharness.vsp.server import VspServer
from pyharness.vsp.wire import Completion, RequestHeader, Status
from tests.unit.vsp_peer import HIGH_GPA, INSTANCE, PAGE, DevicePeer

HEADER = RequestHeader(0, 0, 0, PAGE, PAGE, 0x100, PAGE, PAGE, 2 * PAGE, PAGE, bytes(16))
PAGES = [(0, PAGE), (HIGH_GPA, PAGE), (5 * PAGE, PAGE)]


class Echo:
    """Writes the upper case of the data back into the data buffer, and the request reversed as the response."""

    def handle(self, request: VspRequest) -> None:
        request.data.write(request.data_valid.read().upper())
        answer = request.request.read()[::-1]
        request.response.write(answer)
        request.complete(response_len=len(answer))


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[DevicePeer]:
    with DevicePeer(tmp_path / "vsp.sock") as device:
        yield device


@pytest.fixture
def server(peer: DevicePeer) -> Iterator[VspServer]:
    vsp = VspServer(peer.path, Echo(), attach_timeout_s=20)
    vsp.start()
    peer.serve()
    vsp.wait_attached()
    yield vsp
    vsp.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.002)


def completion(packet: Packet) -> Completion:
    assert packet.packet_type == PacketType.COMPLETION
    return Completion.parse(packet.payload)


# -- requests


def test_request_round_trip(peer: DevicePeer, server: VspServer) -> None:
    answer = peer.call(b"head", b"some data")
    assert answer == (Completion(0, 4), b"daeh", b"SOME DATA")
    counters = server.counters
    assert (counters.requests, counters.completions, counters.errors, counters.refused) == (1, 1, 0, 0)
    assert counters.bytes == 3 * PAGE
    assert not server.in_flight
    assert not server.errors


@pytest.mark.parametrize("offsets", [(0, 0, 0), (1, 2, 3), (4095, 4095, 4095), (17, 0, 4000)])
def test_unaligned_buffers_over_scattered_pages(
    peer: DevicePeer, server: VspServer, offsets: tuple[int, int, int]
) -> None:
    head = random.Random(1).randbytes(6000)
    data = random.Random(2).randbytes(100_001)
    answer = peer.call(head, data, response_room=6000, offsets=offsets)
    assert answer == (Completion(0, 6000), head[::-1], data.upper())


@pytest.mark.parametrize(
    ("inline", "segments", "status"),
    [
        (b"", [], Status.INVALID_BUFFER_SIZE),
        (HEADER.pack() + b"\0", PAGES, Status.INVALID_BUFFER_SIZE),
        (HEADER.pack()[:55], PAGES, Status.INVALID_BUFFER_SIZE),
        (HEADER._replace(version=1).pack(), PAGES, Status.REVISION_MISMATCH),
        (HEADER._replace(operation_type=7).pack(), PAGES, Status.INVALID_DEVICE_REQUEST),
        (HEADER._replace(operation_type=0x101).pack(), PAGES, Status.NOT_SUPPORTED),
        (HEADER._replace(data_buffer_valid=PAGE + 1).pack(), PAGES, Status.INVALID_PARAMETER),
        (HEADER._replace(response_buffer_length=PAGE + 1).pack(), PAGES, Status.INVALID_PARAMETER),
        (HEADER._replace(request_buffer_offset=2**32 - 1).pack(), PAGES, Status.INVALID_PARAMETER),
        (HEADER.pack(), PAGES[:2], Status.INVALID_PARAMETER),
        (HEADER.pack(), [], Status.INVALID_PARAMETER),
        (HEADER.pack(), [*PAGES[:2], (1 << 40, PAGE)], Status.INVALID_ADDRESS),
        (HEADER.pack(), [*PAGES[:2], (2**64 - PAGE, 2 * PAGE)], Status.INVALID_ADDRESS),
        (HEADER.pack(), [*PAGES, (0, 2**64 - 1)], Status.INVALID_ADDRESS),
    ],
)
def test_refusals(
    peer: DevicePeer, server: VspServer, inline: bytes, segments: list[tuple[int, int]], status: Status
) -> None:
    before = peer.ram.map[:]
    assert completion(peer.post(inline, segments).result(20)) == Completion(status, 0)
    assert peer.ram.map[:] == before, "a refused request writes nothing"
    assert server.counters.refused == 1
    assert peer.call(b"ok").completion.error == 0, "the server goes on"


def test_packet_that_is_not_gpa_direct_is_refused(peer: DevicePeer, server: VspServer) -> None:
    future = peer.post(HEADER.pack(), PAGES, packet_type=PacketType.IN_BAND)
    assert completion(future.result(20)).error == Status.INVALID_DEVICE_REQUEST


def test_request_that_wants_no_completion_gets_none(peer: DevicePeer, server: VspServer) -> None:
    future = peer.post(HEADER.pack(), PAGES, completion_requested=False)
    assert peer.call(b"later").completion.error == 0
    assert not future.done()
    assert server.counters.completions == 1


def test_guest_memory_that_is_read_only(peer: DevicePeer) -> None:
    low, high = peer.ram.regions
    with VspServerThread(peer) as server:
        peer.accept()
        peer.send_hello(Hello(INSTANCE, True, 1, (low._replace(read_only=True), high)))
        peer.receive_frame()
        peer.send_raw(pack_frame(FrameType.CHANNEL, Channel(True).pack()))
        server.wait_attached()
        peer.post(HEADER.pack(), PAGES)
        packet = Packet.parse(peer.receive_frame()[1])
        assert completion(packet).error == Status.ACCESS_VIOLATION
        assert not server.errors


class VspServerThread(VspServer):
    """A server that has been started and not yet attached."""

    def __init__(self, peer: DevicePeer) -> None:
        super().__init__(peer.path, Echo(), attach_timeout_s=20)

    def __enter__(self) -> VspServerThread:
        self.start()
        return self


# -- handshake and the end of a connection


def test_waits_for_a_socket_that_does_not_exist_yet(tmp_path: Path) -> None:
    path = tmp_path / "late.sock"
    server = VspServer(path, Echo(), attach_timeout_s=20)
    server.start()
    assert not server.attached
    with DevicePeer(path) as peer:
        peer.serve()
        server.wait_attached()
        assert server.attached
        assert server.channel_open
        assert server.hello is not None
        assert server.hello.instance == INSTANCE
        server.close()


def test_gives_up_on_a_socket_that_never_comes(tmp_path: Path) -> None:
    with (
        pytest.raises(TimedOut, match="no device listens"),
        VspServer(tmp_path / "never.sock", Echo(), attach_timeout_s=0.1),
    ):
        pass
    assert not [thread for thread in threading.enumerate() if "never.sock" in thread.name]


def test_gives_up_on_a_device_that_says_nothing(peer: DevicePeer) -> None:
    with pytest.raises(TimedOut, match="says nothing"), VspServer(peer.path, Echo(), attach_timeout_s=0.1):
        pass


def test_close_while_waiting_for_the_socket(tmp_path: Path) -> None:
    server = VspServer(tmp_path / "never.sock", Echo(), attach_timeout_s=3600)
    server.start()
    server.close()
    assert not server.errors


def test_a_path_that_cannot_be_connected_to(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="cannot connect"), VspServer(tmp_path / ("x" * 200), Echo()):
        pass


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "magic"),
        (pack_frame(FrameType.CHANNEL, Channel(True).pack()), "not HELLO"),
        (pack_frame(FrameType.HELLO, b"short"), "HELLO payload"),
        (pack_frame(FrameType.HELLO, Hello(INSTANCE, True, 0, ()).pack()), "announces 0 descriptors and carries 1"),
        (pack_frame(FrameType.HELLO, Hello(INSTANCE, True, 2, ()).pack()), "announces 2 descriptors and carries 1"),
        (pack_frame(FrameType.HELLO, Hello(INSTANCE, True, 1, (Region(0, 1 << 40, 0, 0),)).pack()), "regions need"),
        (struct.pack("<IHHII", 0x42505641, 1, 0, 2**32 - 1, 0), "exceeds the limit"),
    ],
)
def test_bad_greetings(peer: DevicePeer, frame: bytes, words: str) -> None:
    gc.collect()  # what earlier tests left in cycles is not to go while this one counts
    open_fds = sum(1 for _ in Path("/proc/self/fd").iterdir())
    server = VspServer(peer.path, Echo(), attach_timeout_s=20)
    server.start()
    peer.accept()
    peer.send_raw(frame, [peer.ram.fd])
    with pytest.raises(ProtocolError, match=words):
        server.wait_attached()
    assert peer.backend_hung_up()
    assert server.counters.violations == 1
    server.close()
    peer.hang_up()
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == open_fds


def test_too_many_descriptors(peer: DevicePeer) -> None:
    with VspServerThread(peer) as server:
        peer.accept()
        peer.send_hello(fds=[peer.ram.fd] * 60)
        with pytest.raises(ProtocolError, match="descriptors"):
            server.wait_attached()


@pytest.mark.parametrize(
    "frame",
    [
        b"\0" * 16,
        pack_frame(FrameType.HELLO, Hello(INSTANCE, True, 0, ()).pack()),
        pack_frame(FrameType.ATTACH, bytes(8)),
        pack_frame(FrameType.PACKET, bytes(16)),
        pack_frame(FrameType.REQUEST, bytes(24)),
        pack_frame(FrameType.REQUEST, b""),
        pack_frame(FrameType.CHANNEL, b"\2\0\0\0"),
        pack_frame(77, b""),
    ],
)
def test_broken_frame_ends_the_connection_and_is_told(peer: DevicePeer, server: VspServer, frame: bytes) -> None:
    assert peer.call(b"before").completion.error == 0
    peer.send_raw(frame)
    until(lambda: not server.attached and server.counters.violations == 1)
    assert isinstance(server.errors[-1].error, ProtocolError)
    peer.hang_up()
    reconnected = threading.Thread(target=server.reconnect)
    reconnected.start()
    peer.serve()
    reconnected.join(20)
    assert peer.call(b"after").completion.error == 0


def test_device_that_dies_inside_a_frame(peer: DevicePeer, server: VspServer) -> None:
    peer.send_raw(pack_frame(FrameType.CHANNEL, Channel(True).pack())[:9])
    peer.hang_up()
    until(lambda: server.counters.violations == 1)
    assert "9 bytes into a frame" in str(server.errors[-1].error)


def test_device_that_hangs_up_is_no_error(peer: DevicePeer, server: VspServer) -> None:
    peer.hang_up()
    until(lambda: not server.attached)
    assert not server.errors


def test_attaches_to_the_next_device_at_the_same_socket(peer: DevicePeer, server: VspServer) -> None:
    """It is unplugged with a request in flight, and another one is plugged in."""
    server.behaviour = lambda request: True
    for _ in range(3):
        peer.post(HEADER.pack(), PAGES)
        (held,) = server.wait_in_flight(1)
        peer.hang_up()
        server.wait_channel(is_open=False)
        assert not held.complete()
        peer.serve()
        server.wait_channel()
    server.behaviour = None
    assert peer.call(b"new").completion.error == 0
    assert not peer.unmatched
    assert (server.counters.voided, server.counters.violations) == (3, 0)


def test_device_that_hangs_up_before_its_greeting(peer: DevicePeer) -> None:
    with VspServerThread(peer) as server:
        for _ in range(3):
            peer.accept()
            peer.hang_up()
        peer.serve()
        server.wait_attached()
        assert peer.call(b"x").completion.error == 0
        assert not server.errors
        server.close()


def test_socket_that_goes_and_comes_back(tmp_path: Path) -> None:
    """As when QEMU ends and another is started."""
    path = tmp_path / "vsp.sock"
    server = VspServer(path, Echo(), attach_timeout_s=20)
    server.start()
    for _ in range(3):
        with DevicePeer(path) as peer:
            peer.serve()
            server.wait_channel()
            assert peer.call(b"x").completion.error == 0
        server.wait_channel(is_open=False)
    server.close()
    assert not server.errors


def test_close_while_waiting_for_the_next_device(peer: DevicePeer, server: VspServer) -> None:
    peer.hang_up()
    until(lambda: not server.attached)
    server.close()
    assert not server.errors


def test_no_further_attachment_after_a_broken_frame(peer: DevicePeer, server: VspServer) -> None:
    peer.send_raw(b"\0" * 16)
    until(lambda: server.counters.violations == 1)
    peer.hang_up()
    with pytest.raises(ProtocolError):
        server.wait_attached()
    assert not [thread for thread in threading.enumerate() if thread.name == f"vsp {peer.path}" and thread.is_alive()]


def test_a_backend_that_stops_reading(peer: DevicePeer, server: VspServer) -> None:
    server.stop_reading()
    futures = [peer.post(HEADER.pack(), PAGES) for _ in range(20)]
    assert not any(future.done() for future in futures)
    assert server.counters.requests == 0
    server.resume_reading()
    assert [completion(future.result(20)).error for future in futures] == [0] * 20
    server.stop_reading()
    peer.post(HEADER.pack(), PAGES)
    server.close()
    assert not server.errors


def test_random_garbage_never_kills_silently(peer: DevicePeer) -> None:
    """Whatever arrives, the server either goes on or ends the connection with a ProtocolError."""
    rng = random.Random(99)
    server = VspServer(peer.path, Echo(), attach_timeout_s=20)
    good = [
        pack_frame(FrameType.CHANNEL, Channel(True).pack()),
        pack_frame(FrameType.CHANNEL, Channel(False).pack()),
    ]
    for turn in range(60):
        if turn:
            peer.hang_up()
            server.disconnect()
        server.start()
        peer.handshake()
        server.wait_attached()
        for _ in range(rng.randint(1, 20)):
            frame = bytearray(rng.choice(good))
            if rng.random() < 0.7:
                inline = rng.choice((HEADER.pack(), rng.randbytes(56), rng.randbytes(rng.randrange(100))))
                count = rng.randrange(5)
                payload = struct.pack("<QHHIIHH", rng.randrange(1, 99), 9, 1, len(inline), count, 1, 0)
                payload += inline + bytes(-len(inline) % 8) + rng.randbytes(16 * count)
                frame = bytearray(pack_frame(FrameType.REQUEST, payload))
            if rng.random() < 0.1:
                frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
            try:
                peer.send_raw(frame)
            except OSError:
                break
    peer.hang_up()
    server.close()
    assert {type(error.error) for error in server.errors} <= {ProtocolError}
    assert 0 < server.counters.violations < 60


# -- answers held, repeated, too late


def test_held_requests_are_released_from_another_thread_in_any_order(peer: DevicePeer, server: VspServer) -> None:
    server.behaviour = lambda request: True
    futures = [peer.post(HEADER.pack(), PAGES) for _ in range(10)]
    held = server.wait_in_flight(10, timeout_s=20)
    assert [request.transaction_id for request in held] == list(range(1, 11))
    assert not any(future.done() for future in futures)
    for request in reversed(held):
        assert request.complete(error=request.transaction_id)
        assert not request.complete(), "a second answer is not sent"
    assert [completion(future.result(20)).error for future in futures] == list(range(1, 11))
    assert not server.in_flight
    assert server.counters.completions == 10


def test_behaviour_sees_malformed_requests_too(peer: DevicePeer, server: VspServer) -> None:
    seen: list[VspRequest] = []
    server.behaviour = seen.append
    assert completion(peer.post(b"junk", []).result(20)).error == Status.INVALID_BUFFER_SIZE
    assert seen[0].header is None
    assert seen[0].inline == b"junk"
    assert completion(peer.post(HEADER._replace(version=3).pack(), PAGES).result(20)).error
    assert seen[1].header is not None
    assert seen[1].refusal is not None
    assert len(seen[1].data) == 0


def test_raw_packets_of_a_hostile_host(peer: DevicePeer, server: VspServer) -> None:
    def misbehave(request: VspRequest) -> bool:
        request.complete_raw(b"x", transaction_id=999)
        request.complete_raw(b"", packet_type=77, transaction_id=998)
        request.complete_raw(b"short")
        return True

    server.behaviour = misbehave
    packet = peer.post(HEADER.pack(), PAGES).result(20)
    assert packet == Packet(1, PacketType.COMPLETION, b"short", False, peer.epoch)
    assert [(p.transaction_id, p.packet_type, p.payload) for p in peer.unmatched] == [(999, 11, b"x"), (998, 77, b"")]
    server.send_packet(b"hello", packet_type=6, transaction_id=5, completion_requested=True)
    until(lambda: len(peer.unmatched) == 3)
    assert peer.unmatched[2] == Packet(5, 6, b"hello", True, 0)


def test_closed_channel_voids_what_is_in_flight(peer: DevicePeer, server: VspServer) -> None:
    server.behaviour = lambda request: True
    peer.post(HEADER.pack(), PAGES)
    (held,) = server.wait_in_flight(1)
    peer.send_raw(pack_frame(FrameType.CHANNEL, Channel(False).pack()))
    server.wait_channel(is_open=False)
    assert not server.in_flight
    assert not held.complete()
    peer.send_raw(pack_frame(FrameType.CHANNEL, Channel(True).pack()))
    server.wait_channel()
    assert not held.complete()
    server.behaviour = None
    assert peer.call(b"new").completion.error == 0
    assert not peer.unmatched, "no late completion went out"
    assert server.counters.voided == 1


def test_late_answer_after_reconnect_goes_nowhere(peer: DevicePeer, server: VspServer) -> None:
    server.behaviour = lambda request: True
    peer.post(HEADER.pack(), PAGES)
    (held,) = server.wait_in_flight(1)
    server.disconnect()
    assert not server.attached
    peer.hang_up()
    server.start()
    peer.serve()
    server.wait_attached()
    assert not held.complete()
    held.response.write(b"memory of the old connection is still mapped")
    server.behaviour = None
    assert peer.call(b"new").completion.error == 0
    assert not peer.unmatched


def test_what_was_sent_before_a_disconnect_arrives(peer: DevicePeer, server: VspServer) -> None:
    server.behaviour = lambda request: True
    futures = [peer.post(HEADER.pack(), PAGES) for _ in range(300)]
    for request in server.wait_in_flight(300):
        request.complete()
    server.disconnect()
    assert [completion(future.result(20)).error for future in futures] == [0] * 300


def test_not_attached(tmp_path: Path) -> None:
    server = VspServer(tmp_path / "x", Echo())
    with pytest.raises(HarnessError, match="not attached"):
        server.send_packet(b"")
    server.close()


# -- faults of the backend


class Faulty:
    def handle(self, request: VspRequest) -> None:
        raise RuntimeError("backend fault 42")


@pytest.mark.parametrize("workers", [0, 3])
def test_backend_exception_is_answered_and_kept(peer: DevicePeer, workers: int) -> None:
    server = VspServer(peer.path, Faulty(), workers=workers, attach_timeout_s=20)
    server.start()
    peer.serve()
    assert peer.call(b"x").completion == Completion(Status.INTERNAL_ERROR, 0)
    assert "backend fault 42" in server.errors[0].traceback
    assert server.errors[0].transaction_id == 1
    server.backend = Echo()
    assert peer.call(b"x").completion.error == 0
    assert server.counters.backend_errors == 1
    server.close()


def test_behaviour_exception_is_answered_and_kept(peer: DevicePeer, server: VspServer) -> None:
    def broken(request: VspRequest) -> bool:
        raise KeyError("behaviour fault")

    server.behaviour = broken
    assert peer.call(b"x").completion.error == Status.INTERNAL_ERROR
    assert "behaviour fault" in server.errors[0].traceback


# -- many clients, big requests, nothing left behind


@pytest.mark.parametrize("workers", [0, 4])
def test_one_hundred_threads(peer: DevicePeer, workers: int) -> None:
    server = VspServer(peer.path, Echo(), workers=workers, attach_timeout_s=20)
    server.start()
    peer.serve()

    def client(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(20):
            data = rng.randbytes(rng.choice((0, 1, 100, PAGE, 3 * PAGE + 5, 40_000)))
            head = rng.randbytes(rng.randint(1, 300))
            offsets = (rng.randrange(PAGE), rng.randrange(PAGE), rng.randrange(PAGE))
            answer = peer.call(head, data, offsets=offsets)
            assert answer == (Completion(0, len(head)), head[::-1], data.upper())

    with ThreadPoolExecutor(100) as pool:
        list(pool.map(client, range(100)))
    assert not server.in_flight
    assert not server.errors
    assert server.counters.requests == server.counters.completions == 2000
    assert not peer.unmatched
    server.close()


def test_largest_request(tmp_path: Path) -> None:
    from tests.unit.vsp_peer import GuestRam

    with DevicePeer(tmp_path / "big.sock", GuestRam(40 << 20)) as peer:
        server = VspServer(peer.path, Echo(), attach_timeout_s=20)
        server.start()
        peer.serve()
        data = random.Random(8).randbytes(8190 * PAGE)
        assert peer.call(b"h", data).data == data.upper()
        server.close()


def test_close_leaves_nothing(peer: DevicePeer) -> None:
    def open_fds() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:guest-ram")

    gc.collect()
    before = (threading.active_count(), open_fds(), mappings())
    for _ in range(5):
        server = VspServer(peer.path, Echo(), workers=2, attach_timeout_s=20)
        server.start()
        peer.serve()
        server.wait_attached()
        peer.post(HEADER.pack(), PAGES).result(20)
        server.close()
        peer.hang_up()
    assert (threading.active_count(), open_fds(), mappings()) == before


def test_close_while_the_device_does_not_read(peer: DevicePeer, server: VspServer) -> None:
    """A device whose guest is stopped reads nothing: a thread blocked in sending must not keep close() waiting."""
    server.disconnect()
    peer.hang_up()
    server.start()
    peer.handshake()
    server.wait_attached()
    sent = 0

    def flood() -> None:
        nonlocal sent
        with contextlib.suppress(HarnessError):
            while True:
                server.send_packet(bytes(4096))
                sent += 1

    blocked = threading.Thread(target=flood, daemon=True)
    blocked.start()
    last = -1
    while last != sent or not sent:
        last = sent
        time.sleep(0.2)
    assert blocked.is_alive()
    server.close()
    blocked.join(20)
    assert not blocked.is_alive()
