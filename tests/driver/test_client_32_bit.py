# SPDX-License-Identifier: GPL-2.0-only
"""The client library and its tool in a 32-bit Python, under the 64-bit kernel."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

import pytest

from pyharness.artifacts.apt import NoLists
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.python32 import ensure_python32
from pyharness.guest.host import Completed
from pyharness.progress import Progress
from pyharness.vsp.backends.memory import MemoryBackend
from tests.driver.lab import Lab
from tests.driver.pattern import pattern
from tests.unpacked import unpack

ROOT = "/run/python32"
Python = Callable[..., Completed]

# What mmap gives such a program lies above 2 GiB: no address there fits into a long.
BY_THE_LIBRARY = """
import mmap, struct, sys
from pyharness.client.device import BlobDevice, address_of
from pyharness.client.isolated import IsolatedDevice

node, size = sys.argv[1], 1 << 20
head = b"GET /b HTTP/1.1\\r\\nHost: h\\r\\n\\r\\n"
room = mmap.mmap(-1, size)
assert address_of(memoryview(room)) >= 1 << 31
with BlobDevice(node) as device:
    prepared = device.prepare(head, room)
    for _ in range(2):
        assert b" 200 " in prepared.send().check().head
    asked = bytearray(size)
    assert b" 200 " in device.request(head, data_in=asked).check().head
with IsolatedDevice(node) as device:
    alone = bytearray(size)
    assert b" 200 " in device.request(head, data_in=alone, wait_s=600).check().head
assert asked == alone == room[:size]
print(struct.calcsize("P"), sum(asked))
"""


@pytest.fixture
def python32(lab: Lab) -> Iterator[Python]:
    """Run the Python with these arguments; it has the guest's devices, and the client as this checkout has it."""
    cache = Cache.open()
    guest = lab.guest

    def done(*argv: str) -> None:
        ended = guest.run(*argv)
        assert ended.status == 0, ended.stderr

    try:
        unpack(guest, ensure_python32(cache, Progress()), ROOT)
    except NoLists as error:
        pytest.skip(f"needs a 32-bit Python: {error}")
    finally:
        cache.close()
    done("cp", "/run/pyharness.zip", f"{ROOT}/mnt")
    done("mount", "--bind", "/dev", f"{ROOT}/dev")
    yield lambda *words: guest.run("env", "PYTHONPATH=/mnt/pyharness.zip", "chroot", ROOT, "python3", *words)
    done("umount", f"{ROOT}/dev")
    done("rm", "-r", ROOT)


def test_library(lab: Lab, node: str, store: MemoryBackend, python32: Python) -> None:
    content = pattern(3, 1 << 20)
    store.write("/b", content)
    ended = python32("-c", BY_THE_LIBRARY, node)
    assert (ended.status, ended.stderr) == (0, b"")
    assert ended.stdout.split() == [b"4", str(sum(content)).encode()]


def test_tool(lab: Lab, node: str, store: MemoryBackend, python32: Python) -> None:
    content = pattern(5, 9_000_001)
    lab.guest.push(content, f"{ROOT}/mnt/file")
    tool = ("-m", "pyharness.client", "--device", node, "--json")
    for words in (("put", "/mnt/file"), ("get", "--to", "/mnt/got", "file")):
        ended = python32(*tool, *words)
        assert ended.status == 0, ended.stderr
        assert json.loads(ended.stdout)["sha256"] == hashlib.sha256(content).hexdigest()
    assert store.read("/pyharness/file") == content
    assert lab.guest.pull(f"{ROOT}/mnt/got/file") == content
