# SPDX-License-Identifier: GPL-2.0-only
"""The backend that forwards, between a device's side of the protocol and a service that does anything."""

from __future__ import annotations

import datetime
import ipaddress
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pyharness.client.http import parse_answer
from pyharness.vsp.backends.http import WORKERS, HttpBackend
from pyharness.vsp.frames import Channel, FrameType, pack_frame
from pyharness.vsp.server import VspServer
from pyharness.vsp.wire import RequestHeader, Status
from tests.unit.service import Conversation, Service
from tests.unit.vsp_peer import DevicePeer

GET = b"GET /c/b?x=%20y HTTP/1.1\r\nHost: account.example\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: e\r\n\r\n"
CONTENT = random.Random(9).randbytes(300_001)


def put(length: int) -> bytes:
    return b"PUT /b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % length


@contextmanager
def forwarding(directory: Path, url: str, timeout_s: float = 30.0) -> Iterator[tuple[DevicePeer, VspServer]]:
    with (
        HttpBackend(url, timeout_s=timeout_s) as backend,
        DevicePeer(directory / "vsp.sock") as device,
    ):
        server = VspServer(device.path, backend, workers=WORKERS, attach_timeout_s=20)
        server.start()
        device.serve()
        server.wait_attached()
        yield device, server
        server.close()
        assert not server.errors, server.errors[0].traceback


def repeating(answer: bytes) -> Callable[[Conversation], None]:
    """A service that gives one answer to everything."""

    def serve(conversation: Conversation) -> None:
        while conversation.listen():
            conversation.say(answer)

    return serve


def echo(conversation: Conversation) -> None:
    while asked := conversation.listen():
        conversation.say(OK % len(asked.body) + asked.body)


def test_head_goes_on_as_it_is_but_for_what_is_of_one_connection(tmp_path: Path) -> None:
    heads: list[bytes] = []

    def serve(conversation: Conversation) -> None:
        while asked := conversation.listen():
            heads.append(asked.head)
            conversation.say(b"HTTP/1.1 200 Fine\r\nKeep-Alive: timeout=5\r\nX-One: a\r\nx-one: b\r\n")
            conversation.say(b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")

    with Service(serve) as service, forwarding(tmp_path, service.url) as (peer, _):
        head = b"GET /c/b?x=%20y HTTP/1.1\r\nhost: Account\r\nX-MS-Date: now\r\nConnection: close\r\nExpect: x\r\n\r\n"
        answer = peer.call(head, room=100)
    assert heads == [b"GET /c/b?x=%20y HTTP/1.1\r\nhost: Account\r\nX-MS-Date: now\r\n\r\n"]
    assert answer.head == b"HTTP/1.1 200 Fine\r\nX-One: a\r\nx-one: b\r\nContent-Length: 2\r\n\r\n"
    assert answer.data[:2] == b"ok"


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 70_003, 5_000_001])
def test_bodies_from_and_to_scattered_pages(tmp_path: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    with Service(echo) as service, forwarding(tmp_path, service.url) as (peer, _):
        for offset in (0, 1, 4095):
            answer = peer.call(put(size), content, room=size + 10, offsets=(offset, 7, 9))
            assert answer.completion.error == Status.SUCCESS
            assert parse_answer(answer.head).headers == {"content-length": str(size), "etag": "e"}
            assert answer.data[:size] == content
    assert service.connections == 1


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK % 5 + b"hello", b"hello"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\nA: b\r\n\r\n",
            b"hello",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nA: b\r\n\r\n" + OK % 5 + b"hello", b"hello"),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b""),
    ],
)
def test_forms_of_a_body(tmp_path: Path, answer: bytes, body: bytes) -> None:
    with Service(repeating(answer)) as service, forwarding(tmp_path, service.url) as (peer, _):
        for _turn in range(2):
            got = peer.call(GET, room=5000)
            assert parse_answer(got.head).length == len(body)
            assert got.data[: len(body)] == body
        assert service.connections == 1, "the connection was fit for the next request"


def test_body_to_the_end_of_the_connection(tmp_path: Path) -> None:
    def serve(conversation: Conversation) -> None:
        conversation.listen()
        conversation.say(b"HTTP/1.0 200 OK\r\n\r\n" + CONTENT)

    with Service(serve) as service, forwarding(tmp_path, service.url) as (peer, _):
        for _turn in range(2):
            got = peer.call(GET, room=len(CONTENT) + 1)
            assert parse_answer(got.head).length == len(CONTENT)
            assert got.data[:-1] == CONTENT
        assert service.connections == 2


