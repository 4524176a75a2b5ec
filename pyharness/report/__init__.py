# SPDX-License-Identifier: GPL-2.0-only
"""A test session over several kernels: what runs where, why something failed, what is shown, and what CI reads."""
