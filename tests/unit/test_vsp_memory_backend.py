# SPDX-License-Identifier: GPL-2.0-only
"""The object store, asked through the whole VSP: socket, shared memory, HTTP heads."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import h11
import pytest

from pyharness.client.http import Answer as HttpAnswer
from pyharness.client.http import parse_answer
from pyharness.vsp.backends.memory import MemoryBackend
from pyharness.vsp.http import BadHead, parse_range, parse_request_head
from pyharness.vsp.server import VspServer
from pyharness.vsp.wire import Completion, Status
from tests.unit.vsp_peer import DevicePeer

CONTENT = random.Random(4).randbytes(70_003)
PATH = "/container/some blob"


@pytest.fixture
def store() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def peer(tmp_path: Path, store: MemoryBackend) -> Iterator[DevicePeer]:
    with DevicePeer(tmp_path / "vsp.sock") as device:
        server = VspServer(device.path, store, attach_timeout_s=20)
        server.start()
        device.serve()
        server.wait_attached()
        yield device
        server.close()
        assert not server.errors


def ask(
    peer: DevicePeer,
    method: str,
    path: str = PATH,
    *,
    query: str = "",
    data: bytes = b"",
    room: int | None = None,
    length: int | None = None,
    more: dict[str, str] | None = None,
    **headers: str,
) -> tuple[HttpAnswer, bytes]:
    """Head and body of the answer; a keyword `x_ms_range` is the header x-ms-range."""
    fields = {"Host": "h", **{name.replace("_", "-"): value for name, value in {**headers, **(more or {})}.items()}}
    if method == "PUT" or data:
        fields["Content-Length"] = str(len(data) if length is None else length)
    lines = [f"{method} {quote(path)}{'?' + query if query else ''} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    answer = peer.call("\r\n".join([*lines, "", ""]).encode(), data, room=room)
    assert answer.completion.error == 0
    parsed = parse_answer(answer.head)
    for name in ("date", "x-ms-request-id", "x-ms-version", "content-length"):
        assert parsed.headers[name]
    body = b"" if method == "HEAD" or parsed.length > len(answer.data) else answer.data[: parsed.length]
    return parsed, body


def refused(answer: tuple[HttpAnswer, bytes]) -> tuple[int, str]:
    return answer[0].status, answer[0].headers.get("x-ms-error-code", "")


def block_id(index: int) -> str:
    return base64.b64encode(f"block-{index}".encode()).decode()


def block_list(*entries: tuple[str, int]) -> bytes:
    listed = "".join(f"<{kind}>{block_id(index)}</{kind}>" for kind, index in entries)
    return f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()


def put_block(peer: DevicePeer, index: int, data: bytes, path: str = PATH) -> HttpAnswer:
    return ask(peer, "PUT", path, query=f"comp=block&blockid={quote(block_id(index), safe='')}", data=data)[0]


# -- whole blobs


def test_put_get_head_delete(peer: DevicePeer, store: MemoryBackend) -> None:
    made, _ = ask(peer, "PUT", data=CONTENT, x_ms_blob_type="BlockBlob", Content_Type="text/x-test")
    assert made.status == 201
    assert store.read(PATH) == CONTENT
    got, body = ask(peer, "GET", room=80_000)
    assert (got.status, body) == (200, CONTENT)
    assert got.headers["etag"] == made.headers["etag"]
    assert got.headers["content-type"] == "text/x-test"
    assert got.headers["last-modified"]
    seen, _ = ask(peer, "HEAD")
    assert (seen.status, seen.length) == (200, len(CONTENT))
    assert ask(peer, "DELETE")[0].status == 202
    assert refused(ask(peer, "GET", room=1000)) == (404, "BlobNotFound")
    assert not store.blobs


def test_body_is_the_valid_part_of_the_data_buffer(peer: DevicePeer, store: MemoryBackend) -> None:
    assert ask(peer, "PUT", data=b"abc", room=9000)[0].status == 201
    assert store.read(PATH) == b"abc"


def test_empty_blob(peer: DevicePeer, store: MemoryBackend) -> None:
    assert ask(peer, "PUT")[0].status == 201
    assert store.read(PATH) == b""
    got, body = ask(peer, "GET", room=10)
    assert (got.status, got.length, body) == (200, 0, b"")
    assert refused(ask(peer, "GET", Range="bytes=0-"))[0] == 416


def test_each_put_changes_the_etag(peer: DevicePeer) -> None:
    assert len({ask(peer, "PUT", data=b"same")[0].headers["etag"] for _ in range(5)}) == 5


def test_nothing_but_the_body_is_written_to_the_data_buffer(peer: DevicePeer, store: MemoryBackend) -> None:
    store.write("/b", b"12345")
    answer = peer.call(b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n", b"\xee" * 100, room=100)
    assert answer.data == b"12345" + b"\xee" * 95


# -- ranges


@pytest.mark.parametrize(
    ("value", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, len(CONTENT)),
        ("bytes=4095-4096", 4095, 4097),
        ("bytes=70002-", 70_002, len(CONTENT)),
        ("bytes=100-999999999", 100, len(CONTENT)),
        ("bytes=-5", len(CONTENT) - 5, len(CONTENT)),
        ("bytes=-99999999", 0, len(CONTENT)),
    ],
)
@pytest.mark.parametrize("header", ["Range", "x_ms_range"])
def test_range(peer: DevicePeer, store: MemoryBackend, value: str, start: int, end: int, header: str) -> None:
    store.write(PATH, CONTENT)
    got, body = ask(peer, "GET", room=80_000, more={header: value})
    assert (got.status, body) == (206, CONTENT[start:end])
    assert got.headers["content-range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"


@pytest.mark.parametrize("value", ["bytes=70003-", "bytes=99999999-", "bytes=-0"])
def test_range_past_the_end(peer: DevicePeer, store: MemoryBackend, value: str) -> None:
    store.write(PATH, CONTENT)
    answer = ask(peer, "GET", room=1000, Range=value)
    assert refused(answer) == (416, "InvalidRange")
    assert answer[0].headers["content-range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize(
    "value", ["bytes=5-4", "lines=1-2", "bytes=1-2,4-5", "bytes=-", "bytes=a-b", "bytes=" + "9" * 99]
)
def test_range_that_is_to_be_ignored(peer: DevicePeer, store: MemoryBackend, value: str) -> None:
    store.write(PATH, CONTENT)
    got, body = ask(peer, "GET", room=80_000, Range=value)
    assert (got.status, body) == (200, CONTENT)


def test_x_ms_range_goes_before_range(peer: DevicePeer, store: MemoryBackend) -> None:
    store.write(PATH, CONTENT)
    assert ask(peer, "GET", room=100, x_ms_range="bytes=0-1", Range="bytes=5-9")[1] == CONTENT[:2]


def test_ranges_against_slices() -> None:
    rng = random.Random(6)
    for _ in range(2000):
        size, first, last = rng.randrange(20), rng.randrange(25), rng.randrange(25)
        found = parse_range(f"bytes={first}-{last}", size)
        if last < first:
            assert found is None
        else:
            assert found is not None
            assert bytes(range(size))[slice(*found)] == bytes(range(size))[first : last + 1]


# -- blocks


def test_blocks_make_a_blob_in_the_order_of_the_list(peer: DevicePeer, store: MemoryBackend) -> None:
    pieces = [random.Random(index).randbytes(10_000 + index) for index in range(4)]
    for index, piece in enumerate(pieces):
        assert put_block(peer, index, piece).status == 201
    assert refused(ask(peer, "GET", room=10))[0] == 404, "staged blocks are no blob"
    body = block_list(("Latest", 3), ("Uncommitted", 0), ("Latest", 0), ("Latest", 2))
    assert ask(peer, "PUT", query="comp=blocklist", data=body, x_ms_blob_content_type="text/y")[0].status == 201
    whole = pieces[3] + pieces[0] + pieces[0] + pieces[2]
    assert store.read(PATH) == whole
    got, data = ask(peer, "GET", room=50_000)
    assert data == whole
    assert got.headers["content-type"] == "text/y"
    for start, end in ((0, 5), (9_990, 20_010), (10_003, 10_004), (39_000, len(whole))):
        assert ask(peer, "GET", room=50_000, Range=f"bytes={start}-{end - 1}")[1] == whole[start:end]


def test_committed_blocks_can_be_used_again(peer: DevicePeer, store: MemoryBackend) -> None:
    put_block(peer, 0, b"zero")
    put_block(peer, 1, b"one")
    ask(peer, "PUT", query="comp=blocklist", data=block_list(("Latest", 0), ("Latest", 1)))
    put_block(peer, 1, b"ONE")
    body = block_list(("Committed", 1), ("Uncommitted", 1), ("Latest", 1), ("Latest", 0))
    assert ask(peer, "PUT", query="comp=blocklist", data=body)[0].status == 201
    assert store.read(PATH) == b"oneONEONEzero"


@pytest.mark.parametrize("kind", ["Latest", "Committed", "Uncommitted", "Nonsense"])
def test_unknown_block_changes_nothing(peer: DevicePeer, store: MemoryBackend, kind: str) -> None:
    store.write(PATH, b"old")
    put_block(peer, 0, b"zero")
    body = block_list(("Latest", 0), (kind, 7))
    assert refused(ask(peer, "PUT", query="comp=blocklist", data=body, room=2000)) == (400, "InvalidBlockList")
    assert store.read(PATH) == b"old"


@pytest.mark.parametrize("identity", ["", "%21%21", "YQ", quote(base64.b64encode(bytes(65)), safe="")])
def test_bad_block_id(peer: DevicePeer, identity: str) -> None:
    answer = ask(peer, "PUT", query=f"comp=block&blockid={identity}", data=b"x", room=1000)
    assert refused(answer) == (400, "InvalidQueryParameterValue")


def test_bad_block_list(peer: DevicePeer) -> None:
    answer = ask(peer, "PUT", query="comp=blocklist", data=b"<BlockList><Latest>", room=1000)
    assert refused(answer) == (400, "InvalidXmlDocument")


def test_put_blob_forgets_staged_blocks(peer: DevicePeer) -> None:
    put_block(peer, 0, b"zero")
    ask(peer, "PUT", data=b"whole")
    body = block_list(("Uncommitted", 0))
    assert refused(ask(peer, "PUT", query="comp=blocklist", data=body, room=1000))[0] == 400


# -- refusals


def test_error_body_is_xml_when_there_is_room(peer: DevicePeer) -> None:
    answer, body = ask(peer, "GET", "/nothing", room=1000)
    assert answer.status == 404
    assert b"<Error><Code>BlobNotFound</Code><Message>" in body
    assert len(body) == answer.length
    answer, body = ask(peer, "GET", "/nothing", room=10)
    assert (answer.status, answer.length, body) == (404, 0, b"")


def test_data_buffer_too_small(peer: DevicePeer, store: MemoryBackend) -> None:
    store.write("/b", CONTENT)
    answer = peer.call(b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n", b"\xee" * 100, room=100)
    head = parse_answer(answer.head)
    assert (head.status, head.length) == (413, len(CONTENT))
    assert answer.data == b"\xee" * 100


def test_response_buffer_too_small(peer: DevicePeer, store: MemoryBackend) -> None:
    answer = peer.call(b"PUT /b HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n", b"ok", response_room=100)
    assert answer.completion == Completion(Status.BUFFER_TOO_SMALL, 0)
    assert store.read("/b") == b"ok", "as documented, the operation has been done"


def listed(peer: DevicePeer, query: str = "") -> tuple[list[str], str]:
    answer, body = ask(peer, "GET", "/c", query=f"restype=container&comp=list{query}", room=50_000)
    assert answer.status == 200
    root = ElementTree.fromstring(body)
    return [element.text or "" for element in root.iterfind("Blobs/Blob/Name")], root.findtext("NextMarker", "")


def test_list(peer: DevicePeer, store: MemoryBackend) -> None:
    for path in ("/c/b <1>", "/c/a", "/c/b/2", "/other/b", "/cc/b"):
        store.write(path, path.encode())
    assert listed(peer) == (["a", "b <1>", "b/2"], "")
    assert listed(peer, "&prefix=b") == (["b <1>", "b/2"], "")
    assert listed(peer, "&maxresults=2") == (["a", "b <1>"], "b/2")
    assert listed(peer, "&maxresults=2&marker=b/2") == (["b/2"], "")
    assert listed(peer, "&prefix=nothing") == ([], "")
    for wrong in ("0", "5001", "x"):
        refusal = ask(peer, "GET", "/c", query=f"restype=container&comp=list&maxresults={wrong}", room=5000)
        assert refused(refusal) == (400, "OutOfRangeQueryParameterValue")


def test_md5_is_kept(peer: DevicePeer) -> None:
    ask(peer, "PUT", data=CONTENT, x_ms_blob_content_md5="bWQ1")
    assert ask(peer, "HEAD")[0].headers["content-md5"] == "bWQ1"
    put_block(peer, 1, b"x")
    made = block_list(("Latest", 1))
    assert ask(peer, "PUT", query="comp=blocklist", data=made, x_ms_blob_content_md5="bW9yZQ==")[0].status == 201
    assert ask(peer, "GET", room=10)[0].headers["content-md5"] == "bW9yZQ=="


@pytest.mark.parametrize(
    ("method", "query", "headers", "status"),
    [
        ("POST", "", {}, 405),
        ("PATCH", "", {}, 405),
        ("GET", "comp=list", {}, 501),
        ("PUT", "comp=page", {}, 501),
        ("PUT", "restype=container", {}, 501),
        ("PUT", "", {"x_ms_blob_type": "PageBlob"}, 501),
        ("GET", "comp", {}, 400),
    ],
)
def test_unsupported(peer: DevicePeer, method: str, query: str, headers: dict[str, str], status: int) -> None:
    answer, body = ask(peer, method, query=query, room=2000, more=headers)
    assert answer.status == status
    assert b"<Error>" in body
    if status == 405:
        assert answer.headers["allow"] == "DELETE, GET, HEAD, PUT"


def test_put_without_content_length(peer: DevicePeer) -> None:
    answer = peer.call(b"PUT /b HTTP/1.1\r\nHost: h\r\n\r\n", b"data")
    assert parse_answer(answer.head).status == 411


def test_content_length_must_be_the_valid_bytes(peer: DevicePeer, store: MemoryBackend) -> None:
    assert refused(ask(peer, "PUT", data=b"data", length=3, room=1000)) == (400, "InvalidHeaderValue")
    assert not store.blobs


def test_chunked_is_not_implemented(peer: DevicePeer) -> None:
    answer = peer.call(b"PUT /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", b"data")
    assert parse_answer(answer.head).status == 501


def test_conditions(peer: DevicePeer, store: MemoryBackend) -> None:
    etag = store.write(PATH, b"one").etag
    assert ask(peer, "GET", room=10, If_Match=etag)[1] == b"one"
    assert ask(peer, "GET", room=10, If_Match=f'"x", {etag}')[0].status == 200
    assert refused(ask(peer, "GET", room=10, If_Match='"x"')) == (412, "ConditionNotMet")
    unmodified = ask(peer, "GET", room=1000, If_None_Match=etag)
    assert (unmodified[0].status, unmodified[1]) == (304, b"")
    assert refused(ask(peer, "PUT", data=b"two", If_None_Match="*")) == (409, "BlobAlreadyExists")
    assert refused(ask(peer, "DELETE", If_None_Match="*")) == (412, "ConditionNotMet")
    assert refused(ask(peer, "PUT", data=b"two", If_Match='"x"')) == (412, "ConditionNotMet")
    assert refused(ask(peer, "DELETE", If_Match='"x"')) == (412, "ConditionNotMet")
    assert store.read(PATH) == b"one"
    assert ask(peer, "PUT", data=b"two", If_Match=etag)[0].status == 201
    assert ask(peer, "PUT", "/new", data=b"x", If_None_Match="*")[0].status == 201
    assert refused(ask(peer, "PUT", "/newer", data=b"x", If_Match="*"))[0] == 412


def test_client_request_id_and_version_are_repeated(peer: DevicePeer) -> None:
    answer, _ = ask(peer, "HEAD", x_ms_client_request_id="me", x_ms_version="2019-12-12")
    assert answer.headers["x-ms-client-request-id"] == "me"
    assert answer.headers["x-ms-version"] == "2019-12-12"


# -- heads


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.1\r\nHost: h\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nBad Name: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\x00c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\nbody",
        b"GET * HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /?a HTTP/1.1\r\nHost: h\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        bytes(range(256)),
    ],
)
def test_bad_heads(peer: DevicePeer, head: bytes) -> None:
    with pytest.raises(BadHead):
        parse_request_head(head)
    if head:
        answer = peer.call(head, room=2000)
        assert parse_answer(answer.head).status == 400


def test_head_padded_with_zeros_is_refused() -> None:
    """The request buffer is exactly the head; a client that sends a whole page sends something else."""
    with pytest.raises(BadHead, match="follow the head"):
        parse_request_head(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" + bytes(100))


def test_no_head_is_accepted_that_h11_refuses() -> None:
    """Of what h11 lets through on purpose, folded lines and control characters are refused."""
    rng = random.Random(7)
    good = b"PUT /a%20b?comp=block HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nx-ms-version:\t2023  \r\n\r\n"
    accepted = 0
    for _ in range(20_000):
        changed = bytearray(good)
        for _ in range(rng.randint(0, 3)):
            changed[rng.randrange(len(changed))] = rng.choice((*b" \t\r\n:/?%0H\0", rng.randrange(256)))
        try:
            head = parse_request_head(bytes(changed))
        except BadHead:
            continue
        accepted += 1
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(bytes(changed))
        event = connection.next_event()
        assert isinstance(event, h11.Request)
        assert head.method.encode() == event.method
        assert head.headers == {name.decode(): value.decode("latin-1") for name, value in event.headers}
    assert accepted > 2000


def test_absolute_target_and_quoting() -> None:
    head = parse_request_head(b"GET http://a/b%20c%3f?x=%26&y= HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (head.path, head.query) == ("/b c?", {"x": "&", "y": ""})


def test_random_heads_give_an_answer(peer: DevicePeer) -> None:
    rng = random.Random(12)
    good = b"PUT /a?comp=block&blockid=QQ%3D%3D HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nRange: bytes=0-1\r\n\r\n"
    statuses = set()
    for _ in range(600):
        head = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            head[rng.randrange(len(head))] = rng.choice((*b" \r\n:/?&=%\0", rng.randrange(256)))
        answer = peer.call(bytes(head), b"abc", room=500)
        assert answer.completion.error == 0
        statuses.add(parse_answer(answer.head).status)
    assert {201, 400} <= statuses <= {200, 201, 400, 404, 405, 411, 501}


# -- many clients


def test_one_hundred_clients(peer: DevicePeer, store: MemoryBackend) -> None:
    """Each writes blobs of its own and all of them one shared blob, which is at any time one writer's whole content."""
    shared = [bytes([client]) * 3000 for client in range(100)]

    def client(number: int) -> None:
        rng = random.Random(number)
        for turn in range(4):
            data = rng.randbytes(rng.choice((1, 4096, 12_345)))
            path = f"/own/{number}/{turn}"
            assert ask(peer, "PUT", path, data=data)[0].status == 201
            assert ask(peer, "PUT", "/shared", data=shared[number])[0].status == 201
            assert ask(peer, "GET", path, room=20_000)[1] == data
            assert ask(peer, "GET", "/shared", room=3000)[1] in shared
            if turn % 2:
                assert ask(peer, "DELETE", path)[0].status == 202

    with ThreadPoolExecutor(100) as pool:
        list(pool.map(client, range(100)))
    assert len(store.blobs) == 201
    assert store.read("/shared") in shared
