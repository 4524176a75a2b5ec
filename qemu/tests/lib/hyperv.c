/*
 * Bare-metal guests: hypercalls, SynIC, the first words of VMBus
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "hyperv.h"

#define VMBUS_VERSION_4_0 (4 << 16)

PAGE_ALIGNED uint8_t hypercall_page[PAGE_SIZE];
PAGE_ALIGNED Message messages[2][16];
PAGE_ALIGNED volatile uint8_t event_flags[2][16][256];
/* It may not cross a page. */
PAGE_ALIGNED Post outgoing;

void enable_hypercalls(uint64_t os_id)
{
    wrmsr(MSR_GUEST_OS_ID, os_id);
    wrmsr(MSR_HYPERCALL, ENABLED(hypercall_page));
}

uint64_t hypercall(uint64_t input, uint64_t param)
{
    uint64_t result;

    asm volatile("xor %%r8d, %%r8d; call *%3"
                 : "=a"(result), "+c"(input), "+d"(param)
                 : "r"(hypercall_page) : "r8", "r9", "r10", "r11", "memory");
    return result;
}

uint64_t try_post(uint32_t connection, uint32_t type, uint32_t size)
{
    outgoing.connection = connection;
    outgoing.type = type;
    outgoing.size = size;
    return hypercall(POST_MESSAGE, (uintptr_t)&outgoing);
}

uint64_t post(uint32_t connection, uint32_t type, uint32_t size)
{
    uint64_t status;

    WAIT_FOR((status = try_post(connection, type, size)) !=
             STATUS_INSUFFICIENT_BUFFERS);
    return status;
}

void enable_synic(unsigned cpu)
{
    wrmsr(MSR_SIMP, ENABLED(messages[cpu]));
    wrmsr(MSR_SIEFP, ENABLED(event_flags[cpu]));
    wrmsr(MSR_SCONTROL, 1);
}

void release(Message *message)
{
    message->type = 0;
    asm volatile("mfence" : : : "memory");
    wrmsr(MSR_EOM, 0);
}

void vmbus_fill(uint32_t type)
{
    for (unsigned i = 0; i < PAYLOAD_WORDS; i++) {
        outgoing.payload[i] = 0;
    }
    outgoing.payload[0] = type;
    if (type == VMBUS_INITIATE_CONTACT) {
        outgoing.payload[2] = VMBUS_VERSION_4_0;
    }
}

void vmbus_contact(void)
{
    Message *slot = &messages[0][VMBUS_SINT];
    uint32_t type = 0;

    vmbus_fill(VMBUS_INITIATE_CONTACT);
    /* what the host still has to say may hold the buffer */
    while (try_post(VMBUS_CONNECTION, 1, 40) == STATUS_INSUFFICIENT_BUFFERS) {
        if (slot->type) {
            release(slot);
        }
        take_interrupts();
    }
    while (type != VMBUS_VERSION_RESPONSE) {
        WAIT_FOR(slot->type);
        type = slot->payload[0];
        release(slot);
    }
}
