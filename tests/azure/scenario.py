# SPDX-License-Identifier: GPL-2.0-only
"""What programs do with the SDK, written once and run over any transport.

Each step is a function of a fresh prefix of blob names; what it returns or raises, and every exchange with the service,
is recorded in a form that two runs can be compared by: what differs each time by nature (dates, ids) is only there or
not. Standard library and azure-storage-blob alone: it runs in the guest too.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import AzureError, HttpResponseError
from azure.storage.blob import (
    BlobBlock,
    BlobClient,
    BlobLeaseClient,
    BlobServiceClient,
    ContainerClient,
    ContentSettings,
    StandardBlobTier,
)

Exchange = tuple[str, int, tuple[tuple[str, str], ...]]
"""Method and target, status, headers."""

_OPAQUE = frozenset(
    {
        "date",
        "etag",
        "last-modified",
        "x-ms-client-request-id",
        "x-ms-copy-completion-time",
        "x-ms-copy-id",
        "x-ms-copy-source",
        "x-ms-creation-time",
        "x-ms-lease-id",
        "x-ms-request-id",
        "x-ms-snapshot",
        "x-ms-access-tier-change-time",
    }
)
"""Headers of which only the presence is compared."""
_OF_THE_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding"})
_IDS = re.compile(r"(blockid|marker|snapshot|sig|se|st)=[^&]*|batch_[0-9a-f-]+")
_SMALL = {"max_single_put_size": 64 << 10, "max_block_size": 64 << 10, "max_page_size": 64 << 10}
_CHUNKS = {"max_single_get_size": 64 << 10, "max_chunk_get_size": 32 << 10}
_STALE = '"0x1"'


def pattern(size: int) -> bytes:
    """The content of a blob."""
    return random.Random(size).randbytes(size)


def digest(content: bytes) -> str:
    """Length and hash, for content that is compared."""
    return f"{len(content)} {hashlib.sha256(content).hexdigest()[:16]}"


@dataclass
class Outcome:
    """What one step came to."""

    name: str
    value: str = ""
    exchanges: list[Exchange] = field(default_factory=list)


@dataclass
class Scene:
    """The clients that a step uses."""

    service: BlobServiceClient
    container: ContainerClient
    step: str
    make: Callable[..., BlobServiceClient]
    """Another client of the service, with these options."""

    def blob(self, name: str = "blob", options: Mapping[str, int] | None = None) -> BlobClient:
        """A blob of this step's own."""
        service = self.make(**options) if options else self.service
        return service.get_blob_client(self.container.container_name, f"{self.step}/{name}")


Step = Callable[[Scene], object]
STEPS: dict[str, Step] = {}
OF_MEMORY: list[str] = []
"""The steps that the `memory` backend serves too, with the same outcomes."""


def step(function: Step) -> Step:
    """A step of the scenario."""
    STEPS[function.__name__] = function
    return function


def basic(function: Step) -> Step:
    """A step that needs no more than whole blobs, blocks, ranges and conditions."""
    OF_MEMORY.append(function.__name__)
    return step(function)


def failure(action: Callable[[], object]) -> str:
    """The exception that is expected."""
    try:
        action()
    except AzureError as error:
        said = error if isinstance(error, HttpResponseError) else None
        code = getattr(error, "error_code", None)
        return f"{type(error).__name__} {said.status_code if said else ''} {getattr(code, 'value', code)}"
    return "nothing raised"


# -- up and down


@basic
def upload_bytes(at: Scene) -> object:
    at.blob().upload_blob(pattern(5000))
    return digest(at.blob().download_blob().readall())


@basic
def upload_text(at: Scene) -> object:
    at.blob().upload_blob("grüß dich", encoding="utf-8")
    return at.blob().download_blob(encoding="utf-8").readall()


@basic
def upload_stream(at: Scene) -> object:
    at.blob().upload_blob(io.BytesIO(pattern(300_000)))
    return digest(at.blob().download_blob().readall())


@basic
def upload_pieces_of_unknown_length(at: Scene) -> object:
    def pieces() -> Iterator[bytes]:
        for size in (1, 70_000, 3, 64 << 10):
            yield pattern(size)

    at.blob(options=_SMALL).upload_blob(pieces())
    return digest(at.blob().download_blob().readall())


@basic
def upload_empty(at: Scene) -> object:
    at.blob().upload_blob(b"")
    return digest(at.blob().download_blob().readall()), at.blob().get_blob_properties().size


@basic
def upload_once(at: Scene) -> object:
    at.blob().upload_blob(b"first")
    refused = failure(lambda: at.blob().upload_blob(b"second"))
    at.blob().upload_blob(b"third", overwrite=True)
    return refused, at.blob().download_blob().readall()


