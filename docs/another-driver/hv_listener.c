// SPDX-License-Identifier: GPL-2.0-only
/*
 * The smallest driver of a VMBus device: it opens the channel and listens.
 */

#include <linux/hyperv.h>
#include <linux/module.h>

#define HV_LISTENER_RING	VMBUS_RING_SIZE(16 * 1024)

static void hv_listener_callback(void *context)
{
	struct hv_device *hdev = context;
	const struct vmpacket_descriptor *desc;

	foreach_vmbus_pkt(desc, hdev->channel)
		dev_info(&hdev->device, "a packet of type %u\n", desc->type);
}

static int hv_listener_probe(struct hv_device *hdev,
			     const struct hv_vmbus_device_id *id)
{
	return vmbus_open(hdev->channel, HV_LISTENER_RING, HV_LISTENER_RING,
			  NULL, 0, hv_listener_callback, hdev);
}

static void hv_listener_remove(struct hv_device *hdev)
{
	vmbus_close(hdev->channel);
}

static const struct hv_vmbus_device_id hv_listener_ids[] = {
	{
		.guid = GUID_INIT(0x0590b792, 0xdb64, 0x45cc, 0x81, 0xdb,
				  0xb8, 0xd7, 0x0c, 0x57, 0x7c, 0x9e),
	},
	{ },
};
MODULE_DEVICE_TABLE(vmbus, hv_listener_ids);

static struct hv_driver hv_listener = {
	.name = "hv_listener",
	.id_table = hv_listener_ids,
	.probe = hv_listener_probe,
	.remove = hv_listener_remove,
};

static int __init hv_listener_init(void)
{
	return vmbus_driver_register(&hv_listener);
}
module_init(hv_listener_init);

static void __exit hv_listener_exit(void)
{
	vmbus_driver_unregister(&hv_listener);
}
module_exit(hv_listener_exit);

MODULE_DESCRIPTION("Listens to a VMBus device");
MODULE_LICENSE("GPL");
