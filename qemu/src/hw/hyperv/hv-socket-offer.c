/*
 * Offers of Hyper-V sockets
 *
 * The type of such an offer is a service, which any program may choose: a guest
 * that looks a type up before it looks at the flag takes it for a device.  So
 * there is one with a type that nobody knows, and one of each type that a
 * guest's Azure Blob support looks for.  The channels open and stay silent.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/module.h"
#include "hw/hyperv/vmbus.h"

typedef struct SocketOffer {
    const char *type;
    const char *service;
    const char *instance;
} SocketOffer;

static const SocketOffer socket_offers[] = {
    {
        "hv-socket-offer",
        "6b1d0a5e-3f52-4b0c-9d4e-0f5a7c1e2b90",
        "d0c5a1f2-8f3b-4d1e-a6c7-5b2e9f0a1c01",
    }, {
        "hv-socket-offer-azure-blob",
        "0590b792-db64-45cc-81db-b8d70c577c9e",
        "d0c5a1f2-8f3b-4d1e-a6c7-5b2e9f0a1c02",
    }, {
        "hv-socket-offer-vpci-companion",
        "44c4f61d-4444-4400-9d52-802e27ede19f",
        "d4573da2-2caa-4711-a8f9-bbabf4ee9685",
    },
};

static void socket_offer_notify(VMBusChannel *chan)
{
}

static void socket_offer_class_init(ObjectClass *klass, void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    VMBusDeviceClass *vdc = VMBUS_DEVICE_CLASS(klass);
    const SocketOffer *offer = data;

    dc->desc = "Hyper-V socket that nobody listens on";
    dc->vmsd = &vmstate_vmbus_dev;
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);

    qemu_uuid_parse(offer->service, &vdc->classid);
    qemu_uuid_parse(offer->instance, &vdc->instanceid);
    vdc->channel_flags = VMBUS_CHANNEL_TLNPI_PROVIDER_OFFER;
    vdc->chan_notify_cb = socket_offer_notify;
}

static void socket_offer_register_types(void)
{
    size_t i;

    for (i = 0; i < ARRAY_SIZE(socket_offers); i++) {
        const TypeInfo info = {
            .name = socket_offers[i].type,
            .parent = TYPE_VMBUS_DEVICE,
            .instance_size = sizeof(VMBusDevice),
            .class_init = socket_offer_class_init,
            .class_data = (void *)&socket_offers[i],
        };

        type_register_static(&info);
    }
}

type_init(socket_offer_register_types)