@basic
def upload_in_blocks(at: Scene) -> object:
    at.blob(options=_SMALL).upload_blob(pattern(1_000_001))
    return digest(at.blob().download_blob().readall())


@basic
def upload_in_blocks_at_once(at: Scene) -> object:
    at.blob(options=_SMALL).upload_blob(io.BytesIO(pattern(1_000_002)), max_concurrency=4)
    return digest(at.blob().download_blob().readall())


@basic
def stage_and_commit(at: Scene) -> object:
    blob = at.blob()
    for number in range(3):
        blob.stage_block(f"block-{number}", pattern(40_000 + number))
    blob.commit_block_list([BlobBlock("block-2"), BlobBlock("block-0")])
    blob.stage_block("block-3", b"tail")
    blob.commit_block_list([BlobBlock("block-2"), BlobBlock("block-3")])
    return digest(blob.download_blob().readall()), failure(lambda: blob.commit_block_list([BlobBlock("block-9")]))


@step
def list_blocks(at: Scene) -> object:
    blob = at.blob()
    blob.stage_block("one", b"1")
    blob.commit_block_list([BlobBlock("one")])
    blob.stage_block("two", b"22")
    committed, staged = blob.get_block_list("all")
    return [(block.id, block.size) for block in (*committed, *staged)]


@basic
def download_ranges(at: Scene) -> object:
    content = pattern(100_000)
    at.blob().upload_blob(content)
    for start, length in ((0, 1), (4095, 2), (50_000, 50_000), (99_999, 1), (70_000, 90_000)):
        assert at.blob().download_blob(start, length).readall() == content[start : start + length]
    return failure(lambda: at.blob().download_blob(100_001, 1))


@basic
def download_in_chunks(at: Scene) -> object:
    at.blob().upload_blob(pattern(500_003))
    stream = at.blob(options=_CHUNKS).download_blob()
    return [len(chunk) for chunk in stream.chunks()], stream.size


@basic
def download_in_chunks_at_once(at: Scene) -> object:
    at.blob().upload_blob(pattern(500_004))
    sink = io.BytesIO()
    at.blob(options=_CHUNKS).download_blob(max_concurrency=4).readinto(sink)
    return digest(sink.getvalue())


@basic
def download_piecewise(at: Scene) -> object:
    at.blob().upload_blob(pattern(200_000))
    stream = at.blob(options=_CHUNKS).download_blob()
    return [digest(stream.read(size)) for size in (10, 100_000, 1_000_000)]


@basic
def download_what_is_missing(at: Scene) -> object:
    return failure(lambda: at.blob().download_blob()), failure(lambda: at.blob().get_blob_properties())