@pytest.mark.parametrize(
    ("method", "answer"),
    [("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"), ("GET", b"HTTP/1.1 304 Same\r\n\r\n")],
)
def test_answers_without_a_body(tmp_path: Path, method: str, answer: bytes) -> None:
    with Service(repeating(answer)) as service, forwarding(tmp_path, service.url) as (peer, _):
        for _turn in range(2):
            assert peer.call(f"{method} /b HTTP/1.1\r\nHost: h\r\n\r\n".encode()).head == answer
        assert service.connections == 1


@pytest.mark.parametrize(
    "sent",
    [
        OK % len(CONTENT) + CONTENT,
        b"HTTP/1.1 206 P\r\nTransfer-Encoding: chunked\r\n\r\n493e1\r\n%b\r\n0\r\n\r\n" % CONTENT,
    ],
)
def test_success_that_does_not_fit_says_what_it_needs(tmp_path: Path, sent: bytes) -> None:
    with Service(repeating(sent)) as service, forwarding(tmp_path, service.url) as (peer, _):
        small = parse_answer(peer.call(GET, room=1000).head)
        assert (small.status, small.length) == (413, len(CONTENT))
        assert peer.call(GET, room=small.length).data == CONTENT


def test_error_that_does_not_fit_comes_without_its_body(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 404 Not Found\r\nx-ms-error-code: BlobNotFound\r\nContent-Length: 9\r\n\r\n<Error/>\n"
    with Service(repeating(answer)) as service, forwarding(tmp_path, service.url) as (peer, _):
        head = parse_answer(peer.call(GET, room=8).head)
        assert (head.status, head.length, head.headers["x-ms-error-code"]) == (404, 0, "BlobNotFound")


def test_head_that_does_not_fit(tmp_path: Path) -> None:
    with Service(repeating(OK % 0)) as service, forwarding(tmp_path, service.url) as (peer, _):
        assert peer.call(GET, response_room=20).completion.error == Status.BUFFER_TOO_SMALL


@pytest.mark.parametrize(
    ("head", "data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"", 400),
        (b"PUT / HTTP/1.1\r\nHost: h\r\n\r\n", b"x", 411),
        (b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n", b"x", 400),
        (b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", b"x", 501),
    ],
)
def test_requests_that_are_not_forwarded(tmp_path: Path, head: bytes, data: bytes, status: int) -> None:
    with Service(echo) as service, forwarding(tmp_path, service.url) as (peer, _):
        assert parse_answer(peer.call(head, data, room=1000).head).status == status
    assert service.connections == 0


# -- services that fail


def test_nobody_listens(tmp_path: Path) -> None:
    with Service(echo) as gone:
        pass
    with forwarding(tmp_path, gone.url) as (peer, _):
        assert peer.call(GET).completion.error == Status.CONNECTION_REFUSED
        with Service(echo, port=gone.port):
            assert peer.call(GET).completion.error == Status.SUCCESS


def test_host_that_does_not_exist(tmp_path: Path) -> None:
    with forwarding(tmp_path, "http://nobody.invalid") as (peer, _):
        assert peer.call(GET).completion.error == Status.HOST_UNREACHABLE


@pytest.mark.parametrize("said", [b"", OK % 100_000 + bytes(50_000), b"HTTP/1.1 200 OK\r\nContent-L"])
def test_service_that_hangs_up_in_the_middle(tmp_path: Path, said: bytes) -> None:
    def serve(conversation: Conversation) -> None:
        conversation.listen()
        if conversation.number == 0:
            conversation.say(said)
            conversation.reset()
        else:
            conversation.say(OK % 0)

    with Service(serve) as service, forwarding(tmp_path, service.url) as (peer, _):
        assert peer.call(GET, room=100_000).completion.error == Status.CONNECTION_RESET
        assert peer.call(GET, room=100_000).completion.error == Status.SUCCESS


def test_connection_that_ended_while_it_was_kept(tmp_path: Path) -> None:
    gone = threading.Semaphore(0)

    def serve(conversation: Conversation) -> None:
        conversation.listen()
        conversation.say(OK % 0)
        conversation.socket.shutdown(socket.SHUT_RDWR)
        gone.release()

    with Service(serve) as service, forwarding(tmp_path, service.url) as (peer, _):
        for _turn in range(3):
            assert peer.call(put(3), b"abc").completion.error == Status.SUCCESS
            gone.acquire()


@pytest.mark.parametrize(("head", "status"), [(GET, Status.SUCCESS), (put(0), Status.CONNECTION_RESET)])
def test_connection_that_ends_as_it_is_used_again(tmp_path: Path, head: bytes, status: Status) -> None:
    """What reads is sent once more; of what writes nobody knows whether it was carried out."""

    def serve(conversation: Conversation) -> None:
        conversation.listen()
        conversation.say(OK % 0)
        conversation.listen()
        conversation.reset()

    with Service(serve) as service, forwarding(tmp_path, service.url) as (peer, _):
        assert peer.call(head).completion.error == Status.SUCCESS
        assert peer.call(head).completion.error == status


def test_refusal_of_a_body_that_is_not_read(tmp_path: Path) -> None:
    """The answer comes although most of the body is still to be sent; the connection is of no more use."""
    over = threading.Event()

    def serve(conversation: Conversation) -> None:
        if conversation.number == 0:
            conversation.socket.recv(10)
            conversation.say(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            over.wait()
        else:
            echo(conversation)

    size = 12_000_000
    with Service(serve) as service, forwarding(tmp_path, service.url) as (peer, _):
        assert parse_answer(peer.call(put(size), bytes(size)).head).status == 403
        assert parse_answer(peer.call(put(3), b"abc").head).status == 200
        over.set()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        b"\0" * 100_000,
    ],
)
def test_service_that_does_not_speak_http(tmp_path: Path, answer: bytes) -> None:
    with Service(repeating(answer)) as service, forwarding(tmp_path, service.url) as (peer, _):
        assert peer.call(GET, room=100).completion.error == Status.INVALID_NETWORK_RESPONSE


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200", OK % 10 + b"12345"])
@pytest.mark.parametrize("timeout_ms", [300, 0])
def test_service_that_is_silent(tmp_path: Path, said: bytes, timeout_ms: int) -> None:
    """Each request has an answer at its timeout, the host's own one if it names none."""
    over = threading.Event()

    def serve(conversation: Conversation) -> None:
        conversation.listen()
        conversation.say(said)
        over.wait()

    with Service(serve) as service, forwarding(tmp_path, service.url, 0.3) as (peer, _):
        with ThreadPoolExecutor(30) as pool:
            answers = pool.map(lambda _: peer.call(GET, room=10, timeout_ms=timeout_ms), range(30))
            assert {answer.completion.error for answer in answers} == {Status.IO_TIMEOUT}
        over.set()


def test_closed_channel_leaves_guest_memory_alone(tmp_path: Path) -> None:
    """What the service says after the guest has closed the channel does not reach what was the data buffer."""
    asked, closed = threading.Event(), threading.Event()

    def serve(conversation: Conversation) -> None:
        conversation.listen()
        asked.set()
        closed.wait()
        conversation.say(OK % 4096 + b"\xee" * 4096)
        conversation.listen()

    with Service(serve) as service, forwarding(tmp_path, service.url) as (peer, server):
        with peer.ram.pages(3) as pages:
            peer.ram.write(pages, 4096, GET)
            header = RequestHeader(0, 0, 0, 4096, 0, 0x100, 4096, len(GET), 8192, 4096, bytes(16))
            peer.post(header.pack(), [(page, 4096) for page in pages])
        assert asked.wait(20)
        peer.send_raw(pack_frame(FrameType.CHANNEL, Channel(False).pack()))
        server.wait_channel(False)
        closed.set()
        server.close()  # waits for the request's thread
        assert b"\xee" not in peer.ram.map[:]
        assert not server.counters.completions


# -- many


def test_one_hundred_clients(tmp_path: Path) -> None:
    with Service(echo) as service, forwarding(tmp_path, service.url) as (peer, _):

        def client(number: int) -> None:
            rng = random.Random(number)
            for _turn in range(5):
                content = rng.randbytes(rng.choice((1, 5000, 40_000)))
                answer = peer.call(put(len(content)), content, offsets=(rng.randrange(4096), 0, 0))
                assert answer.completion.error == Status.SUCCESS
                assert answer.data == content

        with ThreadPoolExecutor(100) as pool:
            list(pool.map(client, range(100)))
        assert service.connections <= 100


# -- the URL


@pytest.mark.parametrize("url", ["ftp://h", "http://", "127.0.0.1:1", "http://h/account", "http://u@h", "http://h?x"])
def test_what_is_no_endpoint(url: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        HttpBackend(url)


def test_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "service")])
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    trusted, private = tmp_path / "certificate.pem", tmp_path / "key.pem"
    trusted.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(trusted, private)
    with Service(echo, tls=tls) as service:
        with forwarding(tmp_path, service.url) as (peer, _):
            assert peer.call(GET).completion.error == Status.HOST_UNREACHABLE, "nobody vouches for the certificate"
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        with forwarding(tmp_path, service.url) as (peer, _):
            for _turn in range(2):
                answer = peer.call(put(len(CONTENT)), CONTENT, offsets=(100, 0, 0))
                assert answer.completion.error == Status.SUCCESS
                assert answer.data == CONTENT
