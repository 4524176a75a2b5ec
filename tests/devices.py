# SPDX-License-Identifier: GPL-2.0-only
"""The devices of the session's machine."""

import uuid

SERVED_DEVICE = uuid.UUID("5b3e7a10-0c44-4f6b-9a5e-b10b00000001")
"""Its requests go to a VSP that connects to `machine.vsp_socket(0)`."""
NULL_DEVICE = uuid.UUID("5b3e7a10-0c44-4f6b-9a5e-b10b00000002")
"""It answers by itself."""
