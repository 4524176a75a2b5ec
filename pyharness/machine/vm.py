# SPDX-License-Identifier: GPL-2.0-only
"""The machine: QEMU from its start to its end, as an explicit state machine."""

from __future__ import annotations

import errno
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from qemu.qmp import QMPError

from pyharness.artifacts.cache import Cache
from pyharness.errors import GuestCrashed, HarnessError, TimedOut
from pyharness.guest.host import Guest, Hello
from pyharness.machine.backtrace import Symbolizer, decode
from pyharness.machine.command import blob_name, blob_properties, boot_arguments, qemu_command, restore_arguments
from pyharness.machine.config import MachineConfig
from pyharness.machine.console import Console
from pyharness.machine.crash import Kind
from pyharness.machine.dump import dump_memory
from pyharness.machine.initramfs import build_initramfs
from pyharness.machine.qmp import Qmp
from pyharness.machine.rundir import LogDir, RunDir
from pyharness.machine.snapshot import CAPABILITIES, SNAPSHOT_NEEDS, Snapshot, snapshot_key
from pyharness.machine.terminal import attached_terminal
from pyharness.machine.vmbus import BLOB_DRIVER, VmbusDevice

T = TypeVar("T")

_POLL_S = 0.02
# QEMU closes its sockets some time before its console is read to the end.
_VERDICT_TIMEOUT_S = 5.0
_SHELL_POLL_S = 0.5
# What the kernel says when it was asked for a reboot.
_REBOOT = re.compile(r"reboot: |sysrq: Resetting")


class State(Enum):
    """What a machine is doing."""

    NEW = "new"
    STARTING = "starting"
    BOOTING = "booting"
    RESTORING = "restoring"
    READY = "ready"
    CRASHED = "crashed"
    FAILED = "failed"
    STOPPED = "stopped"


_NEXT: dict[State, set[State]] = {
    State.NEW: {State.STARTING, State.STOPPED},
    State.STARTING: {State.BOOTING, State.RESTORING, State.CRASHED, State.FAILED, State.STOPPED},
    State.RESTORING: {State.READY, State.CRASHED, State.FAILED, State.STOPPED},
    State.BOOTING: {State.READY, State.CRASHED, State.FAILED, State.STOPPED},
    State.READY: {State.CRASHED, State.FAILED, State.STOPPED},
    State.CRASHED: {State.STOPPED},
    State.FAILED: {State.STOPPED},
    State.STOPPED: set(),
}


