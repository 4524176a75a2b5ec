# SPDX-License-Identifier: GPL-2.0-only
"""What stands behind the VSP and carries requests out."""

from __future__ import annotations

from typing import Protocol

from pyharness.vsp.request import VspRequest


class Backend(Protocol):
    """Serves requests that passed the VSP's own checks."""

    def handle(self, request: VspRequest) -> None:
        """Answer with `request.complete`, now or later and from any thread.

        Called by several threads at once when the server has workers. What it raises is answered with
        INTERNAL_ERROR and kept in `VspServer.errors`.
        """
        ...
