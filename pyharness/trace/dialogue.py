# SPDX-License-Identifier: GPL-2.0-only
"""A transcript read as a dialogue: each record decoded, with its channel and with what it answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pyharness.trace.messages import Decoded, decode_message
from pyharness.trace.packets import decode_packet, decode_raw
from pyharness.trace.pairing import Pair, Pairing
from pyharness.trace.records import Line, Message, Packet, Record, Transcript
from pyharness.vsp.wire import AZURE_BLOB_CLASS

_CLASSES = {
    str(AZURE_BLOB_CLASS): "Azure Blob",
    "44c4f61d-4444-4400-9d52-802e27ede19f": "PCI",
}
_SHORT = 8


@dataclass(frozen=True)
class Channel:
    """A channel; class and instance of its device are GUIDs, or empty where its offer has not been seen."""

    relid: int
    device_class: str = ""
    instance: str = ""

    def __str__(self) -> str:
        """For one line: the relid, the class by name or shortened, the instance shortened."""
        if not self.instance:
            return str(self.relid)
        known = _CLASSES.get(self.device_class, self.device_class[:_SHORT])
        return f"{self.relid} {known} {self.instance[:_SHORT]}"


@dataclass(frozen=True)
class Event:
    """A record and what there is to know of it."""

    line: Line
    decoded: Decoded
    channel: Channel | None
    """None: it concerns the connection, or a channel that cannot be told."""
    pair: Pair


class Dialogue:
    """Iterating over it reads the transcript, once. Raises UsageError as `Transcript` does."""

    def __init__(self, transcript: Transcript) -> None:
        self.transcript = transcript
        self.pairing = Pairing()
        self._channels: dict[int, Channel] = {}
        self._owners: dict[int, int] = {}
        """Relids by GPADL."""

    def __iter__(self) -> Iterator[Event]:
        for line in self.transcript:
            decoded = self._decode(line.record)
            yield Event(line, decoded, self._channel(line.record, decoded), self.pairing.observe(line, decoded))

    def _decode(self, record: Record) -> Decoded:
        if isinstance(record, Message):
            return decode_message(record.message)
        if isinstance(record, Packet):
            channel = self._channels.get(record.relid)
            return decode_packet(record, channel.device_class if channel else "")
        return decode_raw(record)

    def _channel(self, record: Record, decoded: Decoded) -> Channel | None:
        if not isinstance(record, Message):
            return self._channels.get(record.relid) or Channel(record.relid)
        values = decoded.values
        if decoded.name == "INITIATE_CONTACT":
            self._channels.clear()
            self._owners.clear()
        if decoded.name == "OFFERCHANNEL" and "relid" in values:
            self._channels[values["relid"]] = Channel(values["relid"], values["class"], values["instance"])
        gpadl = values.get("gpadl")
        if decoded.name == "GPADL_HEADER" and gpadl is not None:
            self._owners[gpadl] = values["relid"]
        relid = values.get("relid", self._owners.get(gpadl) if gpadl is not None else None)
        return None if relid is None else self._channels.get(relid) or Channel(relid)
