# SPDX-License-Identifier: GPL-2.0-only
"""The devices on a machine's VMBus: plugged and unplugged while the guest runs, and made to misbehave.

    device = machine.blob_device(0)
    device.unplug()                                    # rescinds the channel, returns when the guest has released it
    device.refuse(MessageType.OPENCHANNEL)
    device.plug()                                      # offered anew, and the guest's driver cannot open it
    device.outbound.read_index = 0xFFFFFFFF            # a host that lies about how much it has read

What misbehaves does so as long as the device is plugged. The properties are documented in
qemu/src/hw/hyperv/vmbus-mischief.c.inc.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from pyharness.errors import TimedOut
from pyharness.machine.qmp import Qmp

BLOB_DRIVER = "hv-azure-blob"
BRIDGE = "/machine/peripheral/vmbus"
"""The QOM path of the bridge that the bus hangs from."""

_UNPLUG_TIMEOUT_S = 120.0


class MessageType(IntEnum):
    """VMBus control messages of the guest that are about one channel (Linux, include/linux/hyperv.h)."""

    OPENCHANNEL = 5
    CLOSECHANNEL = 7
    GPADL_HEADER = 8
    GPADL_TEARDOWN = 11
    RELID_RELEASED = 13


class _Word:
    """A word of a ring's header: an attribute that is read from the guest's memory and written to it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name.replace("_", "-")

    def __get__(self, ring: RingHeader, owner: type) -> int:
        return int(ring.qmp.execute("qom-get", path=ring.path, property=f"{ring.direction}-{self._name}"))

    def __set__(self, ring: RingHeader, value: int) -> None:
        ring.qmp.execute("qom-set", path=ring.path, property=f"{ring.direction}-{self._name}", value=value)


class RingHeader:
    """The words in the header of one ring, as they are in the guest's memory. Names and directions are the guest's.

    Reading or writing one raises HarnessError while the channel is closed. QEMU puts back its own index (read of the
    outbound ring, write of the inbound one) when it next uses the ring.
    """

    write_index = _Word()
    read_index = _Word()
    interrupt_mask = _Word()
    pending_send_size = _Word()
    feature_bits = _Word()

    def __init__(self, qmp: Qmp, path: str, direction: str) -> None:
        self.qmp = qmp
        self.path = path
        self.direction = direction


@dataclass(frozen=True)
class VmbusDevice:
    """One device on the bus, plugged or not."""

    qmp: Qmp
    driver: str
    name: str
    """QEMU's id of it."""
    properties: Mapping[str, str] = field(default_factory=dict)
    """What it is plugged with."""

    @property
    def path(self) -> str:
        """Its QOM path, while it is plugged."""
        return f"/machine/peripheral/{self.name}"

    def plug(self, ignore: Sequence[MessageType] = (), refuse: Sequence[MessageType] = ()) -> None:
        """Add it to the bus, which offers its channel at once to a guest that has asked for offers.

        It misbehaves from the start as `ignore` and `refuse` say. Raises HarnessError when QEMU refuses, because it is
        plugged already for one.
        """
        mischief = {"unheard-messages": _bits(ignore), "refused-messages": _bits(refuse)}
        self.qmp.execute("device_add", driver=self.driver, id=self.name, **self.properties, **mischief)

    def rescind(self) -> None:
        """Have the bus rescind its channel, without waiting for what the guest makes of it.

        A guest that has not heard of the device is not asked: it is gone at once. Raises HarnessError when QEMU
        refuses, because it has been asked already for one.
        """
        self.qmp.execute("device_del", id=self.name)

    def wait_unplugged(self, after: int = 0, timeout_s: float = _UNPLUG_TIMEOUT_S) -> None:
        """Return when QEMU has said, in its events from number `after` on, that the device is gone. Raises TimedOut."""
        try:
            self.qmp.wait_event("DEVICE_DELETED", timeout_s, after=after, device=self.name)
        except TimedOut as error:
            raise TimedOut(
                f"the guest has not released the channel of {self.name} in {timeout_s:g} s",
                mend="see what its kernel waits for: the rescinds of all devices go through one workqueue",
            ) from error

    def unplug(self, timeout_s: float = _UNPLUG_TIMEOUT_S) -> None:
        """Rescind its channel and return when the guest has released it. Raises what `rescind` raises, and TimedOut."""
        after = len(self.qmp.events)
        self.rescind()
        self.wait_unplugged(after, timeout_s)

    def ignore(self, *messages: MessageType) -> None:
        """Let the host not hear these messages about the device, and those only: no answer comes. None: hear all."""
        self._set("unheard-messages", _bits(messages))

    @property
    def unheard(self) -> int:
        """How many messages the host has not heard since the device was plugged."""
        return int(self.qmp.execute("qom-get", path=self.path, property="num-unheard"))

    def refuse(self, *messages: MessageType) -> None:
        """Let the host answer these with a failure: OPENCHANNEL and GPADL_HEADER, the others have no status."""
        self._set("refused-messages", _bits(messages))

    def signal(self) -> None:
        """Interrupt the guest for the channel, whether there is anything in its ring or not."""
        self._set("signal", True)

    @property
    def outbound(self) -> RingHeader:
        """The ring in which requests go out."""
        return RingHeader(self.qmp, self.path, "outbound")

    @property
    def inbound(self) -> RingHeader:
        """The ring in which completions come in."""
        return RingHeader(self.qmp, self.path, "inbound")

    def _set(self, name: str, value: int | bool) -> None:
        self.qmp.execute("qom-set", path=self.path, property=name, value=value)


def _bits(messages: Sequence[MessageType]) -> int:
    return sum(1 << message for message in set(messages))
