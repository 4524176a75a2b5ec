# SPDX-License-Identifier: GPL-2.0-only
"""What runs inside the guest, and `host`, the side of it that the harness holds."""
