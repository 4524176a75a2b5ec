/*
 * Hyper-V enlightenments for TCG guests: what the parts share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TARGET_I386_TCG_SYSTEM_HYPERV_INTERNAL_H
#define TARGET_I386_TCG_SYSTEM_HYPERV_INTERNAL_H

#include "tcg/hyperv.h"
#include "hw/core/cpu.h"

static inline bool hyperv_tcg_enabled(X86CPU *cpu)
{
    return cpu->hyperv_features ||
           cpu->hyperv_spinlock_attempts != HYPERV_SPINLOCK_NEVER_NOTIFY;
}

/*
 * MSRs of the partition live in the first vCPU, as they do with KVM, and so
 * they migrate with it.  The BQL guards them.
 */
static inline CPUX86State *hyperv_tcg_partition(void)
{
    return cpu_env(first_cpu);
}

/* SynIC MSRs, 0x40000080 to 0x4000009f. */
bool hyperv_tcg_synic_rdmsr(CPUX86State *env, uint32_t msr, uint64_t *val);
bool hyperv_tcg_synic_wrmsr(CPUX86State *env, uint32_t msr, uint64_t val);

#endif
