# SPDX-License-Identifier: GPL-2.0-only
"""What can go wrong with a request, as exceptions that say what to do.

Two families that have nothing in common: a `DeviceError` is an errno of the ioctl, by the contract of
uapi/hv_azure_blob.h; a `HostError` is a status of the host in an ioctl that succeeded. What the blob service says is
neither: it is in the response head (`pyharness.client.http`).
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar


class DeviceError(OSError):
    """The ioctl failed; `errno` says how and `advice` what to do about it."""

    advice: ClassVar[str] = "see the kernel log"
    sent: ClassVar[bool] = False
    """Whether the host may have got the request: if not, it can be made again without a second effect."""


class NotABlobDevice(DeviceError):
    """ENOTTY."""

    advice = "open a node of the hv_azure_blob driver"


class WrongCredentials(DeviceError):
    """EACCES: ids, groups or capabilities changed since the file was opened."""

    advice = "open the node again with the present credentials"


class DeviceGone(DeviceError):
    """ENODEV: before the request was sent, or while the host had it."""

    advice = "close the file, wait for the device to come back and open its node again"
    sent = True


class BadAddress(DeviceError):
    """EFAULT: a buffer is not mapped, or is read-only where the host writes."""

    advice = "give buffers that are mapped and writable (the data buffer for uploads too)"


class InvalidRequest(DeviceError):
    """EINVAL: lengths that do not add up, or more than 8192 pages."""

    advice = "check the lengths; split the data when the buffers cover more than 8192 pages"


class TooManyPages(InvalidRequest):
    """EINVAL of a request whose buffers cover more than 8192 pages."""

    advice = "split the data: head, response and data may cover 8192 pages together"


class PinLimitExceeded(DeviceError):
    """ENOMEM."""

    advice = "raise RLIMIT_MEMLOCK, or have fewer or smaller requests in progress"


class Interrupted(DeviceError):
    """EINTR: the caller was killed; whether the host carries the request out is unknown."""

    advice = "find out whether the request was carried out; the host may still write to its buffers"
    sent = True


class AnswerLost(DeviceError):
    """EIO: the host broke the protocol; whether it carried the request out is unknown."""

    advice = "find out whether the request was carried out before sending it again"
    sent = True


_BY_ERRNO: dict[int, type[DeviceError]] = {
    errno.ENOTTY: NotABlobDevice,
    errno.EACCES: WrongCredentials,
    errno.ENODEV: DeviceGone,
    errno.EFAULT: BadAddress,
    errno.EINVAL: InvalidRequest,
    errno.ENOMEM: PinLimitExceeded,
    errno.EINTR: Interrupted,
    errno.EIO: AnswerLost,
}


def device_error(number: int, path: str, *, too_many_pages: bool = False) -> DeviceError:
    """The exception for an errno of the ioctl."""
    kind = _BY_ERRNO.get(number, DeviceError)
    if too_many_pages and kind is InvalidRequest:
        kind = TooManyPages
    return kind(number, f"{os.strerror(number)} ({kind.advice})", path)


class HostError(Exception):
    """The request reached the host, and the host refused or failed it with an NTSTATUS.

    A plain HostError is of a status that says nothing of what became of the request.
    """

    advice: ClassVar[str] = "find out whether the request was carried out"
    sent: ClassVar[bool] = True
    """Whether the blob service may have got the request."""

    def __init__(self, status: int, name: str = "") -> None:
        said = f" {name}" if name else ""
        super().__init__(f"the host answered with status {status:#010x}{said} ({self.advice})")
        self.status = status
        self.name = name


class HostTimeout(HostError):
    """The host gave up when the request's timeout had passed."""

    advice = "find out whether the request was carried out; allow more time"


class ServiceUnreachable(HostError):
    """The host has no way to the blob service, which has not seen the request."""

    advice = "send the request again once the service is back"
    sent = False


class ServiceLost(HostError):
    """The host, or its connection to the blob service, went away in the middle of the request."""

    advice = "find out whether the request was carried out, and send it again if it was not"


class RequestRefused(HostError):
    """The host does not pass such a request on."""

    advice = "another request is needed: this one will be refused again"
    sent = False


class ResponseTooLarge(HostError):
    """The response head did not fit; the request has been carried out."""

    advice = "make response_size larger"


_BY_STATUS: dict[int, tuple[str, type[HostError]]] = {
    0xC000000D: ("INVALID_PARAMETER", RequestRefused),
    0xC0000010: ("INVALID_DEVICE_REQUEST", RequestRefused),
    0xC0000023: ("BUFFER_TOO_SMALL", ResponseTooLarge),
    0xC0000059: ("REVISION_MISMATCH", RequestRefused),
    0xC00000B5: ("IO_TIMEOUT", HostTimeout),
    0xC00000BB: ("NOT_SUPPORTED", RequestRefused),
    0xC00000C3: ("INVALID_NETWORK_RESPONSE", ServiceLost),
    0xC00000C4: ("UNEXPECTED_NETWORK_ERROR", ServiceLost),
    0xC00000E5: ("INTERNAL_ERROR", HostError),
    0xC0000141: ("INVALID_ADDRESS", RequestRefused),
    0xC0000206: ("INVALID_BUFFER_SIZE", RequestRefused),
    0xC000020C: ("CONNECTION_DISCONNECTED", ServiceLost),
    0xC000020D: ("CONNECTION_RESET", ServiceLost),
    0xC0000236: ("CONNECTION_REFUSED", ServiceUnreachable),
    0xC000023C: ("NETWORK_UNREACHABLE", ServiceUnreachable),
    0xC000023D: ("HOST_UNREACHABLE", ServiceUnreachable),
}


def host_error(status: int) -> HostError:
    """The exception for a status of the host that is not zero."""
    name, kind = _BY_STATUS.get(status, ("", HostError))
    return kind(status, name)
