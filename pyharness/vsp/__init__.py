# SPDX-License-Identifier: GPL-2.0-only
"""The fake VSP: answers from the host what the VSC in the guest asks for, in Python."""
