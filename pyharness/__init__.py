# SPDX-License-Identifier: GPL-2.0-only
"""Build, boot and prove the hv_azure_blob VMBus driver without Hyper-V."""

__version__ = "0.1.0"
