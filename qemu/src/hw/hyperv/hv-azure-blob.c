/*
 * Azure Blob VMBus device
 *
 * A pipe between a VMBus channel and a backend process on a socket chardev:
 * each packet of the guest becomes a REQUEST frame, each PACKET frame of the
 * backend becomes a packet for the guest (docs/vsp-protocol.md).  Nothing here
 * knows what a Blob request means.
 *
 * A VMBusChanReq never outlives the callback that read it: what is in flight
 * is only a list of transaction ids, so nothing dangles when a channel closes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/buffer.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "chardev/char-fe.h"
#include "exec/address-spaces.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "hw/hyperv/azure-blob-backend.h"
#include "hw/hyperv/vmbus.h"
#include "hw/qdev-properties.h"
#include "hw/qdev-properties-system.h"
#include "system/runstate.h"

#define TYPE_HV_AZURE_BLOB "hv-azure-blob"
OBJECT_DECLARE_TYPE(HvAzureBlob, HvAzureBlobClass, HV_AZURE_BLOB)

/* Frames for a slow backend: at the first the guest's ring stays unread ... */
#define BLOB_OUT_HIGH       (4 * MiB)
/* ... and here, where only CHANNEL frames can lead, the backend is given up */
#define BLOB_OUT_MAX        (8 * MiB)
/* Passes over the ring in one callback, so that a busy guest starves nobody */
#define BLOB_RING_PASSES    16

typedef enum BlobLink {
    BLOB_LINK_DOWN,
    BLOB_LINK_GREETED,      /* HELLO is on its way, ATTACH has not come */
    BLOB_LINK_ATTACHED,
    BLOB_LINK_DROPPED,      /* to be closed by the bottom half */
} BlobLink;

/* A packet that found the guest's ring full */
typedef struct BlobPacket {
    QSIMPLEQ_ENTRY(BlobPacket) next;
    uint64_t transaction_id;
    uint16_t type;
    uint16_t flags;
    uint32_t len;
    uint8_t payload[];
} BlobPacket;

struct HvAzureBlobClass {
    VMBusDeviceClass parent_class;

    DeviceRealize parent_realize;
};

struct HvAzureBlob {
    VMBusDevice parent_obj;

    CharBackend chr;
    VMChangeStateEntry *vm_state;

    BlobLink link;
    QEMUBH *drop_bh;
    guint out_watch;
    Buffer out;
    /* the frame that is being received; no valid one is longer */
    uint8_t in[sizeof(AzureBlobFrame) + sizeof(AzureBlobPacket) +
               AZURE_BLOB_MAX_PACKET_PAYLOAD];
    uint32_t in_len;

    /* counts the openings of the channel, and skips zero */
    uint16_t epoch;
    /* the guest's ring may hold packets that a limit kept us from reading */
    bool stalled;
    /* the guest's ring cannot be written: silence until it is closed */
    bool ring_broken;

    uint64_t in_flight[AZURE_BLOB_MAX_IN_FLIGHT];   /* oldest first */
    uint32_t num_in_flight;
    QSIMPLEQ_HEAD(, BlobPacket) queue;
    uint32_t num_queued;

    uint64_t num_requests;
    uint64_t num_dropped;
};

static VMBusChannel *blob_channel(HvAzureBlob *s)
{
    return vmbus_device_channel(VMBUS_DEVICE(s), 0);
}

static bool blob_channel_open(HvAzureBlob *s)
{
    return vmbus_channel_is_open(blob_channel(s));
}

static const char *blob_name(HvAzureBlob *s)
{
    return object_get_canonical_path_component(OBJECT(s));
}

static bool blob_connected(HvAzureBlob *s)
{
    return s->link == BLOB_LINK_GREETED || s->link == BLOB_LINK_ATTACHED;
}

/*
 * Guest side, host to guest
 */

