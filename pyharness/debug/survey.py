# SPDX-License-Identifier: GPL-2.0-only
"""What hv_azure_blob holds in a kernel's memory: its devices, their open files and their requests.

It needs drgn and nothing else, so it also runs on its own, on any dump or live kernel that drgn can open:
`drgn -c vmcore -s vmlinux -s hv_azure_blob.debug.ko pyharness/debug/survey.py`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from drgn import Object, Program
from drgn.helpers.linux.fs import for_each_file
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.wait import waitqueue_for_each_task

DRIVER = "hv_azure_blob"
_NS_PER_MS = 1_000_000
_BUFFERS = ("AZ_BLOB_DATA", "AZ_BLOB_REQUEST", "AZ_BLOB_RESPONSE")


@dataclass(frozen=True)
class Process:
    """A process of the guest, by the number that the initial PID namespace knows it by."""

    pid: int
    comm: str


@dataclass(frozen=True)
class OpenFile:
    """A file descriptor that refers to a device's node."""

    process: Process
    fd: int


@dataclass(frozen=True)
class Request:
    """A request that the driver holds; lengths in bytes.

    `state` is queued, sent, orphaned (its caller was killed, the host holds it) or answered (an orphan that waits to be
    freed). `caller` is who sleeps until it is done: None for an orphan, and for whoever is just being woken up.
    """

    guid: uuid.UUID
    state: str
    age_ms: int
    timeout_ms: int
    request_len: int
    response_len: int
    data_len: int
    pinned_pages: int
    caller: Process | None


@dataclass(frozen=True)
class Device:
    """A device of the driver. One that is dead has lost its VMBus device: no instance, no channel.

    `references` is how many hold it: its binding and its open files, those that have no descriptor any more among them.
    """

    address: int
    node: str
    instance: uuid.UUID | None
    state: str
    channel: str
    in_flight: int
    references: int
    open_files: tuple[OpenFile, ...]
    requests: tuple[Request, ...]


def survey(prog: Program) -> tuple[Device, ...]:
    """The driver's devices by their nodes; none when the driver is not loaded.

    Raises LookupError when there is no DWARF for the kernel or the driver, drgn.FaultError when memory that this needs
    is not in the dump.
    """
    if not any(module.name == DRIVER for module in prog.modules()):
        return ()
    files = list(_open_files(prog))
    found = {device.value_(): device for device in _bound(prog)}
    found |= {device.value_(): device for device, _ in files}
    devices = (
        _device(device, tuple(file for owner, file in files if owner.value_() == address))
        for address, device in found.items()
    )
    return tuple(sorted(devices, key=lambda device: (device.node, device.address)))


def _variable(prog: Program, name: str) -> Object:
    return prog.variable(name, f"{DRIVER}.c")


def _bound(prog: Program) -> Iterator[Object]:
    """The devices that VMBus has bound to the driver."""
    core = _variable(prog, "az_blob_driver").driver.p
    nodes = core.klist_devices.k_list.address_of_()
    for private in list_for_each_entry("struct device_private", nodes, "knode_driver.n_node"):
        if device := private.device.driver_data.read_():
            yield _cast(prog, device)


def _open_files(prog: Program) -> Iterator[tuple[Object, OpenFile]]:
    fops = _variable(prog, "az_blob_fops").address_of_()
    seen = set()
    for task in for_each_task(prog):
        table = task.files.value_()
        if table in seen:  # threads share theirs
            continue
        seen.add(table)
        for fd, file in for_each_file(task):
            if file and file.f_op == fops:
                yield _cast(prog, file.private_data.read_()), OpenFile(_process(task), fd)


def _cast(prog: Program, pointer: Object) -> Object:
    return Object(prog, "struct az_blob_device *", pointer.value_())


def _process(task: Object) -> Process:
    return Process(task.tgid.value_(), task.group_leader.comm.string_().decode(errors="replace"))


