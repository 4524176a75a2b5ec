# SPDX-License-Identifier: GPL-2.0-only
"""Reads the driver's state out of a kernel's memory: a dump's, or a running guest's."""