static bool blob_may_read_ring(HvAzureBlob *s)
{
    if (!runstate_is_running() || s->ring_broken ||
        s->num_queued >= AZURE_BLOB_MAX_QUEUED_PACKETS) {
        return false;
    }
    return s->link != BLOB_LINK_ATTACHED ||
           (s->num_in_flight < AZURE_BLOB_MAX_IN_FLIGHT &&
            s->out.offset < BLOB_OUT_HIGH);
}

/* Call after anything that may have lifted a limit */
static void blob_resume(HvAzureBlob *s)
{
    if (s->stalled && blob_channel_open(s) && blob_may_read_ring(s)) {
        s->stalled = false;
        vmbus_channel_notify_host(blob_channel(s));
    }
}

/* False if the packet has to wait for room in the guest's ring */
static bool blob_try_send(HvAzureBlob *s, uint64_t transaction_id,
                          uint16_t type, uint16_t flags,
                          const void *payload, uint32_t len)
{
    VMBusChannel *chan = blob_channel(s);
    bool raw = flags & AZURE_BLOB_FLAG_RAW;
    ssize_t ret;

    /* guest memory belongs to migration while the machine is stopped */
    if (!runstate_is_running()) {
        return false;
    }
    if (s->ring_broken) {
        s->num_dropped++;
        return true;
    }

    ret = vmbus_channel_reserve(chan, 0, raw ? vmbus_raw_len(len) -
                                             sizeof(vmbus_packet_hdr) : len);
    if (ret == -ENOSPC) {
        return false;
    }
    if (!ret && raw) {
        ret = vmbus_channel_send_raw(chan, payload, len);
    } else if (!ret) {
        ret = vmbus_channel_send(chan, type, NULL, 0, (void *)payload, len,
                                 flags & AZURE_BLOB_FLAG_WANTS_COMPLETION,
                                 transaction_id);
    }
    if (ret < 0) {
        error_report("%s %s: the guest's ring is unusable: %s",
                     TYPE_HV_AZURE_BLOB, blob_name(s), strerror(-ret));
        s->ring_broken = true;
        s->num_dropped++;
    }
    return true;
}

static void blob_send(HvAzureBlob *s, uint64_t transaction_id, uint16_t type,
                      uint16_t flags, const void *payload, uint32_t len)
{
    BlobPacket *packet;

    if (QSIMPLEQ_EMPTY(&s->queue) &&
        blob_try_send(s, transaction_id, type, flags, payload, len)) {
        return;
    }

    packet = g_malloc(sizeof(*packet) + len);
    packet->transaction_id = transaction_id;
    packet->type = type;
    packet->flags = flags;
    packet->len = len;
    memcpy(packet->payload, payload, len);
    QSIMPLEQ_INSERT_TAIL(&s->queue, packet, next);
    s->num_queued++;
}

static void blob_dequeue(HvAzureBlob *s)
{
    BlobPacket *packet = QSIMPLEQ_FIRST(&s->queue);

    QSIMPLEQ_REMOVE_HEAD(&s->queue, next);
    s->num_queued--;
    g_free(packet);
}

static void blob_send_queued(HvAzureBlob *s)
{
    bool was_full = s->num_queued >= AZURE_BLOB_MAX_QUEUED_PACKETS;
    BlobPacket *packet;

    while ((packet = QSIMPLEQ_FIRST(&s->queue)) &&
           blob_try_send(s, packet->transaction_id, packet->type,
                         packet->flags, packet->payload, packet->len)) {
        blob_dequeue(s);
    }
    if (was_full && blob_connected(s)) {
        qemu_chr_fe_accept_input(&s->chr);
    }
}

static void blob_answer(HvAzureBlob *s, uint64_t transaction_id, uint32_t error)
{
    AzureBlobResponse response = { .error = cpu_to_le32(error) };

    blob_send(s, transaction_id, VMBUS_PACKET_COMP, 0,
              &response, sizeof(response));
}

static void blob_retire(HvAzureBlob *s, uint64_t transaction_id)
{
    uint32_t i;

    for (i = 0; i < s->num_in_flight; i++) {
        if (s->in_flight[i] == transaction_id) {
            s->num_in_flight--;
            memmove(&s->in_flight[i], &s->in_flight[i + 1],
                    (s->num_in_flight - i) * sizeof(s->in_flight[0]));
            return;
        }
    }
}

