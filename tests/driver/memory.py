# SPDX-License-Identifier: GPL-2.0-only
"""What the driver holds, read out of the running guest's memory."""

from __future__ import annotations

from pyharness.artifacts.cache import Cache
from pyharness.debug.program import open_live
from pyharness.debug.survey import Device, survey
from tests.driver.lab import Lab


def live(lab: Lab) -> dict[str, Device]:
    """The devices by instance; the kernel must have symbols."""
    with open_live(lab.machine.run_dir.debug_socket, Cache.open()) as program:
        return {str(device.instance): device for device in survey(program)}
