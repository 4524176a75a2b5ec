# SPDX-License-Identifier: GPL-2.0-only
"""Azure Blob over /dev/azure_blob from Python: standard library only, so that it runs wherever the driver does."""