static void blob_fail_in_flight(HvAzureBlob *s)
{
    uint32_t i;

    for (i = 0; i < s->num_in_flight; i++) {
        blob_answer(s, s->in_flight[i], AZURE_BLOB_STATUS_DISCONNECTED);
    }
    s->num_in_flight = 0;
}

/* What is in flight or queued belongs to a channel that is gone */
static void blob_forget(HvAzureBlob *s)
{
    s->num_in_flight = 0;
    s->num_dropped += s->num_queued;
    while (!QSIMPLEQ_EMPTY(&s->queue)) {
        blob_dequeue(s);
    }
}

/*
 * Backend side, device to backend
 */

static void blob_stop_output(HvAzureBlob *s)
{
    if (s->out_watch) {
        g_source_remove(s->out_watch);
        s->out_watch = 0;
    }
    buffer_reset(&s->out);
}

static void blob_hang_up(HvAzureBlob *s)
{
    s->link = BLOB_LINK_DROPPED;
    blob_stop_output(s);
    /* the chardev may be in the middle of the callback that led here */
    qemu_bh_schedule(s->drop_bh);
}

/* The backend broke the protocol */
static void G_GNUC_PRINTF(2, 3) blob_drop(HvAzureBlob *s, const char *why, ...)
{
    g_autofree char *reason = NULL;
    va_list ap;

    va_start(ap, why);
    reason = g_strdup_vprintf(why, ap);
    va_end(ap);
    error_report("%s %s: dropped the backend: %s", TYPE_HV_AZURE_BLOB,
                 blob_name(s), reason);
    blob_hang_up(s);
}

static void blob_drop_bh(void *opaque)
{
    HvAzureBlob *s = opaque;

    qemu_chr_fe_disconnect(&s->chr);
}

/* Append a frame to the output; returns its payload, all to be filled in */
static void *blob_frame(HvAzureBlob *s, AzureBlobFrameType type, uint32_t len)
{
    AzureBlobFrame *frame;

    buffer_reserve(&s->out, sizeof(*frame) + len);
    frame = (AzureBlobFrame *)buffer_end(&s->out);
    *frame = (AzureBlobFrame) {
        .magic = cpu_to_le32(AZURE_BLOB_FRAME_MAGIC),
        .type = cpu_to_le16(type),
        .length = cpu_to_le32(len),
    };
    s->out.offset += sizeof(*frame) + len;
    return frame + 1;
}

static void blob_flush(HvAzureBlob *s);

static gboolean blob_writable(void *do_not_use, GIOCondition cond, void *opaque)
{
    HvAzureBlob *s = opaque;

    s->out_watch = 0;
    blob_flush(s);
    return G_SOURCE_REMOVE;
}

static void blob_flush(HvAzureBlob *s)
{
    while (blob_connected(s) && !s->out_watch && s->out.offset) {
        int ret = qemu_chr_fe_write(&s->chr, s->out.buffer, s->out.offset);

        if (!blob_connected(s)) {
            /* the write closed the socket, and that reset everything */
            break;
        }
        if (ret > 0) {
            buffer_advance(&s->out, ret);
        } else if (ret < 0 && errno != EAGAIN) {
            blob_hang_up(s);
        } else {
            s->out_watch = qemu_chr_fe_add_watch(&s->chr, G_IO_OUT | G_IO_HUP,
                                                 blob_writable, s);
            if (!s->out_watch) {
                blob_hang_up(s);
            }
        }
    }
    blob_resume(s);
}

static void blob_send_channel(HvAzureBlob *s, bool open)
{
    AzureBlobChannel *channel;

    if (!blob_connected(s)) {
        return;
    }
    if (s->out.offset > BLOB_OUT_MAX) {
        blob_drop(s, "it does not read");
        return;
    }
    channel = blob_frame(s, AZURE_BLOB_FRAME_CHANNEL, sizeof(*channel));
    channel->open = cpu_to_le32(open);
    blob_flush(s);
}

