# SPDX-License-Identifier: GPL-2.0-only
"""`pyharness blob` in the guest, as `python3 -m pyharness.client`: the command line that a user of the driver has."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from pyharness.guest.host import Completed
from pyharness.vsp.backends.memory import MemoryBackend
from pyharness.vsp.behaviours import fail, nth
from pyharness.vsp.server import VspServer
from pyharness.vsp.wire import Status
from tests.driver.lab import Lab
from tests.driver.pattern import pattern

PIECE = 8 << 20


def blob(lab: Lab, node: str, *words: str) -> Completed:
    tool = ("python3", "-m", "pyharness.client", "--device", node)
    return lab.guest.run("env", "PYTHONPATH=/run/pyharness.zip", *tool, *words)


def told(done: Completed) -> list[dict[str, Any]]:
    assert done.status == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_put_list_stat_get_remove(lab: Lab, node: str, store: MemoryBackend) -> None:
    for name in ("one.bin", "two.bin", "three.txt"):
        lab.guest.push(pattern(len(name), 50_000), f"/tmp/tool/{name}")
    files = ("/tmp/tool/one.bin", "/tmp/tool/two.bin", "/tmp/tool/three.txt")
    put = told(blob(lab, node, "--json", "put", "--prefix", "dir/", *files))
    content = pattern(len("one.bin"), 50_000)
    assert put[0]["sha256"] == hashlib.sha256(content).hexdigest()
    assert store.read("/pyharness/dir/one.bin") == content
    listed = blob(lab, node, "ls", "dir/*.bin")
    assert [line.split()[0::7] for line in listed.stdout.decode().splitlines()] == [
        ["50000", "dir/one.bin"],
        ["50000", "dir/two.bin"],
    ]
    (seen,) = told(blob(lab, node, "--json", "stat", "dir/one.bin"))
    md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
    assert (seen["bytes"], seen["headers"]["content-md5"]) == (50_000, md5)
    got = told(blob(lab, node, "--json", "get", "--to", "/tmp/tool/got", "dir/*"))
    assert {(one["name"], one["checked"]) for one in got} == {
        (f"dir/{name}", True) for name in ("one.bin", "two.bin", "three.txt")
    }
    assert lab.guest.pull("/tmp/tool/got/dir/one.bin") == content
    assert b"dir/three.txt  removed" in blob(lab, node, "rm", "dir/[t]*").stdout
    assert list(store.blobs) == ["/pyharness/dir/one.bin"]


def test_get_goes_on_where_it_was_interrupted(lab: Lab, node: str, vsp: VspServer, store: MemoryBackend) -> None:
    content = pattern(7, 2 * PIECE + 5)
    store.write("/pyharness/large", content)
    get = ("--json", "get", "--to", "/tmp/tool/resumed", "large")
    with vsp.behaving(nth(4, fail(Status.CONNECTION_RESET))):  # the list, the head, the first range
        cut = blob(lab, node, *get)
    assert (cut.status, cut.stdout) == (5, b"")
    assert b"CONNECTION_RESET" in cut.stderr
    (got,) = told(blob(lab, node, *get))
    assert (got["resumed_at"], got["bytes"]) == (PIECE, len(content))
    assert got["sha256"] == hashlib.sha256(content).hexdigest()
    # Of another version nothing is kept.
    with vsp.behaving(nth(4, fail(Status.IO_TIMEOUT))):
        assert blob(lab, node, *get).status == 4
    store.write("/pyharness/large", content[:100])
    (got,) = told(blob(lab, node, *get))
    assert (got["resumed_at"], got["bytes"]) == (0, 100)
    names = lab.guest.module("os").listdir("/tmp/tool/resumed")
    assert list(names) == ["large"]


def test_get_sees_that_the_content_is_not_what_was_put(lab: Lab, node: str, store: MemoryBackend) -> None:
    lab.guest.push(b"content", "/tmp/tool/file")
    told(blob(lab, node, "--json", "put", "/tmp/tool/file"))
    right = store.blobs["/pyharness/file"]
    store.write("/pyharness/file", b"CONTENT")
    store.blobs["/pyharness/file"] = type(right)(
        right.etag, right.modified, right.content_type, right.content_md5, {"": b"CONTENT"}, (b"CONTENT",), (7,)
    )
    done = blob(lab, node, "get", "--to", "/tmp/tool/wrong", "file")
    assert (done.status, b"MD5" in done.stderr) == (1, True)
    assert list(lab.guest.module("os").listdir("/tmp/tool/wrong")) == []


def test_exit_codes(lab: Lab, node: str, vsp: VspServer, store: MemoryBackend) -> None:
    assert blob(lab, node, "rm", "nothing").status == 1
    assert blob(lab, node, "stat", "nothing").status == 1
    assert blob(lab, node, "--container", "nowhere", "ls").status == 2
    assert blob(lab, "/dev/azure_blob9", "ls").status == 5
    assert blob(lab, node, "ls").stdout == b""


def test_bench_leaves_nothing(lab: Lab, node: str, vsp: VspServer, store: MemoryBackend) -> None:
    before = vsp.counters.requests
    put, got = told(blob(lab, node, "--json", "bench", "--size", "10000", "--clients", "3", "--count", "4"))
    assert [(one["operation"], one["operations"], one["clients"]) for one in (put, got)] == [
        ("put", 12, 3),
        ("get", 12, 3),
    ]
    assert 0 < put["p50_us"] <= put["p99_us"] <= put["seconds"] * 1e6
    assert vsp.counters.requests == before + 12 + 12 + 1 + 12  # written, read, listed, removed
    assert not store.blobs
