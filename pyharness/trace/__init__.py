# SPDX-License-Identifier: GPL-2.0-only
"""Transcripts of VMBus: what the guest and the host said to each other, recorded, decoded and compared."""