static void blob_add_request(HvAzureBlob *s, const VMBusChanReq *req)
{
    const QEMUSGList *sgl = &req->sgl;
    uint32_t padded = ROUND_UP(req->msglen, 8);
    AzureBlobRequest *request;
    AzureBlobSegment *segment;
    uint8_t *data;
    int i;

    request = blob_frame(s, AZURE_BLOB_FRAME_REQUEST, sizeof(*request) +
                         padded + sgl->nsg * sizeof(*segment));
    *request = (AzureBlobRequest) {
        .transaction_id = cpu_to_le64(req->transaction_id),
        .packet_type = cpu_to_le16(req->pkt_type),
        .flags = cpu_to_le16(req->need_comp ?
                             AZURE_BLOB_FLAG_WANTS_COMPLETION : 0),
        .inline_len = cpu_to_le32(req->msglen),
        .num_segments = cpu_to_le32(sgl->nsg),
        .epoch = cpu_to_le16(s->epoch),
    };

    data = (uint8_t *)(request + 1);
    memcpy(data, req->msg, req->msglen);
    memset(data + req->msglen, 0, padded - req->msglen);

    segment = (AzureBlobSegment *)(data + padded);
    for (i = 0; i < sgl->nsg; i++) {
        segment[i].gpa = cpu_to_le64(sgl->sg[i].base);
        segment[i].len = cpu_to_le64(sgl->sg[i].len);
    }

    if (req->need_comp) {
        s->in_flight[s->num_in_flight++] = req->transaction_id;
    }
}

/*
 * HELLO: the guest's memory
 */

typedef struct BlobMemoryWalk {
    MemoryListener listener;
    GArray *regions;
    int fds[AZURE_BLOB_MAX_FDS];
    uint32_t num_fds;
    /* size of the private RAM since the last region */
    uint64_t overlay;
} BlobMemoryWalk;

static int blob_fd_index(BlobMemoryWalk *walk, int fd)
{
    uint32_t i;

    for (i = 0; i < walk->num_fds; i++) {
        if (walk->fds[i] == fd) {
            return i;
        }
    }
    if (walk->num_fds == AZURE_BLOB_MAX_FDS) {
        return -1;
    }
    walk->fds[walk->num_fds] = fd;
    return walk->num_fds++;
}

static void blob_walk_section(MemoryListener *listener,
                              MemoryRegionSection *section)
{
    BlobMemoryWalk *walk = container_of(listener, BlobMemoryWalk, listener);
    MemoryRegion *mr = section->mr;
    AzureBlobRegion region = {
        .gpa = section->offset_within_address_space,
        .size = int128_get64(section->size),
        .flags = section->readonly ? AZURE_BLOB_REGION_READ_ONLY : 0,
    };
    AzureBlobRegion *last;
    int fd, fd_index;

    if (!memory_region_is_ram(mr) || memory_region_is_ram_device(mr)) {
        return;
    }
    fd = memory_region_get_fd(mr);
    if (fd < 0 || !qemu_ram_is_shared(mr->ram_block)) {
        walk->overlay += section->readonly ? 0 : region.size;
        return;
    }
    fd_index = blob_fd_index(walk, fd);
    if (fd_index < 0) {
        warn_report("%s: more than %d memory backends, left out guest memory "
                    "at 0x%" PRIx64, TYPE_HV_AZURE_BLOB, AZURE_BLOB_MAX_FDS,
                    region.gpa);
        return;
    }
    region.fd_index = fd_index;
    region.fd_offset = mr->ram_block->fd_offset +
                       section->offset_within_region;

    /*
     * SynIC pages cover guest RAM wherever the guest puts them, and they move:
     * the backend gets the RAM below as well.
     */
    if (walk->regions->len) {
        last = &g_array_index(walk->regions, AzureBlobRegion,
                              walk->regions->len - 1);
        if (last->fd_index == region.fd_index && last->flags == region.flags &&
            last->gpa - last->fd_offset == region.gpa - region.fd_offset &&
            region.gpa - last->gpa - last->size <= walk->overlay) {
            last->size = region.gpa - last->gpa + region.size;
            walk->overlay = 0;
            return;
        }
    }
    walk->overlay = 0;
    g_array_append_val(walk->regions, region);
}

