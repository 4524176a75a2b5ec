/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What kernels older than the newest lack, so that the driver need not know.
 * In the tree of a kernel that has all of it, the driver goes without this file.
 */
#ifndef _HV_AZURE_BLOB_COMPAT_H
#define _HV_AZURE_BLOB_COMPAT_H

#include <linux/capability.h>
#include <linux/compiler.h>
#include <linux/hyperv.h>

/* The kernel's own vmbus need not know the device: it is matched by GUID. */
#ifndef HV_AZURE_BLOB_GUID
#define HV_AZURE_BLOB_GUID \
	.guid = GUID_INIT(0x0590b792, 0xdb64, 0x45cc, 0x81, 0xdb, \
			  0xb8, 0xd7, 0x0c, 0x57, 0x7c, 0x9e)
#endif

/* Up to 6.2 a set of capabilities was an array, and cap_isidentical() missing. */
#ifdef _KERNEL_CAPABILITY_U32S
static inline bool cap_isidentical(const kernel_cap_t a, const kernel_cap_t b)
{
	return cap_issubset(a, b) && cap_issubset(b, a);
}
#endif

/* Up to 6.2 hv_driver.remove returned an int that nothing looked at. */
static void az_blob_remove(struct hv_device *hdev);

static int __maybe_unused az_blob_remove_int(struct hv_device *hdev)
{
	az_blob_remove(hdev);
	return 0;
}

#define AZ_BLOB_REMOVE							\
	__builtin_choose_expr(						\
		__same_type(((struct hv_driver *)NULL)->remove,		\
			    &az_blob_remove_int),			\
		az_blob_remove_int, az_blob_remove)

#endif /* _HV_AZURE_BLOB_COMPAT_H */
