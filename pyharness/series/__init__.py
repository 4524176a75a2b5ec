# SPDX-License-Identifier: GPL-2.0-only
"""The driver as a series of patches for a kernel tree, and the gate that it must pass before anybody sends it.

series = make(DRIVER, named_target("debian-6.12", cache, progress), options, root)
write(series, directory)
findings(root, cache, progress)     # what a maintainer's bots would object to
"""

from pyharness.series.gate import findings

__all__ = ["findings"]
