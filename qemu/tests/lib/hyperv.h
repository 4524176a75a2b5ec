/*
 * Bare-metal guests: the hypervisor's interface (TLFS), and QEMU's test device
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HYPERV_H
#define HYPERV_H

#include "guest.h"

enum {
    MSR_GUEST_OS_ID    = 0x40000000,
    MSR_HYPERCALL      = 0x40000001,
    MSR_VP_INDEX       = 0x40000002,
    MSR_RESET          = 0x40000003,
    MSR_VP_RUNTIME     = 0x40000010,
    MSR_TIME_REF_COUNT = 0x40000020,
    MSR_REFERENCE_TSC  = 0x40000021,
    MSR_TSC_FREQUENCY  = 0x40000022,
    MSR_EOI            = 0x40000070,
    MSR_VP_ASSIST      = 0x40000073,
    MSR_SCONTROL       = 0x40000080,
    MSR_SVERSION       = 0x40000081,
    MSR_SIEFP          = 0x40000082,
    MSR_SIMP           = 0x40000083,
    MSR_EOM            = 0x40000084,
    MSR_SINT0          = 0x40000090,
    MSR_STIMER0_CONFIG = 0x400000b0,
    MSR_CRASH_P0       = 0x40000100,
    MSR_CRASH_CTL      = 0x40000105,
};

#define SINT_MASKED   0x10000
#define SINT_AUTO_EOI 0x20000
#define SINT_POLLING  0x40000

/* The input value of a hypercall. */
#define NOTIFY_LONG_SPIN_WAIT 0x08
#define POST_MESSAGE          0x5c
#define SIGNAL_EVENT          0x5d
#define FAST                  0x10000
#define REP_COUNT(n)          ((uint64_t)(n) << 32)

enum {
    STATUS_SUCCESS               = 0,
    STATUS_INVALID_CODE          = 2,
    STATUS_INVALID_INPUT         = 3,
    STATUS_INVALID_ALIGNMENT     = 4,
    STATUS_INSUFFICIENT_MEMORY   = 11,
    STATUS_INVALID_PORT_ID       = 17,
    STATUS_INVALID_CONNECTION_ID = 18,
    STATUS_INSUFFICIENT_BUFFERS  = 19,
};

#define PAYLOAD_WORDS   60
#define MESSAGE_PENDING 1

/* A slot of the message page, and what POST_MESSAGE takes. */
typedef volatile struct Message {
    uint32_t type;
    uint8_t size, flags;
    uint16_t reserved;
    uint64_t origin;
    uint32_t payload[PAYLOAD_WORDS];
} Message;

typedef struct Post {
    uint32_t connection, reserved, type, size;
    uint32_t payload[PAYLOAD_WORDS];
} Post;

/* Test device: what stands behind a SINT of a vCPU. */
typedef enum Command {
    CREATE_SINT_ROUTE = 1,
    SET_SINT = 3,
    CREATE_MESSAGE_CONNECTION = 4,
    CREATE_EVENT_CONNECTION = 6,
} Command;

static inline void testdev(Command cmd, unsigned vp, unsigned sint,
                           unsigned connection)
{
    outl(0x3000, sint | vp << 8 | cmd << 16 | connection << 24);
}

extern uint8_t hypercall_page[PAGE_SIZE];
/* By vCPU and SINT. */
extern Message messages[2][16];
extern volatile uint8_t event_flags[2][16][256];
/* What post() sends; its payload is the caller's. */
extern Post outgoing;

void enable_hypercalls(uint64_t os_id);
uint64_t hypercall(uint64_t input, uint64_t param);
/* One POST_MESSAGE. */
uint64_t try_post(uint32_t connection, uint32_t type, uint32_t size);
/* The same, again while the host has no buffer for it. */
uint64_t post(uint32_t connection, uint32_t type, uint32_t size);
/* Switch the calling vCPU's SynIC on. */
void enable_synic(unsigned cpu);
/* Free a slot and say so. */
void release(Message *message);

/* VMBus: its SINT, its message types. */
#define VMBUS_SINT       2
#define VMBUS_CONNECTION 1
enum {
    VMBUS_REQUEST_OFFERS   = 3,
    VMBUS_INITIATE_CONTACT = 14,
    VMBUS_VERSION_RESPONSE = 15,
    VMBUS_UNLOAD           = 16,
};

void vmbus_fill(uint32_t type);
/* Contact the host (version 4.0) on vCPU 0; take messages till it answers. */
void vmbus_contact(void);

#endif