@basic
def download_at_once_from_threads(at: Scene) -> object:
    at.blob().upload_blob(pattern(50_000))
    got: list[str] = []
    threads = [
        threading.Thread(target=lambda: got.append(digest(at.blob().download_blob().readall()))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


@step
def packed_content(at: Scene) -> object:
    plain = b"plain text " * 1000
    packed = gzip.compress(plain, mtime=0)
    at.blob().upload_blob(packed, content_settings=ContentSettings(content_encoding="gzip"))
    return at.blob().download_blob().readall() == plain, at.blob().download_blob(decompress=False).readall() == packed


@step
def checked_content(at: Scene) -> object:
    at.blob(options=_SMALL).upload_blob(pattern(200_000), validate_content=True)
    return digest(at.blob(options=_CHUNKS).download_blob(validate_content=True).readall())


@basic
def odd_names(at: Scene) -> object:
    names = ("a b", "ü€", "q?x=1&y", "100%", "hash#1", "plus+", "semi;colon", "dot./x", "brace{}[]")
    for name in names:
        at.blob(name).upload_blob(name.encode())
    return [at.blob(name).download_blob().readall().decode() == name for name in names]


# -- properties


@step
def properties(at: Scene) -> object:
    settings = ContentSettings(content_type="text/x-test", cache_control="no-store", content_language="de")
    at.blob().upload_blob(b"x" * 77, content_settings=settings, metadata={"Key": "value", "other": "1"})
    found = at.blob().get_blob_properties()
    at.blob().set_http_headers(ContentSettings(content_type="text/y"))
    at.blob().set_blob_metadata({"New": "v w"})
    then = at.blob().get_blob_properties()
    return (
        (found.size, found.content_settings.content_type, found.content_settings.cache_control, found.metadata),
        (then.content_settings.content_type, then.content_settings.cache_control, then.metadata),
        found.etag != then.etag,
    )


@basic
def existence(at: Scene) -> object:
    before = at.blob().exists()
    at.blob().upload_blob(b"x")
    return before, at.blob().exists()


@step
def tags(at: Scene) -> object:
    at.blob().upload_blob(b"x", tags={"kind": "test"})
    at.blob().set_blob_tags({"kind": "other", "more": "1"})
    return at.blob().get_blob_tags()


@step
def tier(at: Scene) -> object:
    at.blob().upload_blob(b"x")
    at.blob().set_standard_blob_tier(StandardBlobTier.COOL)
    return at.blob().get_blob_properties().blob_tier


# -- conditions


@basic
def conditions(at: Scene) -> object:
    etag = at.blob().upload_blob(b"one")["etag"]
    same, other = MatchConditions.IfNotModified, MatchConditions.IfModified
    good = at.blob().download_blob(etag=etag, match_condition=same).readall()
    return (
        good,
        failure(lambda: at.blob().download_blob(etag=_STALE, match_condition=same)),
        failure(lambda: at.blob().download_blob(etag=etag, match_condition=other)),
        failure(lambda: at.blob().upload_blob(b"2", overwrite=True, etag=_STALE, match_condition=same)),
        failure(lambda: at.blob().delete_blob(etag=_STALE, match_condition=same)),
        at.blob().upload_blob(b"two", overwrite=True, etag=etag, match_condition=same)["etag"] != etag,
        at.blob().download_blob().readall(),
    )


@step
def conditions_of_time(at: Scene) -> object:
    at.blob().upload_blob(b"one")
    past, future = (datetime.now(UTC) + timedelta(days=days) for days in (-1, 1))
    return (
        at.blob().download_blob(if_modified_since=past).readall(),
        failure(lambda: at.blob().download_blob(if_modified_since=future)),
        failure(lambda: at.blob().get_blob_properties(if_unmodified_since=past)),
    )


@step
def leases(at: Scene) -> object:
    at.blob().upload_blob(b"one")
    lease = at.blob().acquire_lease(lease_duration=60)
    refused = failure(lambda: at.blob().upload_blob(b"2", overwrite=True))
    stolen = failure(lambda: at.blob().acquire_lease())
    at.blob().upload_blob(b"held", overwrite=True, lease=lease)
    lease.renew()
    state = at.blob().get_blob_properties().lease
    lease.release()
    at.blob().upload_blob(b"free", overwrite=True)
    BlobLeaseClient(at.blob(), lease_id="c0ffee00-0000-4000-8000-000000000000").acquire()
    left = BlobLeaseClient(at.blob()).break_lease(lease_break_period=0)
    return refused, stolen, state.status, state.state, left, at.blob().download_blob().readall()


# -- copies and snapshots


@step
def copies(at: Scene) -> object:
    at.blob("source").upload_blob(pattern(70_000), metadata={"from": "source"})
    copy = at.blob("copy").start_copy_from_url(at.blob("source").url)
    found = at.blob("copy").get_blob_properties()
    return copy["copy_status"], found.copy.status, found.metadata, digest(at.blob("copy").download_blob().readall())


@step
def snapshots(at: Scene) -> object:
    at.blob().upload_blob(b"old")
    taken = at.blob().create_snapshot()["snapshot"]
    at.blob().upload_blob(b"new", overwrite=True)
    old = at.container.get_blob_client(at.blob().blob_name, snapshot=str(taken))
    refused = failure(lambda: at.blob().delete_blob())
    before = old.download_blob().readall()
    at.blob().delete_blob(delete_snapshots="include")
    return before, refused, failure(lambda: old.download_blob())


# -- lists


@basic
def list_names(at: Scene) -> object:
    for name in ("a", "b/1", "b/2 &", "c"):
        at.blob(name).upload_blob(name.encode())
    found = at.container.list_blobs(name_starts_with=f"{at.step}/b", results_per_page=1)
    return [[(blob.name, blob.size) for blob in page] for page in found.by_page()]


@step
def lists(at: Scene) -> object:
    for number in range(7):
        at.blob(f"{number % 3}/{number}").upload_blob(b"x" * number, metadata={"n": str(number)})
    pages = [
        [blob.name for blob in page]
        for page in at.container.list_blobs(name_starts_with=f"{at.step}/", results_per_page=3).by_page()
    ]
    sizes = [(blob.size, blob.metadata) for blob in at.container.list_blobs(f"{at.step}/1", include=["metadata"])]
    walked = [entry.name for entry in at.container.walk_blobs(f"{at.step}/", delimiter="/")]
    return pages, sizes, walked, list(at.container.list_blobs(name_starts_with="nothing"))


@step
def long_list(at: Scene) -> object:
    """An answer of more than the room that a request for a list offers first."""
    for number in range(120):
        at.blob(f"{number:03}-{'x' * 200}").upload_blob(b"")
    return len([blob.name for blob in at.container.list_blobs(name_starts_with=f"{at.step}/")])


# -- append and page blobs


@step
def append_blob(at: Scene) -> object:
    blob = at.blob(options=_SMALL)
    blob.create_append_blob(content_settings=ContentSettings(content_type="text/log"))
    told = [blob.append_block(pattern(size))["blob_append_offset"] for size in (10, 100_000, 1)]
    refused = failure(lambda: blob.append_block(b"x", appendpos_condition=5))
    blob.upload_blob(pattern(150_000), blob_type="AppendBlob")
    found = blob.get_blob_properties()
    return told, refused, found.size, found.append_blob_committed_block_count, digest(blob.download_blob().readall())


@step
def page_blob(at: Scene) -> object:
    blob = at.blob(options=_SMALL)
    blob.create_page_blob(512 * 1024)
    blob.upload_page(pattern(512 * 4), 512, 512 * 4)
    blob.upload_page(pattern(512 * 200), 512 * 300, 512 * 200)
    blob.clear_page(1024, 512)
    refused = failure(lambda: blob.upload_page(pattern(512), 512 * 2000, 512))
    ranges = [(page.start, page.end) for page in blob.list_page_ranges()]
    blob.resize_blob(512 * 800)
    content = at.blob(options=_CHUNKS).download_blob(max_concurrency=3).readall()
    at.blob("whole", _SMALL).upload_blob(pattern(512 * 500), blob_type="PageBlob")
    return refused, ranges, digest(content), digest(at.blob("whole").download_blob().readall())


# -- the end of blobs


@basic
def delete(at: Scene) -> object:
    at.blob().upload_blob(b"x")
    at.blob().delete_blob()
    return failure(lambda: at.blob().delete_blob()), at.blob().exists()


@step
def delete_many(at: Scene) -> object:
    names = [at.blob(str(number)).blob_name for number in range(5)]
    for name in names:
        at.container.upload_blob(name, b"x")
    answers = at.container.delete_blobs(*names, "nothing", raise_on_any_failure=False)
    return [answer.status_code for answer in answers]


@step
def containers(at: Scene) -> object:
    name = f"{at.container.container_name}-more"
    other = at.service.create_container(name, metadata={"a": "b"})
    again = failure(lambda: at.service.create_container(name))
    other.upload_blob("x", b"x")
    found = other.get_container_properties().metadata
    listed = [entry.name for entry in at.service.list_containers(name_starts_with=name)]
    other.delete_container()
    return again, found, listed == [name], failure(lambda: other.get_container_properties())


# -- running it


def run(
    make: Callable[..., BlobServiceClient],
    container: str,
    names: list[str] | None = None,
    *,
    with_container: bool = True,
) -> list[Outcome]:
    """Run the steps, all or these, in a container that is made for it, whose name begins so.

    `make` returns a client of the service with the options that it is given. `with_container` is false for a service
    that has no containers to be made.
    """
    # Another kernel's tests may have used the same emulator before.
    container = f"{container}-{uuid.uuid4().hex[:8]}"
    exchanges: list[Exchange] = []

    def note(response: Any) -> None:
        request = response.http_request
        target = _IDS.sub(r"\1", request.url.split("/", 4)[-1]).replace(container, "CONTAINER")
        headers = {name.lower(): value for name, value in response.http_response.headers.items()}
        kept = _OF_THE_CONNECTION if request.method == "HEAD" else _OF_THE_CONNECTION | {"content-length"}
        # That of a block list depends on the ids, which the SDK may draw by lot.
        opaque = _OPAQUE | {"content-md5"} if target.endswith("comp=blocklist") else _OPAQUE
        shown = {
            name: "*" if name in opaque else _IDS.sub(r"\1", value)
            for name, value in headers.items()
            if name not in kept
        }
        exchanges.append(
            (f"{request.method} {target}", response.http_response.status_code, tuple(sorted(shown.items())))
        )

    def client(**options: Any) -> BlobServiceClient:
        return make(raw_response_hook=note, **options)

    service = client()
    inside = service.get_container_client(container)
    if with_container:
        inside.create_container()
    outcomes = []
    for name in names or STEPS:
        exchanges.clear()
        try:
            value = repr(STEPS[name](Scene(service, inside, name, client))).replace(container, "CONTAINER")
        except Exception as error:
            value = f"failed: {type(error).__name__}: {error}"
        # Those of one step may come in any order: some are made at once.
        outcomes.append(Outcome(name, value, sorted(exchanges)))
    if with_container:
        inside.delete_container()
    return outcomes
