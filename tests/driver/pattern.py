# SPDX-License-Identifier: GPL-2.0-only
"""What guest and host agree on: data made from seeds on both sides, so that only the driver carries it."""

from __future__ import annotations

import random
import struct
from typing import NamedTuple

_ORDER = struct.Struct("<4sQIQIQI")
_MAGIC = b"ORDR"
ORDER_SIZE = _ORDER.size


def pattern(seed: int, length: int) -> bytes:
    """`length` bytes that nobody else has; a shorter pattern is the start of a longer one."""
    return random.Random(seed).randbytes(-(-length // 4) * 4)[:length]


class Order(NamedTuple):
    """The head of a request: what the data buffer holds, and what the host is to write to data and response buffer."""

    out_seed: int
    out_len: int
    in_seed: int
    in_len: int
    response_seed: int
    response_len: int

    def pack(self, length: int = ORDER_SIZE) -> bytes:
        """The request, padded to `length` bytes that depend on the order."""
        head = _ORDER.pack(_MAGIC, *self)
        return head + pattern(self.out_seed + 1, length - len(head))

    @classmethod
    def parse(cls, request: bytes) -> Order:
        """Raises ValueError unless `request` is what `pack` makes."""
        magic, *fields = _ORDER.unpack_from(request)
        order = cls(*fields)
        if magic != _MAGIC or order.pack(len(request)) != request:
            raise ValueError(f"the request of {len(request)} bytes has been damaged")
        return order
