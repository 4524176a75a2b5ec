# SPDX-License-Identifier: GPL-2.0-only
"""Put, get, list and remove blobs over the device: `pyharness blob`, or `python3 -m pyharness.client` by itself.

Exit codes: 0 done; 1 the service or the host refused, or a checksum is wrong; 2 wrong usage; 4 the host's time was up;
5 there is no device, or its way to the service is down.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from pyharness.client.blob import CHUNK_BYTES, BlobClient, BlobServiceError, Entry
from pyharness.client.device import DEFAULT_PATH, BlobDevice
from pyharness.client.errors import HostError, HostTimeout, ServiceLost, ServiceUnreachable

CONTAINER_VARIABLE = "PYHARNESS_CONTAINER"
DEFAULT_CONTAINER = "http://azure-blob/pyharness"

_DONE, _REFUSED, _USAGE, _LATE, _NO_WAY = 0, 1, 2, 4, 5
_BAR = 24
_REDRAW_S = 0.1
_WILD = re.compile(r"[*?\[]")
_PIECE = 8 << 20
"""What an interrupted get loses at most."""

Result = dict[str, Any]


class ToolError(Exception):
    """What a user has to know, in a line, and the exit code."""

    def __init__(self, message: str, code: int = _REFUSED) -> None:
        super().__init__(message)
        self.code = code


class Place(NamedTuple):
    """A container, and the client that is for it."""

    client: BlobClient
    path: str

    def of(self, name: str) -> str:
        """The path of a blob."""
        return f"{self.path}/{name}"

    def matching(self, pattern: str) -> list[Entry]:
        """The blobs whose names match, which is one that exists if there is nothing wild in the pattern."""
        wild = _WILD.search(pattern)
        prefix = pattern[: wild.start()] if wild else pattern
        found = [entry for entry in self.client.list(self.path, prefix) if fnmatch.fnmatchcase(entry.name, pattern)]
        if not found:
            raise ToolError(f"no blob matches {pattern}" if wild else f"there is no blob {pattern}")
        return found


class Bar:
    """How far a transfer is, on a terminal; silent elsewhere."""

    def __init__(self, name: str, *, done: int = 0) -> None:
        self._name = name
        self._start = done
        self._started = time.monotonic()
        self._drawn = 0.0
        self._shown = sys.stderr.isatty()

    def __call__(self, done: int, total: int | None) -> None:
        """Draw it, but not more often than it can be seen."""
        now = time.monotonic()
        if self._shown and (now - self._drawn >= _REDRAW_S or done == total):
            self._drawn = now
            sys.stderr.write(f"\r\033[K{bar_line(self._name, done, total, done - self._start, now - self._started)}")
            sys.stderr.flush()

    def close(self) -> None:
        """Leave the line to others."""
        if self._shown and self._drawn:
            sys.stderr.write("\r\033[K")


def bar_line(name: str, done: int, total: int | None, moved: int, seconds: float) -> str:
    """The bar as text: `moved` of the bytes took `seconds`."""
    rate = moved / seconds if seconds > 0 else 0.0
    told = f"{name} {human(done)}"
    if total:
        filled = done * _BAR // total
        told += f" of {human(total)} [{'#' * filled}{'.' * (_BAR - filled)}] {done * 100 // total:3d} %"
    told += f" {human(int(rate))}/s"
    if total and rate:
        told += f" {int((total - done) / rate) // 60}:{int((total - done) / rate) % 60:02d} left"
    return told


def human(count: int) -> str:
    """Bytes, in the unit that has one to three digits before the point."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


# -- the subcommands


def put(place: Place, args: argparse.Namespace) -> Iterator[Result]:
    """Upload files; each blob keeps its MD5."""
    if args.name and len(args.file) > 1:
        raise ToolError("--name is for one file", _USAGE)
    for file in args.file:
        name = args.name or f"{args.prefix}{file.name}"
        with _bar(name) as bar:
            done = place.client.put(place.of(name), file, checksum=True, progress=bar)
        yield {"name": name, "bytes": done.size, "sha256": done.sha256, "etag": done.etag}


def get(place: Place, args: argparse.Namespace) -> Iterator[Result]:
    """Download blobs, going on where an interrupted get of the same version stopped, and check their MD5."""
    args.to.mkdir(parents=True, exist_ok=True)
    for pattern in args.glob:
        for entry in place.matching(pattern):
            if not entry.name or ".." in entry.name.split("/"):
                raise ToolError(f"{entry.name!r} is no name for a file below {args.to}")
            yield _get(place, entry.name, args.to / entry.name.lstrip("/"))