def _device(device: Object, files: tuple[OpenFile, ...]) -> Device:
    state = _short(device.state, "AZ_BLOB_")
    channel = None if state == "dead" else device.hdev.channel.read_()
    return Device(
        address=device.value_(),
        node=device.name.string_().decode(errors="replace"),
        instance=_guid(channel.offermsg.offer.if_instance.b) if channel else None,
        state=state,
        channel=_channel(channel) if channel else "none",
        in_flight=device.in_flight.value_(),
        references=device.kref.refcount.refs.counter.value_(),
        open_files=files,
        requests=tuple(_requests(device)),
    )


def _channel(channel: Object) -> str:
    return "rescinded" if channel.rescind else _short(channel.state, "CHANNEL_").removesuffix("_state")


def _short(value: Object, prefix: str) -> str:
    """The name of an enumerator without what all of its enumeration have in common."""
    names = {enumerator.value: enumerator.name for enumerator in value.type_.enumerators or ()}
    number = value.value_()
    return str(names.get(number, number)).removeprefix(prefix).lower()


def _requests(device: Object) -> Iterator[Request]:
    ms_per_jiffy = _tick_ns(device.prog_) / _NS_PER_MS
    now = device.prog_["jiffies_64"].value_()
    for name in ("pending", "queue", "orphans"):
        head = device.member_(name).address_of_()
        for request in list_for_each_entry("struct az_blob_request", head, "node"):
            yield _request(request, round((now - request.started.value_()) * ms_per_jiffy))


def _tick_ns(prog: Program) -> int:
    """A tick in nanoseconds, as the kernel's clock of last resort has it: CONFIG_HZ itself is in no memory."""
    clock = prog["clocksource_jiffies"]
    return int(clock.mult.value_()) >> int(clock.shift.value_())


def _request(request: Object, age_ms: int) -> Request:
    data, sent, answer = (request.buffers[request.prog_.constant(name)] for name in _BUFFERS)
    state = _short(request.state, "AZ_BLOB_")
    if request.orphaned:
        state = "orphaned" if state == "sent" else "answered"
    return Request(
        guid=_guid(request.wire.guid),
        state=state,
        age_ms=age_ms,
        timeout_ms=request.wire.timeout_ms.value_(),
        request_len=sent.len.value_(),
        response_len=answer.len.value_(),
        data_len=data.len.value_(),
        pinned_pages=sum(buffer.nr_pinned.value_() for buffer in (data, sent, answer)),
        caller=next((_process(task) for task in waitqueue_for_each_task(request.wait.address_of_())), None),
    )


def _guid(octets: Object) -> uuid.UUID:
    """As %pUl prints it."""
    return uuid.UUID(bytes_le=bytes(octets.value_()))


def render(devices: tuple[Device, ...]) -> str:
    """The survey for a person."""
    lines = [line for device in devices for line in _render(device)]
    return "\n".join(lines or [f"{DRIVER} has no device"])


def _render(device: Device) -> Iterator[str]:
    yield (
        f"/dev/{device.node}  {device.instance or 'no VMBus device'}  {device.state}, channel {device.channel}, "
        f"{device.in_flight} in flight, {device.references} references"
    )
    yield f"  {len(device.open_files)} open files"
    for file in device.open_files:
        yield f"    {_named(file.process)} fd {file.fd}"
    yield f"  {len(device.requests)} requests"
    for request in device.requests:
        yield (
            f"    {request.guid} {request.state}, {request.age_ms} ms old, timeout {request.timeout_ms} ms, "
            f"{request.request_len} bytes of request, {request.response_len} of response, {request.data_len} of data, "
            f"{request.pinned_pages} pages pinned, {_named(request.caller) if request.caller else 'nobody waits'}"
        )


def _named(process: Process) -> str:
    return f"{process.comm}[{process.pid}]"


if __name__ == "__main__":
    from drgn import get_default_prog

    print(render(survey(get_default_prog())))
