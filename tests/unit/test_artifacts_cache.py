# SPDX-License-Identifier: GPL-2.0-only
"""The cache under what ruins caches: two runs at once, kill -9, Ctrl-C, a full disk, too many entries."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from pyharness import repository
from pyharness.artifacts.cache import Cache, files_below, key_of
from pyharness.errors import HarnessError, UsageError


def fill(size: int = 4096) -> Callable[[Path], None]:
    def builder(directory: Path) -> None:
        (directory / "data").write_bytes(b"x" * size)

    return builder


def start(root: Path, body: str) -> subprocess.Popen[str]:
    """Another process with `cache` open on `root`, `progress` on its stdout, and `say`/`wait` to talk to this one."""
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from pyharness.artifacts.cache import Cache
        from pyharness.progress import Progress
        cache = Cache(Path(sys.argv[1]))
        progress = Progress(stream=sys.stdout)
        say = lambda word: print(word, flush=True)
        wait = lambda: sys.stdin.readline()
        """
    ) + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", program, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(repository.ROOT)},
    )


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


BUILD_SLOWLY = """
    def builder(directory):
        (directory / "half").write_text("half")
        say("building")
        wait()
        (directory / "whole").write_text("whole")
    path = cache.build("thing", "k", builder, progress=progress)
    say(path)
    wait()
"""


def test_key_is_stable_across_runs_and_versions() -> None:
    assert key_of("a", "b") == "cf6ab613e3942391"


