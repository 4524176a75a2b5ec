# SPDX-License-Identifier: GPL-2.0-only
"""The agent and the host's side of it, joined by a socket instead of a virtio-serial port: same code, no guest."""

import errno
import io
import multiprocessing
import os
import socket
import struct
import threading
import time
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import rpyc

from pyharness.errors import GuestCrashed, HarnessError, TimedOut
from pyharness.guest import agent, host, kernel
from pyharness.guest.host import Guest, Hello


def serve(port: socket.socket) -> None:
    """What the bootstrap does in the guest, less the import from the archive."""
    (size,) = struct.unpack("<I", port.recv(4, socket.MSG_WAITALL))
    assert len(port.recv(size, socket.MSG_WAITALL)) == size
    # The host may have no /dev/kmsg to read; the log is the boot tests' matter.
    kernel.LogReader = lambda: types.SimpleNamespace(news=tuple)  # type: ignore[assignment,misc,return-value]
    agent.serve(os.dup(port.fileno()))


def explain(error: Exception) -> HarnessError:
    return TimedOut("it hangs") if isinstance(error, TimeoutError) else GuestCrashed("the kernel is gone")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def guest(ends: tuple[socket.socket, socket.socket]) -> Iterator[Guest]:
    ours, theirs = ends
    context = multiprocessing.get_context("fork")
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    guest = Guest(ours, explain=explain, call_timeout_s=2.0)
    yield guest
    guest.close()
    process.kill()
    process.join()


def test_calls_run_in_the_other_process(guest: Guest) -> None:
    assert guest.module("os").getpid() != os.getpid()


def test_an_os_error_keeps_its_errno(guest: Guest) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        guest.module("os").open("/nowhere", os.O_RDONLY)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/nowhere")
    assert str(caught.value) == "[Errno 2] No such file or directory: '/nowhere'"
    assert "in the guest:" in caught.value.__notes__[0]


def test_an_os_error_of_words_alone_keeps_them(guest: Guest) -> None:
    with pytest.raises(OSError, match=r"^'/' and '/' are the same file\n"):
        guest.module("shutil").copyfile("/", "/")


def test_other_exceptions_keep_their_type(guest: Guest) -> None:
    with pytest.raises(ZeroDivisionError):
        guest.module("operator").floordiv(1, 0)
    with pytest.raises(EOFError):
        guest.module("pickle").loads(b"")


def test_files_go_both_ways(guest: Guest, tmp_path: Path) -> None:
    content = os.urandom(3 * (1 << 20) + 17)
    source = tmp_path / "source"
    source.write_bytes(content)
    guest.push(source, str(tmp_path / "new" / "copy"), 0o600)
    assert (tmp_path / "new" / "copy").read_bytes() == content
    assert (tmp_path / "new" / "copy").stat().st_mode & 0o777 == 0o600
    assert guest.pull(str(tmp_path / "new" / "copy")) == content
    guest.push(b"", str(tmp_path / "empty"))
    assert guest.pull(str(tmp_path / "empty")) == b""


def test_a_blocked_task_leaves_the_agent_free(guest: Guest) -> None:
    event = guest.module("threading").Event()
    task = guest.spawn(event.wait)
    assert not task.done
    assert guest.module("os").getpid() > 0
    with pytest.raises(TimedOut):
        task.result(0.1)
    event.set()
    assert task.result(10) is True
    assert task.done


def test_a_task_raises_what_its_function_raised(guest: Guest) -> None:
    task = guest.spawn(guest.module("os").rmdir, "/nowhere")
    with pytest.raises(FileNotFoundError):
        task.result(10)


def test_programs_run_with_input_and_status(guest: Guest) -> None:
    done = guest.run("sh", "-c", "cat; echo bad >&2; exit 3", stdin=b"in")
    assert (done.status, done.stdout, done.stderr) == (3, b"in", b"bad\n")


def test_a_lost_connection_names_its_cause(guest: Guest, ends: tuple[socket.socket, socket.socket]) -> None:
    killer = threading.Timer(0.3, lambda: ends[0].shutdown(socket.SHUT_RDWR))
    killer.start()
    with pytest.raises(GuestCrashed, match="the kernel is gone"):
        guest.module("time").sleep(1.5)
    with pytest.raises(GuestCrashed, match="the kernel is gone"):
        guest.module("os")


def test_a_call_that_hangs_times_out(guest: Guest) -> None:
    started = time.monotonic()
    with pytest.raises(TimedOut, match="it hangs"):
        guest.module("time").sleep(30)
    assert time.monotonic() - started < 20


def test_calls_from_several_threads_take_turns(guest: Guest) -> None:
    results: list[int] = []
    add = guest.module("operator").add
    threads = [threading.Thread(target=lambda n=n: results.extend(add(n, i) for i in range(50))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == sorted(n + i for n in range(4) for i in range(50))


def test_the_archive_holds_the_guest_and_the_client() -> None:
    with zipfile.ZipFile(io.BytesIO(host._pack_code())) as archive:
        names = set(archive.namelist())
        for name in names:
            compile(archive.read(name), name, "exec")
    assert {"pyharness/__init__.py", "pyharness/guest/agent.py", "pyharness/client/device.py"} <= names


def test_hello_waits_for_the_whole_line(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    hello = Hello(ours)
    assert hello.poll() is None
    theirs.send(b"pyharness-agent ")
    assert hello.poll() is None
    theirs.send(f"rpyc={rpyc.__version__}\n".encode())
    assert hello.poll() is True
    hello.check()


@pytest.mark.parametrize("said", [b"pyharness-agent rpyc=0.0.1\n", b"hello\n", b"\xff" * 300])
def test_a_strange_hello_is_refused(ends: tuple[socket.socket, socket.socket], said: bytes) -> None:
    ours, theirs = ends
    hello = Hello(ours)
    theirs.send(said)
    while hello.poll() is None:
        pass
    with pytest.raises(HarnessError, match="does not fit rpyc"):
        hello.check()


def test_log_records_are_parsed() -> None:
    assert kernel._parse("6,1,0,-;Linux version 6.12") == (6, 0, "Linux version 6.12")
    assert kernel._parse("28,7,1234567,c,caller=T1;a;b\n SUBSYSTEM=pci") == (4, 1234567, "a;b")
