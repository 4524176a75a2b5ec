# SPDX-License-Identifier: GPL-2.0-only
"""Fuzzers: programs that do anything with the ioctl, and a host that does anything."""
