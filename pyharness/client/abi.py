# SPDX-License-Identifier: GPL-2.0-only
"""ctypes mirror of uapi/hv_azure_blob.h; the header is the authority."""

from __future__ import annotations

import ctypes

MAX_PAGES = 8192
"""AZURE_BLOB_MAX_PAGES: what the three buffers of a request may cover together, in whole pages touched."""


class AzBlobResponse(ctypes.Structure):
    """struct az_blob_response."""

    _fields_ = (("status", ctypes.c_uint32), ("response_len", ctypes.c_uint32))

    status: int
    response_len: int


class AzBlobRequestSync(ctypes.Structure):
    """struct az_blob_request_sync: 72 bytes in 32-bit and 64-bit programs alike."""

    _fields_ = (
        ("guid", ctypes.c_uint8 * 16),
        ("timeout", ctypes.c_uint32),
        ("request_len", ctypes.c_uint32),
        ("response_len", ctypes.c_uint32),
        ("data_len", ctypes.c_uint32),
        ("data_valid", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("request_buffer", ctypes.c_uint64),
        ("response_buffer", ctypes.c_uint64),
        ("data_buffer", ctypes.c_uint64),
        ("response", AzBlobResponse),
    )

    guid: ctypes.Array[ctypes.c_uint8]
    timeout: int
    request_len: int
    response_len: int
    data_len: int
    data_valid: int
    pad: int
    request_buffer: int
    response_buffer: int
    data_buffer: int
    response: AzBlobResponse


def _iowr(kind: str, number: int, size: int) -> int:
    """_IOWR() of asm-generic/ioctl.h."""
    read_write = 3
    return read_write << 30 | size << 16 | ord(kind) << 8 | number


AZURE_BLOB_IOCTL = _iowr("R", 0xF0, ctypes.sizeof(AzBlobRequestSync))

# A wrong layout would have the driver read and write through wrong pointers: refuse to load instead.
if ctypes.sizeof(AzBlobRequestSync) != 72 or vars(AzBlobRequestSync)["response"].offset != 64:
    raise ImportError("struct az_blob_request_sync has another layout in this Python than in the kernel")
