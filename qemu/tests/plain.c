/*
 * A CPU without enlightenments
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "lib/hyperv.h"

#define TCGT 0x54474354
#define CGTC 0x43544743
#define GTCG 0x47435447

void test(void)
{
    Cpuid hypervisor = cpuid(0x40000000);

    check("CPUID: TCG's own signature",
          hypervisor.ebx == TCGT && hypervisor.ecx == CGTC &&
          hypervisor.edx == GTCG, true);
    check("CPUID: no Hyper-V interface", cpuid(0x40000001).eax, 0);

    check("MSR: a write is ignored, as ever", try_wrmsr(MSR_GUEST_OS_ID, 1),
          NO_FAULT);
    check("MSR: nothing is kept", rdmsr(MSR_GUEST_OS_ID), 0);
    hypercall_page[0] = 0xaa;
    check("MSR: no hypercall page",
          try_wrmsr(MSR_HYPERCALL, ENABLED(hypercall_page)), NO_FAULT);
    check("MSR: the page is left alone", hypercall_page[0], 0xaa);
    check("VMMCALL is #UD", try_vmmcall(NOTIFY_LONG_SPIN_WAIT, 0), FAULT_UD);
}
