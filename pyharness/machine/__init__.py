# SPDX-License-Identifier: GPL-2.0-only
"""The virtual machine: accelerator, command line, state, console, QMP, crashes."""