static void blob_say_hello(HvAzureBlob *s)
{
    g_autoptr(GArray) regions = g_array_new(FALSE, FALSE,
                                            sizeof(AzureBlobRegion));
    /* registering a listener replays the current map, in order of address */
    BlobMemoryWalk walk = {
        .listener = {
            .name = TYPE_HV_AZURE_BLOB,
            .region_add = blob_walk_section,
        },
        .regions = regions,
    };
    QemuUUID instance = qemu_uuid_bswap(VMBUS_DEVICE(s)->instanceid);
    AzureBlobHello *hello;
    uint32_t i;

    memory_listener_register(&walk.listener, &address_space_memory);
    memory_listener_unregister(&walk.listener);

    if (walk.num_fds &&
        qemu_chr_fe_set_msgfds(&s->chr, walk.fds, walk.num_fds) < 0) {
        blob_drop(s, "its socket cannot carry file descriptors");
        return;
    }
    if (!walk.num_fds) {
        warn_report("%s %s: no guest memory is shared (memory-backend-memfd,"
                    "share=on): the backend cannot reach any",
                    TYPE_HV_AZURE_BLOB, blob_name(s));
    }

    hello = blob_frame(s, AZURE_BLOB_FRAME_HELLO, sizeof(*hello) +
                       regions->len * sizeof(AzureBlobRegion));
    hello->version = cpu_to_le32(AZURE_BLOB_PROTOCOL_VERSION);
    hello->num_regions = cpu_to_le32(regions->len);
    memcpy(hello->instance, instance.data, sizeof(hello->instance));
    hello->channel_open = cpu_to_le32(blob_channel_open(s));
    hello->num_fds = cpu_to_le32(walk.num_fds);
    for (i = 0; i < regions->len; i++) {
        const AzureBlobRegion *region = &g_array_index(regions,
                                                       AzureBlobRegion, i);

        hello->regions[i] = (AzureBlobRegion) {
            .gpa = cpu_to_le64(region->gpa),
            .size = cpu_to_le64(region->size),
            .fd_offset = cpu_to_le64(region->fd_offset),
            .fd_index = cpu_to_le32(region->fd_index),
            .flags = cpu_to_le32(region->flags),
        };
    }
    blob_flush(s);
}

/*
 * Backend side, backend to device
 */

/* Returns the length of the payload, or zero if the header breaks the format */
static uint32_t blob_payload_len(const AzureBlobFrame *frame)
{
    uint32_t len = le32_to_cpu(frame->length);

    if (le32_to_cpu(frame->magic) != AZURE_BLOB_FRAME_MAGIC ||
        frame->reserved0 || frame->reserved1) {
        return 0;
    }
    switch (le16_to_cpu(frame->type)) {
    case AZURE_BLOB_FRAME_ATTACH:
        return len == sizeof(AzureBlobAttach) ? len : 0;
    case AZURE_BLOB_FRAME_PACKET:
        return len >= sizeof(AzureBlobPacket) &&
               len <= sizeof(AzureBlobPacket) + AZURE_BLOB_MAX_PACKET_PAYLOAD ?
               len : 0;
    default:
        return 0;
    }
}

static void blob_handle_attach(HvAzureBlob *s, const AzureBlobAttach *attach)
{
    if (s->link != BLOB_LINK_GREETED) {
        blob_drop(s, "it attached twice");
    } else if (le32_to_cpu(attach->version) != AZURE_BLOB_PROTOCOL_VERSION ||
               attach->flags) {
        blob_drop(s, "ATTACH has version %u and flags 0x%x",
                  le32_to_cpu(attach->version), le32_to_cpu(attach->flags));
    } else {
        s->link = BLOB_LINK_ATTACHED;
        blob_send_channel(s, blob_channel_open(s));
    }
}

