/*
 * Guest and host change event flags in one word: neither loses the other's
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "lib/hyperv.h"

#define SINT   2
#define EVENT  0x21
#define OWN    7 /* a bit of the same word that only the guest changes */
#define ROUNDS 20000

static bool set(volatile uint32_t *word, unsigned bit)
{
    bool was;

    asm volatile("lock btsl %2, %0" : "+m"(*word), "=@ccc"(was) : "r"(bit));
    return was;
}

static bool clear(volatile uint32_t *word, unsigned bit)
{
    bool was;

    asm volatile("lock btrl %2, %0" : "+m"(*word), "=@ccc"(was) : "r"(bit));
    return was;
}

void test(void)
{
    volatile uint32_t *word =
        (volatile uint32_t *)&event_flags[0][SINT][EVENT / 32 * 4];
    unsigned round, lost = 0, returned = 0;

    enable_hypercalls(1);
    enable_synic(0);
    wrmsr(MSR_SINT0 + SINT, SINT_MASKED);
    testdev(CREATE_EVENT_CONNECTION, 0, SINT, EVENT);

    for (round = 0; round < ROUNDS; round++) {
        hypercall(SIGNAL_EVENT | FAST, EVENT);
        do {
            returned += set(word, OWN);
            lost += !clear(word, OWN);
        } while (!clear(word, EVENT % 32));
    }
    check("every event of the host's is seen", round, ROUNDS);
    check("no flag that the guest has set is lost", lost, 0);
    check("no flag that the guest has cleared returns", returned, 0);
}
