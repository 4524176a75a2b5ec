# SPDX-License-Identifier: GPL-2.0-only
"""A packed struct of C, as Python packs it: the one place that says where each field is."""

from __future__ import annotations

import struct


class Layout(struct.Struct):
    """A `struct.Struct` that knows what it mirrors: little-endian, without padding.

    `name` is the struct's in C, each of `fields` is a format of `struct` and the field's name in C: "16s guid".
    """

    def __init__(self, name: str, *fields: str) -> None:
        codes, names = zip(*(one.split() for one in fields), strict=True)
        super().__init__("<" + "".join(codes))
        self.name = name
        self.fields = tuple(zip(names, codes, strict=True))