class Machine:
    """A virtual machine. As a context manager it is started on entry, and nothing of it is left after exit but logs.

    Once the guest has crashed or QEMU has died, every use of the guest raises the same GuestCrashed or HarnessError.
    """

    def __init__(self, config: MachineConfig) -> None:
        self.config = config
        self.state = State.NEW
        self._change = threading.RLock()
        self.failure: HarnessError | None = None
        """What ended the machine, if something did."""
        self._run_dir: RunDir | None = None
        self._logs: LogDir | None = None
        self._console: Console | None = None
        self._qmp: Qmp | None = None
        self._guest: Guest | None = None
        self._agent: socket.socket | None = None
        self._deadline = 0.0
        self._saving_memory = threading.Lock()
        self._memory: str | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start QEMU and wait until the guest's agent answers: from a snapshot, which is made if there is none.

        Raises HarnessError when QEMU cannot be started or ends, GuestCrashed when the guest's kernel crashes, and
        TimedOut when the agent is not heard of in `config.boot_timeout_s`. The caller calls `stop()` in any case.
        """
        if self.config.cold:
            self._boot()
        else:
            self._restore()
        agent = self._part(self._agent)
        self._guest = Guest(agent, explain=self._explain, call_timeout_s=self.config.call_timeout_s)
        if not self.config.cold:
            self._guest.set_clock()
        self._enter(State.READY)

    def _boot(self) -> None:
        """Boot until the agent waits for code."""
        run_dir, command = self._begin()
        try:
            build_initramfs(self.config.kernel.modules, run_dir.initramfs)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            mend = f"free some disk space in {run_dir.path.parent}" if full else ""
            raise HarnessError(f"the initramfs cannot be made: {error}", mend=mend) from error
        self._launch(run_dir, [*command, *boot_arguments(run_dir)])
        self._enter(State.BOOTING)
        hello = Hello(self._connect_agent(run_dir))
        self._until(hello.poll, "the guest to boot")
        hello.check()

    def _restore(self) -> None:
        """Restore a snapshot, in which the agent waits for code."""
        run_dir, command = self._begin()
        with closing(Cache.open()) as cache:
            take = partial(_take_snapshot, self.config)
            key = snapshot_key(self.config, command, run_dir)
            snapshot = Snapshot(cache.build("snapshot", key, take, needs=SNAPSHOT_NEEDS))
            self._launch(run_dir, [*command, *restore_arguments()], snapshot.console.read_bytes())
            self._enter(State.RESTORING)
            self.qmp.restore(snapshot.state, CAPABILITIES)
        self._connect_agent(run_dir)

    def _begin(self) -> tuple[RunDir, list[str]]:
        self._enter(State.STARTING)
        self._run_dir = RunDir()
        return self._run_dir, qemu_command(self.config, self._run_dir)

    def _launch(self, run_dir: RunDir, command: list[str], earlier: bytes = b"") -> None:
        self._deadline = time.monotonic() + self.config.boot_timeout_s
        self._logs = LogDir(self.config.log_root)
        self._console = Console(
            command,
            self._logs.path,
            self._on_end,
            earlier,
            is_over=self._is_over,
            on_crash=self._save_memory,
        )
        self._console.start()
        self._qmp = self._until(lambda: _try_qmp(run_dir.qmp_socket), "QEMU to answer")
        if self.config.dump_on_crash:
            # Not on the command line, which names the snapshot.
            self._qmp.execute("set-action", shutdown="pause")

    def _connect_agent(self, run_dir: RunDir) -> socket.socket:
        self._agent = self._until(lambda: _try_connect(run_dir.agent_socket), "the agent's port")
        return self._agent

    def stop(self) -> None:
        """End QEMU and remove everything but the logs. May be called in any state, more than once."""
        try:
            if self.state is State.READY:
                for callback in self.config.before_stop:
                    with suppress(HarnessError):  # a guest that dies now, or hangs, has nothing to tell
                        callback(self)
        finally:
            self._end()

    def _end(self) -> None:
        with self._change:
            self.state = State.STOPPED
        if self._console:
            self._console.kill()
            self._console.wait_end()
        if self._guest:
            self._guest.close()
        if self._agent:
            self._agent.close()
        if self._qmp:
            self._qmp.close()
        if self._logs:
            self._logs.release()
        if self._run_dir:
            self._run_dir.remove()
            self._run_dir = None

    def check(self) -> None:
        """Raise what ended the machine, if anything did."""
        if self.failure:
            raise self.failure

    @property
    def console(self) -> Console:
        """The guest's console; readable after the machine's end too."""
        if self._console is None:
            raise HarnessError(f"the machine is {self.state.value} and has no console")
        return self._console

    @property
    def qmp(self) -> Qmp:
        """QEMU's machine protocol."""
        return self._part(self._qmp)

    @property
    def guest(self) -> Guest:
        """The guest's agent."""
        return self._part(self._guest)

    def explain(self, report: str) -> str:
        """The stacks of a report of the kernel as files and lines, then the report as it is."""
        modules = self._guest.loaded if self._guest else {}
        decoded = decode(report.splitlines(), Symbolizer(self.config.kernel, modules))
        return f"{decoded}\n\n{report}" if decoded else report

    def vsp_socket(self, index: int) -> Path:
        """Where the device `index` of `config.blob_devices` waits for its VSP backend."""
        return self._part(self._run_dir).vsp_socket(index)

    def blob_device(self, index: int) -> VmbusDevice:
        """The device `index` of `config.blob_devices`, to be plugged, unplugged and made to misbehave."""
        return VmbusDevice(self.qmp, BLOB_DRIVER, blob_name(index), blob_properties(self.config, index))

    @property
    def run_dir(self) -> RunDir:
        """Where the machine's sockets are."""
        return self._part(self._run_dir)

    def dump(self, path: Path) -> None:
        """Write the guest's memory to `path`, for drgn or crash(8). Raises HarnessError, on a full disk for one."""
        dump_memory(self.qmp, path, self.config.kernel.release)

    def interact(self) -> None:
        """Give this process's terminal to a shell in the guest until that exits. Raises UsageError without one."""
        with attached_terminal(self._part(self._run_dir).shell_socket) as terminal:
            shell = self.guest.module("pyharness.guest.shell").start(*terminal.size, terminal.kind)
            while shell.poll() is None:
                terminal.copy(_SHELL_POLL_S)
            terminal.copy(0)

    def _part(self, part: T | None) -> T:
        self.check()
        if part is None:
            raise HarnessError(f"the machine is {self.state.value}, not ready")
        return part

    def _enter(self, state: State) -> None:
        with self._change:
            self.check()
            if state not in _NEXT[self.state]:
                raise HarnessError(f"a machine that is {self.state.value} cannot be {state.value}")
            self.state = state

    def _until(self, attempt: Callable[[], T | None], what: str) -> T:
        """Repeat `attempt` until it returns something; the machine's end or the deadline ends the wait."""
        while True:
            self.check()
            result = attempt()
            if result is not None:
                return result
            if time.monotonic() > self._deadline:
                console = self.console
                raise self._with_memory(
                    TimedOut(
                        f"waited in vain for {what}",
                        mend=f"see {console.log} and {console.qemu_log}",
                        detail=console.tail(),
                        kind=Kind.BOOT_HANG,
                    )
                )
            time.sleep(_POLL_S)

    def _on_end(self, console: Console) -> None:
        """On the console's thread: the guest crashed, or QEMU ended."""
        with self._change:
            if self.state is State.STOPPED:
                return
            self.failure = self._with_memory(self._verdict(console))
            self.state = State.CRASHED if isinstance(self.failure, GuestCrashed) else State.FAILED
        if self._agent:
            # Whoever waits for an answer of the agent is woken up.
            with suppress(OSError):
                self._agent.shutdown(socket.SHUT_RDWR)

    def _is_over(self) -> bool:
        return self._qmp is not None and any(event["event"] == "SHUTDOWN" for event in self._qmp.events)

    def _save_memory(self) -> str:
        """Dump a guest that has crashed or hangs, if that is wanted, once; what became of it, in words."""
        with self._saving_memory:
            if self._memory is None and self._qmp and self.config.dump_on_crash:
                path = self.console.log.with_name("vmcore")
                try:
                    dump_memory(self._qmp, path, self.config.kernel.release)
                    self._memory = f"its memory is in {path}"
                except HarnessError as error:
                    self._memory = f"there is no memory dump: {error.message}"
            return self._memory or ""

    def _with_memory(self, error: HarnessError) -> HarnessError:
        """The error, which tells where the memory dump is or why there is none."""
        error.mend = "; ".join(filter(None, (error.mend, self._save_memory())))
        return error

    def _verdict(self, console: Console) -> HarnessError:
        if console.splat:
            return GuestCrashed(
                f"the guest's kernel crashed ({console.splat.kind}): {console.splat.headline}",
                mend=f"the whole console is in {console.log}",
                detail=self.explain(console.splat.text),
                kind=console.splat.kind,
            )
        if console.fault:
            return HarnessError(
                f"the console cannot be kept in {console.log}: {console.fault.strerror}", mend="free some disk space"
            )
        if self._qmp:
            self._qmp.close()
        reasons = (
            [event["data"]["reason"] for event in self._qmp.events if event["event"] == "SHUTDOWN"] if self._qmp else []
        )
        if "guest-reset" in reasons:
            kind = Kind.RESET if _REBOOT.search(console.tail()) else Kind.TRIPLE_FAULT
            return GuestCrashed(
                f"the guest reset itself without a message of a crash: a {kind}",
                mend=f"the whole console is in {console.log}",
                detail=console.tail(),
                kind=kind,
            )
        if "guest-shutdown" in reasons:
            return HarnessError(
                "the guest powered itself off", mend=f"see {console.log}", detail=console.tail(), kind=Kind.POWER_OFF
            )
        status = console.exit_status or 0
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        said = console.qemu_said()
        if "is not a valid device model name" in said:
            return HarnessError(
                f"{self.config.qemu.binary} lacks the VMBus devices of this project",
                mend="use the QEMU that `pyharness build` makes",
                detail=said,
            )
        return HarnessError(
            f"QEMU {how}",
            mend=f"see {console.qemu_log} and {console.log}",
            detail=said or console.tail(),
            kind=Kind.QEMU_DEATH,
        )

    def _explain(self, error: Exception) -> HarnessError:
        """Why the agent did not answer."""
        console = self.console
        if isinstance(error, TimeoutError):
            return self._with_memory(
                TimedOut(
                    f"a call into the guest did not return in {self.config.call_timeout_s or 0:g} s",
                    detail=console.tail(),
                )
            )
        if self.state is State.STOPPED:
            return HarnessError("the machine is stopped")
        console.wait_end(_VERDICT_TIMEOUT_S)
        return self.failure or HarnessError("the guest's agent hung up", detail=console.tail())


def _take_snapshot(config: MachineConfig, directory: Path) -> None:
    """Boot a machine and save it there."""
    snapshot = Snapshot(directory)
    machine = Machine(replace(config, cold=True))
    try:
        machine._boot()
        machine.qmp.save(snapshot.state, CAPABILITIES)
        shutil.copyfile(machine.console.log, snapshot.console)
    finally:
        machine.stop()


def _try_qmp(path: Path) -> Qmp | None:
    try:
        return Qmp(path)
    except (OSError, QMPError):
        return None


def _try_connect(path: Path) -> socket.socket | None:
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        agent.connect(str(path))
    except OSError:
        agent.close()
        return None
    return agent
