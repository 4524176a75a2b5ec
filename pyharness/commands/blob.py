# SPDX-License-Identifier: GPL-2.0-only
"""Put, get, list and remove blobs through the driver, wherever it is loaded: in the guest of `pyharness shell` too.

Without the harness, `python3 -m pyharness.client` is the same. Exit codes: 0 done; 1 the service or the host refused,
or a checksum is wrong; 2 wrong usage; 4 the host's time was up; 5 no device, or no way from it to the service.
"""

from pyharness.client.tool import add_arguments, execute

__all__ = ["add_arguments", "execute"]