def test_key_tells_boundaries_apart_and_ignores_file_order(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    files = files_below(tmp_path, base=tmp_path)
    assert list(files) == ["one", "two"]
    assert key_of("ab", "c") != key_of("a", "bc")
    assert key_of(files=files) == key_of(files=dict(reversed(files.items())))
    swapped = {"one": files["two"], "two": files["one"]}
    assert key_of(files=files) != key_of(files=swapped)


def test_entry_is_built_once_and_found_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    assert cache.get("thing", "k") is None
    path = cache.build("thing", "k", fill())
    assert cache.build("thing", "k", lambda _: pytest.fail("built twice")) == path
    assert Cache(tmp_path / "c").get("thing", "k") == path
    assert (path / "data").stat().st_size == 4096
    modes = {stat.S_IMODE(p.stat().st_mode) for p in [cache.root, path, path.parent, *cache.root.iterdir()]}
    assert modes == {0o700}


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError, HarnessError("no")])
def test_failed_build_leaves_nothing(tmp_path: Path, fault: BaseException) -> None:
    cache = Cache(tmp_path)

    def builder(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise fault

    with pytest.raises(BaseException) as caught:
        cache.build("thing", "k", builder)
    assert caught.value is fault or isinstance(fault, type)
    assert cache.get("thing", "k") is None
    assert [p for p in tmp_path.rglob("*") if not p.is_dir()] == []
    assert cache.build("thing", "k", fill()).is_dir()


def test_second_run_waits_for_the_first_and_shares_its_entry(tmp_path: Path) -> None:
    first = start(tmp_path, BUILD_SLOWLY)
    assert hear(first) == "building"
    second = start(tmp_path, BUILD_SLOWLY)
    assert hear(second) == "waiting for another run that makes thing k"
    go_on(first)
    assert hear(first) == hear(second) == str(tmp_path / "entries/thing/k")
    for process in (first, second):
        go_on(process)
        assert process.wait() == 0


def test_killed_build_is_not_an_entry_and_is_swept(tmp_path: Path) -> None:
    doomed = start(tmp_path, BUILD_SLOWLY)
    assert hear(doomed) == "building"
    cache = Cache(tmp_path)
    cache.build("other", "while-it-builds", fill())
    assert (tmp_path / "tmp/thing.k/half").exists(), "a live builder's directory was swept"
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    assert cache.get("thing", "k") is None
    cache.build("other", "after-it-died", fill())
    assert list((tmp_path / "tmp").iterdir()) == []
    assert cache.build("thing", "k", fill()).is_dir()


def test_a_waiting_run_builds_when_the_builder_is_killed(tmp_path: Path) -> None:
    first = start(tmp_path, BUILD_SLOWLY)
    assert hear(first) == "building"
    second = start(tmp_path, BUILD_SLOWLY)
    assert hear(second).startswith("waiting")
    first.kill()
    first.wait()
    assert hear(second) == "building"
    go_on(second)
    path = Path(hear(second))
    assert (path / "whole").read_text() == "whole"
    go_on(second)
    assert second.wait() == 0


def test_oldest_unused_entries_go_first(tmp_path: Path) -> None:
    with_limit = Cache(tmp_path, limit=1 << 40)
    for age, key in enumerate(("new", "middle", "old")):
        with_limit.build("thing", key, fill(100_000))
        os.utime(tmp_path / "locks" / f"thing.{key}", (1000 - age, 1000 - age))
    with_limit.close()
    size = with_limit.entries()[0].size
    assert 100_000 <= size < 120_000
    small = Cache(tmp_path, limit=3 * size)
    small.get("thing", "old")
    small.build("thing", "newest", fill(100_000))
    assert {entry.key for entry in small.entries()} == {"new", "old", "newest"}, "the least recently used had to go"
    assert small.trim() == []
    assert not (tmp_path / "locks/thing.middle").exists()


def test_entry_in_use_by_a_live_process_stays(tmp_path: Path) -> None:
    maker = Cache(tmp_path)
    maker.build("thing", "k", fill())
    maker.close()
    user = start(tmp_path, 'say(cache.get("thing", "k"))\nwait()')
    assert hear(user) == str(tmp_path / "entries/thing/k")
    cache = Cache(tmp_path, limit=0)
    (entry,) = cache.entries()
    assert not cache.remove(entry)
    assert cache.trim() == []
    assert entry.path.exists()
    user.kill()
    user.wait()
    assert cache.trim() == [entry]
    assert cache.entries() == []
    assert cache.get("thing", "k") is None


def test_workspace_persists_and_counts(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.workspace("objects", "k") as work:
        (work / "one.o").write_bytes(b"x" * 50_000)
    with cache.workspace("objects", "k") as work:
        assert (work / "one.o").exists()
        (work / "two.o").write_bytes(b"x" * 50_000)
        (inside,) = cache.entries()
        assert not cache.remove(inside), "a workspace was removed from under its holder"
    (entry,) = cache.entries()
    assert entry.size >= 100_000


def test_disk_space_foreseen(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no disk space") as caught:
        Cache(tmp_path).build("thing", "k", lambda _: pytest.fail("started"), needs=1 << 60)
    assert "PYHARNESS_CACHE" in caught.value.mend


def test_disk_space_met(tmp_path: Path) -> None:
    def builder(_: Path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(HarnessError, match="the disk is full"):
        Cache(tmp_path).build("thing", "k", builder)


def test_root_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HarnessError, match="cannot be made"):
        Cache(tmp_path / "file" / "cache")
    for name in ("a space", "a:colon"):
        with pytest.raises(UsageError, match="make cannot handle"):
            Cache(tmp_path / name)


def test_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("PYHARNESS_CACHE", raising=False)
    assert Cache.open().root == tmp_path / "xdg" / "pyharness"
    monkeypatch.setenv("PYHARNESS_CACHE", str(tmp_path / "own"))
    assert Cache.open().root == tmp_path / "own"


def test_remembered_until_forgotten(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.remember("kernel", {"version": "6.12"})
    assert Cache(tmp_path).recall("kernel") == {"version": "6.12"}
    (tmp_path / "resolved/broken.json").write_text("{")
    assert cache.recall("broken") is None
    cache.forget()
    assert cache.recall("kernel") is None


def test_package_lists_go_unless_a_live_process_uses_them(tmp_path: Path) -> None:
    for release in ("old", "new"):
        (tmp_path / "apt" / release).mkdir(parents=True)
        (tmp_path / "apt" / release / "apt.conf").write_text("x")
    user = start(tmp_path, 'cache.hold("apt", "new")\nsay("holds")\nwait()')
    assert hear(user) == "holds"
    cache = Cache(tmp_path)
    assert cache.remove_package_lists() == ["new"]
    assert [path.name for path in (tmp_path / "apt").iterdir()] == ["new"]
    user.kill()
    user.wait()
    assert cache.remove_package_lists() == []
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
