/*
 * Clearing one event flag must not lose another that the host sets meanwhile
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "lib/hyperv.h"

#define SINT   2
#define EVENT  0x21
#define ROUNDS 20000

void test(void)
{
    volatile uint32_t *word =
        (volatile uint32_t *)&event_flags[0][SINT][EVENT / 32 * 4];
    unsigned round;

    enable_hypercalls(1);
    enable_synic(0);
    wrmsr(MSR_SINT0 + SINT, SINT_MASKED);
    testdev(CREATE_EVENT_CONNECTION, 0, SINT, EVENT);

    for (round = 0; round < ROUNDS; round++) {
        hypercall(SIGNAL_EVENT | FAST, EVENT);
        /* as a guest that works on its other channels' flags */
        while (!(*word & 1 << EVENT % 32)) {
            asm volatile("lock btrl $7, %0\n"
                         "lock btsl $7, %0\n"
                         "lock btrl $9, %0" : "+m"(*word) : : "cc");
        }
        asm volatile("lock btrl %1, %0" : "+m"(*word) : "i"(EVENT % 32) : "cc");
    }
    check("events seen", round, ROUNDS);
}