static void blob_handle_packet(HvAzureBlob *s, const AzureBlobPacket *packet,
                               uint32_t frame_len)
{
    uint64_t transaction_id = le64_to_cpu(packet->transaction_id);
    uint16_t type = le16_to_cpu(packet->packet_type);
    uint16_t flags = le16_to_cpu(packet->flags);
    uint16_t epoch = le16_to_cpu(packet->epoch);
    uint16_t len = le16_to_cpu(packet->payload_len);

    if (s->link != BLOB_LINK_ATTACHED) {
        blob_drop(s, "it sent a PACKET before ATTACH");
        return;
    }
    if (sizeof(*packet) + len != frame_len ||
        flags & ~(AZURE_BLOB_FLAG_WANTS_COMPLETION | AZURE_BLOB_FLAG_RAW)) {
        blob_drop(s, "PACKET has flags 0x%x and length %u in a frame of %u",
                  flags, len, frame_len);
        return;
    }
    if (!blob_channel_open(s) || (epoch && epoch != s->epoch)) {
        s->num_dropped++;
        return;
    }
    if (type == VMBUS_PACKET_COMP && !(flags & AZURE_BLOB_FLAG_RAW)) {
        blob_retire(s, transaction_id);
    }
    blob_send(s, transaction_id, type, flags, packet->payload, len);
}

static int blob_can_read(void *opaque)
{
    HvAzureBlob *s = opaque;
    const uint32_t min_frame = sizeof(AzureBlobFrame) + sizeof(AzureBlobPacket);

    if (!blob_connected(s) ||
        s->num_queued >= AZURE_BLOB_MAX_QUEUED_PACKETS) {
        return 0;
    }
    /* never more bytes than can become packets that still fit in the queue */
    return (AZURE_BLOB_MAX_QUEUED_PACKETS - s->num_queued) * min_frame;
}

/* Move input to the frame being received; true once it has @want bytes */
static bool blob_fill(HvAzureBlob *s, uint32_t want,
                      const uint8_t **buf, int *size)
{
    if (s->in_len < want) {
        uint32_t n = MIN(want - s->in_len, *size);

        memcpy(s->in + s->in_len, *buf, n);
        s->in_len += n;
        *buf += n;
        *size -= n;
    }
    return s->in_len >= want;
}

static void blob_read(void *opaque, const uint8_t *buf, int size)
{
    HvAzureBlob *s = opaque;
    const AzureBlobFrame *frame = (const AzureBlobFrame *)s->in;
    uint32_t len;

    while (blob_connected(s) && blob_fill(s, sizeof(*frame), &buf, &size)) {
        len = blob_payload_len(frame);
        if (!len) {
            blob_drop(s, "bad frame: magic 0x%08x, type %u, length %u",
                      le32_to_cpu(frame->magic), le16_to_cpu(frame->type),
                      le32_to_cpu(frame->length));
            break;
        }
        if (!blob_fill(s, sizeof(*frame) + len, &buf, &size)) {
            break;
        }
        s->in_len = 0;
        if (le16_to_cpu(frame->type) == AZURE_BLOB_FRAME_ATTACH) {
            blob_handle_attach(s, (const AzureBlobAttach *)(frame + 1));
        } else {
            blob_handle_packet(s, (const AzureBlobPacket *)(frame + 1), len);
        }
    }
    blob_resume(s);
}

static void blob_chr_event(void *opaque, QEMUChrEvent event)
{
    HvAzureBlob *s = opaque;

    switch (event) {
    case CHR_EVENT_OPENED:
        s->link = BLOB_LINK_GREETED;
        blob_say_hello(s);
        break;
    case CHR_EVENT_CLOSED:
        qemu_bh_cancel(s->drop_bh);
        blob_stop_output(s);
        s->in_len = 0;
        s->link = BLOB_LINK_DOWN;
        blob_fail_in_flight(s);
        blob_resume(s);
        break;
    default:
        break;
    }
}

/*
 * VMBus side
 */

