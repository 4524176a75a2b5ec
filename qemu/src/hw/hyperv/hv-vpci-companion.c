/*
 * The PCIe pass-through channel that Hyper-V offers beside Azure Blob
 *
 * A guest has nothing to do with it; the device exists so that a guest's way
 * of ignoring it can be tested.  The channel opens and stays silent.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/module.h"
#include "hw/hyperv/vmbus.h"

#define TYPE_HV_VPCI_COMPANION "hv-vpci-companion"

static void hv_vpci_companion_notify(VMBusChannel *chan)
{
}

static void hv_vpci_companion_class_init(ObjectClass *klass, void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    VMBusDeviceClass *vdc = VMBUS_DEVICE_CLASS(klass);

    dc->desc = "Hyper-V PCIe pass-through channel without a device";
    dc->vmsd = &vmstate_vmbus_dev;
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);

    qemu_uuid_parse("44c4f61d-4444-4400-9d52-802e27ede19f", &vdc->classid);
    qemu_uuid_parse("d4573da2-2caa-4711-a8f9-bbabf4ee9685", &vdc->instanceid);
    vdc->chan_notify_cb = hv_vpci_companion_notify;
}

static const TypeInfo hv_vpci_companion_type = {
    .name = TYPE_HV_VPCI_COMPANION,
    .parent = TYPE_VMBUS_DEVICE,
    .instance_size = sizeof(VMBusDevice),
    .class_init = hv_vpci_companion_class_init,
};

static void hv_vpci_companion_register_types(void)
{
    type_register_static(&hv_vpci_companion_type);
}

type_init(hv_vpci_companion_register_types)
