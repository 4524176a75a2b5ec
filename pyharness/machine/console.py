# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's process and its terminal: the guest's serial console, read by one thread into a file and into lines.

QEMU cannot outlive the harness, however that dies. It is started by the reading thread, and the kernel kills it when
that thread ends (PR_SET_PDEATHSIG, which is tied to the parent's thread); should the harness die before this is armed,
the hang-up of the controlling terminal ends it.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pexpect
from pexpect.fdpexpect import fdspawn

from pyharness.errors import HarnessError
from pyharness.machine.crash import CrashDetector, Splat

_TAIL_LINES = 200
_READ_SIZE = 65536
_POLL_S = 0.2
# A panic prints its splat and resets; what has not come by then will not come.
_SPLAT_TIME_S = 2.0
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Console:
    """The running QEMU seen from its terminal."""

    def __init__(
        self,
        argv: Sequence[str],
        log_dir: Path,
        on_end: Callable[[Console], None],
        earlier: bytes = b"",
        *,
        is_over: Callable[[], bool] = lambda: False,
        on_crash: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_end` is called once, on the reading thread, when QEMU has exited or was ended after a fatal splat.

        `earlier` is what the guest wrote in the life that this one goes on with; it begins the log. `is_over` tells
        that QEMU keeps a guest that has reset or powered itself off; `on_crash` is called on the reading thread
        before a QEMU that is still there is ended.
        """
        self.log = log_dir / "console.log"
        self.qemu_log = log_dir / "qemu.log"
        self.splat: Splat | None = None
        """The fatal splat, complete."""
        self.exit_status: int | None = None
        """QEMU's exit status, negative for a signal."""
        self.fault: OSError | None = None
        """Why the console could not be read or logged."""
        self._argv = list(argv)
        self._earlier = earlier
        self._on_end = on_end
        self._is_over = is_over
        self._on_crash = on_crash
        self._detector = CrashDetector()
        self._tail: deque[str] = deque(_clean(earlier).split("\n")[:-1], maxlen=_TAIL_LINES)
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._ended = threading.Event()
        self._ended.set()

    def start(self) -> None:
        """Start QEMU. Raises HarnessError when it cannot be executed."""
        binary = Path(self._argv[0])
        if not os.access(binary, os.X_OK):
            raise HarnessError(f"there is no QEMU at {binary}", mend="run `pyharness build`")
        threading.Thread(target=self._run, name="console", daemon=True).start()
        self._started.wait()
        if self._process is None:
            raise HarnessError(f"QEMU cannot be started: {self.fault}")

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        assert self._process
        return self._process.pid

    @property
    def warnings(self) -> list[Splat]:
        """The splats so far that are not fatal."""
        return list(self._detector.warnings)

    def tail(self, lines: int = 30) -> str:
        """The last lines of the console."""
        return "\n".join(list(self._tail)[-lines:])

    def qemu_said(self) -> str:
        """What QEMU wrote to its standard error."""
        return self.qemu_log.read_text(errors="replace").strip() if self.qemu_log.exists() else ""

    def kill(self) -> None:
        """End QEMU at once; the guest holds nothing that needs to be saved."""
        self._killed = True
        if self._process:
            self._process.kill()

    def wait_end(self, timeout_s: float | None = None) -> bool:
        """Wait until QEMU has ended and `on_end` was called."""
        return self._ended.wait(timeout_s)

    def _run(self) -> None:
        self._ended.clear()
        try:
            with self.log.open("wb", buffering=0) as log, self._qemu() as terminal:
                log.write(self._earlier)
                self._started.set()
                if not self._killed:
                    self._read(terminal, log.write)
                if self._process and self._process.poll() is None and not self._killed:
                    self._on_crash()
        except OSError as error:
            self.fault = error
        finally:
            self._started.set()
            self.splat = self._detector.fatal
            try:
                self._on_end(self)
            finally:
                self._ended.set()

    @contextmanager
    def _qemu(self) -> Iterator[fdspawn]:
        """QEMU's terminal; QEMU is dead after the context."""
        argv = ["setsid", "--ctty", "setpriv", "--pdeathsig", "KILL", "--", *self._argv]
        master, slave = pty.openpty()
        try:
            try:
                with self.qemu_log.open("wb") as errors:
                    self._process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=errors)
            finally:
                os.close(slave)
            yield fdspawn(master, timeout=None, use_poll=True)
        finally:
            if self._process:
                self._process.kill()
                self.exit_status = self._process.wait()
            os.close(master)

    def _read(self, terminal: fdspawn, write: Callable[[bytes], object]) -> None:
        """Read until QEMU closes its terminal, or a fatal splat has ended."""
        rest = ""
        deadline: float | None = None
        while not self._detector.complete and (deadline is None or time.monotonic() < deadline):
            try:
                data = terminal.read_nonblocking(_READ_SIZE, timeout=_POLL_S)
            except pexpect.TIMEOUT:
                if self._is_over():
                    break
                continue
            except (pexpect.EOF, OSError):
                break
            write(data)
            *lines, rest = (rest + _clean(data)).split("\n")
            for line in lines:
                self._tail.append(line)
                self._detector.feed(line)
            if self._detector.fatal and deadline is None:
                deadline = time.monotonic() + _SPLAT_TIME_S
        if rest:
            self._tail.append(rest)
            self._detector.feed(rest)


def _clean(data: bytes) -> str:
    return _ESCAPES.sub("", data.decode(errors="replace"))