static void blob_handle_request(HvAzureBlob *s, const VMBusChanReq *req)
{
    s->num_requests++;
    if (s->link == BLOB_LINK_ATTACHED) {
        blob_add_request(s, req);
    } else if (req->need_comp) {
        blob_answer(s, req->transaction_id,
                    qemu_chr_fe_backend_connected(&s->chr) ?
                    AZURE_BLOB_STATUS_DISCONNECTED : 0);
    }
}

static void blob_notify(VMBusChannel *chan)
{
    HvAzureBlob *s = HV_AZURE_BLOB(vmbus_channel_device(chan));
    int passes = BLOB_RING_PASSES;
    VMBusChanReq *req;

    blob_send_queued(s);

    /*
     * The guest signals only a ring that it finds empty, so look again after
     * the read index has been published.
     */
    do {
        if (!passes--) {
            vmbus_channel_notify_host(chan);
            break;
        }
        if (vmbus_channel_recv_start(chan) < 0) {
            break;
        }
        while (blob_may_read_ring(s) &&
               (req = vmbus_channel_recv_peek(chan, sizeof(*req)))) {
            blob_handle_request(s, req);
            vmbus_free_req(req);
            vmbus_channel_recv_pop(chan);
        }
    } while (vmbus_channel_recv_done(chan) > 0);

    s->stalled = !blob_may_read_ring(s);
    blob_flush(s);
}

static int blob_open_channel(VMBusChannel *chan)
{
    HvAzureBlob *s = HV_AZURE_BLOB(vmbus_channel_device(chan));

    if (!++s->epoch) {
        s->epoch = 1;
    }
    s->ring_broken = false;
    blob_send_channel(s, true);
    return 0;
}

static void blob_close_channel(VMBusChannel *chan)
{
    HvAzureBlob *s = HV_AZURE_BLOB(vmbus_channel_device(chan));

    blob_forget(s);
    s->stalled = false;
    blob_send_channel(s, false);
}

/*
 * Device
 */

static void blob_vm_state(void *opaque, bool running, RunState state)
{
    HvAzureBlob *s = opaque;

    if (running && blob_channel_open(s)) {
        vmbus_channel_notify_host(blob_channel(s));
    }
}

/* Instance GUIDs for devices that are given none: one series, in order */
static void blob_default_instance(VMBusDevice *vdev)
{
    BusState *bus = qdev_get_parent_bus(DEVICE(vdev));
    BusChild *child;
    bool taken;
    uint16_t n = 0;

    do {
        qemu_uuid_parse("a2b10b00-7c5e-4d19-9f64-51d0e2c90000",
                        &vdev->instanceid);
        stw_be_p(&vdev->instanceid.data[14], ++n);
        taken = false;
        QTAILQ_FOREACH(child, &bus->children, sibling) {
            VMBusDevice *other = VMBUS_DEVICE(child->child);

            taken |= other != vdev && qemu_uuid_is_equal(&other->instanceid,
                                                         &vdev->instanceid);
        }
    } while (taken);
}

static void blob_realize(DeviceState *dev, Error **errp)
{
    VMBusDevice *vdev = VMBUS_DEVICE(dev);

    if (qemu_uuid_is_null(&vdev->instanceid)) {
        blob_default_instance(vdev);
    }
    HV_AZURE_BLOB_GET_CLASS(dev)->parent_realize(dev, errp);
}

static void blob_vmdev_realize(VMBusDevice *vdev, Error **errp)
{
    HvAzureBlob *s = HV_AZURE_BLOB(vdev);

    QSIMPLEQ_INIT(&s->queue);
    buffer_init(&s->out, "%s", TYPE_HV_AZURE_BLOB);
    s->drop_bh = qemu_bh_new_guarded(blob_drop_bh, s,
                                     &DEVICE(vdev)->mem_reentrancy_guard);
    s->vm_state = qdev_add_vm_change_state_handler(DEVICE(vdev),
                                                   blob_vm_state, s);
    qemu_chr_fe_set_handlers(&s->chr, blob_can_read, blob_read,
                             blob_chr_event, NULL, s, NULL, true);
}

