/*
 * hv-enforce-cpuid: what CPUID does not offer is not there; it offers hv-time
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "lib/hyperv.h"

void test(void)
{
    static const struct {
        const char *name;
        uint32_t msr;
        uint64_t fault;
    } reads[] = {
        { "GUEST_OS_ID", MSR_GUEST_OS_ID, NO_FAULT },
        { "TIME_REF_COUNT", MSR_TIME_REF_COUNT, NO_FAULT },
        { "REFERENCE_TSC", MSR_REFERENCE_TSC, NO_FAULT },
        { "no VP_INDEX", MSR_VP_INDEX, FAULT_GP },
        { "no RESET", MSR_RESET, FAULT_GP },
        { "no VP_RUNTIME", MSR_VP_RUNTIME, FAULT_GP },
        { "no VP_ASSIST", MSR_VP_ASSIST, FAULT_GP },
        { "no SIMP", MSR_SIMP, FAULT_GP },
        { "no CRASH_CTL", MSR_CRASH_CTL, FAULT_GP },
    };

    for (unsigned i = 0; i < sizeof(reads) / sizeof(reads[0]); i++) {
        check(reads[i].name, try_rdmsr(reads[i].msr), reads[i].fault);
    }
    check("CPUID: features", cpuid(0x40000003).eax, 0x222);
}