def _get(place: Place, name: str, target: Path) -> Result:
    head = place.client.head(place.of(name))
    etag, size = head.headers.get("etag", ""), head.length
    part = target.with_name(f".{target.name}.part")
    version = target.with_name(f".{target.name}.etag")
    target.parent.mkdir(parents=True, exist_ok=True)
    known = version.read_text() if version.exists() and part.exists() else ""
    if known != etag:
        part.write_bytes(b"")
        version.write_text(etag)
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with part.open("r+b") as stream, _bar(name, part.stat().st_size) as bar:
        while piece := stream.read(_PIECE):
            md5.update(piece)
            sha256.update(piece)
        resumed = done = stream.tell()
        with place.client.device.pool.borrow(min(_PIECE, CHUNK_BYTES)) as buffer:
            while done < size:
                room = buffer.view[: min(_PIECE, size - done)]
                length = place.client.get_range(place.of(name), done, room, etag).length
                come = room[:length]
                stream.write(come)
                md5.update(come)
                sha256.update(come)
                done += length
                bar(done, size)
    expected = head.headers.get("content-md5")
    if expected and base64.b64encode(md5.digest()).decode() != expected:
        part.unlink()
        version.unlink()
        raise ToolError(f"{name}: the MD5 of what came is not that of the blob")
    part.replace(target)
    version.unlink()
    return {
        "name": name,
        "file": str(target),
        "bytes": size,
        "resumed_at": resumed,
        "sha256": sha256.hexdigest(),
        "checked": bool(expected),
    }


def ls(place: Place, args: argparse.Namespace) -> Iterator[Result]:
    """List blobs."""
    for entry in place.matching(args.glob) if args.glob else place.client.list(place.path):
        yield {"name": entry.name, "bytes": entry.size, "modified": entry.modified, "etag": entry.etag}


def stat(place: Place, args: argparse.Namespace) -> Iterator[Result]:
    """Show all that the service says of blobs."""
    for name in args.name:
        head = place.client.head(place.of(name))
        yield {"name": name, "bytes": head.length, "headers": head.headers}


def rm(place: Place, args: argparse.Namespace) -> Iterator[Result]:
    """Remove blobs."""
    for pattern in args.glob:
        for entry in place.matching(pattern):
            place.client.delete(place.of(entry.name))
            yield {"name": entry.name, "bytes": entry.size}


def bench(place: Place, args: argparse.Namespace) -> Iterator[Result]:
    """Write and read blobs from several threads, remove them again, and tell how long that took."""
    if min(args.size, args.clients, args.count) < 1:
        raise ToolError("--size, --clients and --count are 1 at least", _USAGE)
    content = os.urandom(args.size)
    expected = hashlib.sha256(content).hexdigest()

    def write(name: str) -> None:
        place.client.put(place.of(name), content)

    def read(name: str) -> None:
        if place.client.get(place.of(name), None).sha256 != expected:
            raise ToolError(f"{name}: what was read is not what was written")

    # A name that nobody else's blob has.
    prefix = f"bench-{os.urandom(8).hex()}"
    names = [[f"{prefix}/{client}-{turn}" for turn in range(args.count)] for client in range(args.clients)]
    try:
        for operation, action in (("put", write), ("get", read)):
            yield {"operation": operation, "bytes": args.size, "clients": args.clients, **_timed(action, names)}
    finally:
        for entry in place.client.list(place.path, f"{prefix}/"):
            place.client.delete(place.of(entry.name))