static void blob_vmdev_unrealize(VMBusDevice *vdev)
{
    HvAzureBlob *s = HV_AZURE_BLOB(vdev);

    blob_stop_output(s);
    /* or the backend would belong to the next device on this chardev */
    qemu_chr_fe_disconnect(&s->chr);
    qemu_chr_fe_deinit(&s->chr, false);
    qemu_del_vm_change_state_handler(s->vm_state);
    qemu_bh_delete(s->drop_bh);
    blob_forget(s);
    buffer_free(&s->out);
}

static int blob_pre_save(void *opaque)
{
    HvAzureBlob *s = opaque;

    if (s->num_in_flight || s->num_queued) {
        error_report("%s %s: cannot save with %u requests in flight and %u "
                     "packets queued", TYPE_HV_AZURE_BLOB, blob_name(s),
                     s->num_in_flight, s->num_queued);
        return -EBUSY;
    }
    return 0;
}

/* The backend is no part of the state: it connects anew and gets its HELLO */
static const VMStateDescription vmstate_hv_azure_blob = {
    .name = TYPE_HV_AZURE_BLOB,
    .version_id = 1,
    .minimum_version_id = 1,
    .pre_save = blob_pre_save,
    .fields = (const VMStateField[]) {
        VMSTATE_STRUCT(parent_obj, HvAzureBlob, 0, vmstate_vmbus_dev,
                       VMBusDevice),
        VMSTATE_END_OF_LIST()
    }
};

static const Property blob_properties[] = {
    DEFINE_PROP_CHR("chardev", HvAzureBlob, chr),
};

static void hv_azure_blob_instance_init(Object *obj)
{
    HvAzureBlob *s = HV_AZURE_BLOB(obj);

    /* the base class defaults to a random one: see blob_default_instance() */
    memset(&VMBUS_DEVICE(obj)->instanceid, 0, sizeof(QemuUUID));

    object_property_add_uint32_ptr(obj, "in-flight", &s->num_in_flight,
                                   OBJ_PROP_FLAG_READ);
    object_property_add_uint32_ptr(obj, "queued-packets", &s->num_queued,
                                   OBJ_PROP_FLAG_READ);
    object_property_add_uint64_ptr(obj, "requests", &s->num_requests,
                                   OBJ_PROP_FLAG_READ);
    object_property_add_uint64_ptr(obj, "dropped-packets", &s->num_dropped,
                                   OBJ_PROP_FLAG_READ);
}

static void hv_azure_blob_class_init(ObjectClass *klass, void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    VMBusDeviceClass *vdc = VMBUS_DEVICE_CLASS(klass);
    HvAzureBlobClass *bdc = HV_AZURE_BLOB_CLASS(klass);

    dc->desc = "Azure Blob VMBus device with a backend on a socket";
    dc->vmsd = &vmstate_hv_azure_blob;
    device_class_set_props(dc, blob_properties);
    device_class_set_parent_realize(dc, blob_realize, &bdc->parent_realize);
    set_bit(DEVICE_CATEGORY_STORAGE, dc->categories);

    qemu_uuid_parse("0590b792-db64-45cc-81db-b8d70c577c9e", &vdc->classid);
    vdc->vmdev_realize = blob_vmdev_realize;
    vdc->vmdev_unrealize = blob_vmdev_unrealize;
    vdc->open_channel = blob_open_channel;
    vdc->close_channel = blob_close_channel;
    vdc->chan_notify_cb = blob_notify;
}

static const TypeInfo hv_azure_blob_type = {
    .name = TYPE_HV_AZURE_BLOB,
    .parent = TYPE_VMBUS_DEVICE,
    .instance_size = sizeof(HvAzureBlob),
    .instance_init = hv_azure_blob_instance_init,
    .class_size = sizeof(HvAzureBlobClass),
    .class_init = hv_azure_blob_class_init,
};

static void hv_azure_blob_register_types(void)
{
    type_register_static(&hv_azure_blob_type);
}

type_init(hv_azure_blob_register_types)
