# SPDX-License-Identifier: GPL-2.0-only
"""`python -m pyharness`."""

import sys

from pyharness.cli import main

sys.exit(main())