def _timed(action: Callable[[str], None], names: Sequence[Sequence[str]]) -> Result:
    """Each client does it with its names, all at once. Raises what the first that failed has raised."""

    def client(own: Sequence[str]) -> list[float]:
        taken = []
        for name in own:
            started = time.perf_counter()
            action(name)
            taken.append(time.perf_counter() - started)
        return taken

    started = time.perf_counter()
    with ThreadPoolExecutor(len(names)) as pool:
        each = sorted(chain.from_iterable(pool.map(client, names)))
    seconds = time.perf_counter() - started
    return {
        "operations": len(each),
        "seconds": seconds,
        "ops_per_s": len(each) / seconds,
        "p50_us": round(each[len(each) // 2] * 1e6),
        "p99_us": round(each[len(each) * 99 // 100] * 1e6),
    }


class _Command(NamedTuple):
    run: Callable[[Place, argparse.Namespace], Iterator[Result]]
    arguments: Mapping[str, Mapping[str, Any]]
    line: str
    """What one result looks like to a person."""


_GLOBS = {"metavar": "GLOB", "nargs": "+", "help": "a name, or a pattern with *, ? and [], which match slashes too"}
COMMANDS: Mapping[str, _Command] = {
    "put": _Command(
        put,
        {
            "file": {"metavar": "FILE", "nargs": "+", "type": Path},
            "--name": {"help": "the blob's name (default: the file's)"},
            "--prefix": {"default": "", "help": "what the names begin with"},
        },
        "{name}  {size}  sha256 {sha256}",
    ),
    "get": _Command(
        get,
        {"glob": _GLOBS, "--to": {"metavar": "DIR", "type": Path, "default": Path()}},
        "{file}  {size}  sha256 {sha256}",
    ),
    "ls": _Command(ls, {"glob": {**_GLOBS, "nargs": "?"}}, "{bytes:>14}  {modified}  {name}"),
    "stat": _Command(stat, {"name": {"metavar": "NAME", "nargs": "+"}}, "{name}  {size}"),
    "rm": _Command(rm, {"glob": _GLOBS}, "{name}  removed"),
    "bench": _Command(
        bench,
        {
            "--size": {"type": int, "default": 1 << 20, "metavar": "BYTES", "help": "of a blob (default: 1 MiB)"},
            "--clients": {"type": int, "default": 1, "help": "threads (default: 1)"},
            "--count": {"type": int, "default": 16, "help": "blobs of each (default: 16)"},
        },
        "{operation}  {size} x {operations}  {clients} clients  {ops_per_s:.1f}/s  p50 {p50_us} us  p99 {p99_us} us",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness blob`."""
    parser.add_argument("--device", default=DEFAULT_PATH, metavar="NODE", help="default: %(default)s")
    parser.add_argument(
        "--container",
        default=os.environ.get(CONTAINER_VARIABLE, DEFAULT_CONTAINER),
        metavar="URL",
        help=f"the container, with its SAS if it needs one (default: ${CONTAINER_VARIABLE}, or {DEFAULT_CONTAINER})",
    )
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="for one request (default: 60 s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    commands = parser.add_subparsers(dest="blob_command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        summary = (command.run.__doc__ or "").rstrip(".").lower()
        sub = commands.add_parser(name, help=summary, description=summary)
        for argument, options in command.arguments.items():
            sub.add_argument(argument, **options)


def execute(args: argparse.Namespace) -> int:
    """Run one subcommand; returns the exit code. What went wrong is a line on standard error."""
    command = COMMANDS[args.blob_command]
    try:
        with _place(args) as place:
            for result in command.run(place, args):
                print(json.dumps(result) if args.json else _line(command, result), flush=True)
        return _DONE
    except ToolError as error:
        return _say(str(error), error.code)
    except HostTimeout as error:
        return _say(str(error), _LATE)
    except (ServiceUnreachable, ServiceLost) as error:
        return _say(str(error), _NO_WAY)
    except (BlobServiceError, HostError, ValueError) as error:
        return _say(str(error), _REFUSED)
    except OSError as error:
        return _say(str(error), _NO_WAY if error.filename == args.device else _REFUSED)
    except KeyboardInterrupt:
        return _say("interrupted; get goes on where it stopped", 130)


def main(argv: Sequence[str] | None = None) -> int:
    """The tool by itself."""
    parser = argparse.ArgumentParser(prog="python3 -m pyharness.client", description=(__doc__ or "").partition(":")[0])
    add_arguments(parser)
    return execute(parser.parse_args(argv))


def _line(command: _Command, result: Result) -> str:
    text = command.line.format(size=human(result["bytes"]), **result)
    for name, value in result.get("headers", {}).items():
        text += f"\n  {name}: {value}"
    return text


def _say(text: str, code: int) -> int:
    print(f"blob: {text}", file=sys.stderr)
    return code


@contextmanager
def _place(args: argparse.Namespace) -> Iterator[Place]:
    url = urlsplit(args.container)
    path = unquote(url.path).rstrip("/")
    if url.scheme not in ("http", "https") or not url.netloc or not path:
        raise ToolError(f"not the URL of a container: {url.scheme}://{url.netloc}{url.path}", _USAGE)
    with BlobDevice(args.device) as device:
        yield Place(
            BlobClient(device, host=url.netloc, sas=url.query, timeout_ms=max(1, round(args.timeout * 1000))), path
        )


@contextmanager
def _bar(name: str, done: int = 0) -> Iterator[Bar]:
    bar = Bar(name, done=done)
    try:
        yield bar
    finally:
        with suppress(OSError):
            bar.close()
