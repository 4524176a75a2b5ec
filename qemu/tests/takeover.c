/*
 * Another kernel takes over (kexec) and finds messages that nobody will read
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "lib/hyperv.h"

void test(void)
{
    Message *slot = &messages[0][VMBUS_SINT];

    enable_hypercalls(1);
    enable_synic(0);
    vmbus_contact();
    vmbus_fill(VMBUS_REQUEST_OFFERS);
    post(VMBUS_CONNECTION, 1, 8);
    WAIT_FOR(slot->flags & MESSAGE_PENDING);
    check("an offer is unread and the next waits", slot->type, 1);

    wrmsr(MSR_SIMP, 0);
    wrmsr(MSR_SIEFP, 0);
    wrmsr(MSR_GUEST_OS_ID, 0);
    enable_hypercalls(2);
    enable_synic(0);
    vmbus_contact();
    check("the new kernel's contact is answered", true, true);
}
