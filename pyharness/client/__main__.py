# SPDX-License-Identifier: GPL-2.0-only
"""`python3 -m pyharness.client`: see `pyharness.client.tool`."""

import sys

from pyharness.client.tool import main

if __name__ == "__main__":
    sys.exit(main())
