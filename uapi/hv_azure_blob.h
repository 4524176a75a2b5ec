/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * Azure Blob requests through /dev/azure_blob: the interface to user space.
 *
 * The first device is /dev/azure_blob, further ones are /dev/azure_blob1,
 * /dev/azure_blob2 and so on; a new device takes the lowest free name.
 */
#ifndef _UAPI_LINUX_HV_AZURE_BLOB_H
#define _UAPI_LINUX_HV_AZURE_BLOB_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The most pages that the buffers of one request may cover together. */
#define AZURE_BLOB_MAX_PAGES	8192

/**
 * struct az_blob_response - what the host said about a request
 * @status: the host's status (NTSTATUS), zero for success. A request that the
 *	host refused or failed is still an ioctl that returns 0.
 * @response_len: bytes that the host wrote to the response buffer, never more
 *	than az_blob_request_sync.response_len.
 */
struct az_blob_response {
	__u32 status;
	__u32 response_len;
};

/**
 * struct az_blob_request_sync - one request, and room for its answer
 * @guid: identifies the request to the host, which may log it; the driver does
 *	not look at it, and two requests may carry the same.
 * @timeout: milliseconds that the host may work on the request, passed to the
 *	host as it is. Zero leaves the limit to the host. The driver has no
 *	timer of its own: a request that timed out is one that the host answers
 *	with an error status.
 * @request_len: length of the request in bytes, not zero.
 * @response_len: length of the response buffer in bytes, not zero.
 * @data_len: length of the data buffer in bytes. Zero means that there is no
 *	data buffer, and @data_buffer is then not looked at.
 * @data_valid: bytes from the start of the data buffer that hold data for the
 *	host (an upload), at most @data_len; zero for a download.
 * @pad: must be zero.
 * @request_buffer: address of the request; the host reads it.
 * @response_buffer: address of the response; the host writes it, so it must be
 *	writable.
 * @data_buffer: address of the data. The host reads or writes it, so it must be
 *	writable for uploads too.
 * @response: the answer, set when the ioctl returns 0. It is zeroed before the
 *	request goes to the host and not written again if the ioctl fails
 *	after that; this includes a caller that is killed (EINTR). EACCES,
 *	EINVAL, ENODEV on entry and ENOTTY leave it alone.
 *
 * A buffer may start at any address; no alignment is asked for. Buffers may
 * overlap or be the same: each is then pinned and counted on its own, and the
 * order in which the host touches them is the host's.
 *
 * A buffer counts as the whole pages that it touches: with pages of 4096 bytes,
 * two bytes at the end of one page and the start of the next are two pages. The
 * counts of the three buffers add up to at most %AZURE_BLOB_MAX_PAGES. The same
 * pages are held in memory and count against RLIMIT_MEMLOCK (plus two pages per
 * request) until the host has answered or the device is gone, even if the
 * caller is killed before. CAP_IPC_LOCK lifts that limit.
 */
struct az_blob_request_sync {
	__u8 guid[16];
	__u32 timeout;
	__u32 request_len;
	__u32 response_len;
	__u32 data_len;
	__u32 data_valid;
	__u32 pad;
	__aligned_u64 request_buffer;
	__aligned_u64 response_buffer;
	__aligned_u64 data_buffer;
	struct az_blob_response response;
};

/**
 * AZURE_BLOB_IOCTL - send a request to the host and wait for its answer
 *
 * Many requests may be in progress at once, from one file or several. A caller
 * waits while the queue to the host is full; only a fatal signal ends a wait
 * early. A child that inherits the file over fork() may use it.
 *
 * Returns 0 when the host has answered (see az_blob_response.status), or -1
 * with errno set. The checks are made in this order:
 *
 * - ENOTTY: another command.
 * - EACCES: the caller's credentials (ids, groups, capabilities, user
 *   namespace) differ from those that the file was opened with.
 * - ENODEV: the device is gone; also returned to requests in progress when it
 *   goes. The file stays useless: open the node again.
 * - EFAULT: the struct is not readable.
 * - EINVAL: @pad is not zero, @request_len or @response_len is zero,
 *   @data_valid exceeds @data_len, or there are too many pages.
 * - EFAULT: the struct is not writable.
 * - ENOMEM: RLIMIT_MEMLOCK would be exceeded, or memory is short.
 * - EFAULT: a buffer is not mapped, wraps around the address space, or is not
 *   writable where it has to be.
 *
 * Until here nothing was sent. After that:
 *
 * - EINTR: the caller was killed. The host may or may not carry out the
 *   request, and may go on to write to the buffers.
 * - EIO: the host broke the protocol in its answer, or the request was lost
 *   because the machine hibernated; whether it was carried out is unknown.
 * - EFAULT: the struct was no longer writable.
 */
#define AZURE_BLOB_IOCTL	_IOWR('R', 0xf0, struct az_blob_request_sync)

#endif /* _UAPI_LINUX_HV_AZURE_BLOB_H */
