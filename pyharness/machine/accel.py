# SPDX-License-Identifier: GPL-2.0-only
"""Which accelerator runs the guest, decided by what /dev/kvm can do and never by its existence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerator:
    """QEMU's accelerator and why it was chosen."""

    name: str
    reason: str
