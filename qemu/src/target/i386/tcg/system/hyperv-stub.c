/*
 * Hyper-V enlightenments for TCG guests: a QEMU built without them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "tcg/hyperv.h"

bool hyperv_tcg_realize(X86CPU *cpu, Error **errp)
{
    return true;
}

void hyperv_tcg_reset(X86CPU *cpu)
{
}

void hyperv_tcg_init(CPUX86State *env, const CPUX86State *before)
{
}

bool hyperv_tcg_cpuid(X86CPU *cpu, uint32_t leaf, uint32_t *eax, uint32_t *ebx,
                      uint32_t *ecx, uint32_t *edx)
{
    return false;
}

bool hyperv_tcg_rdmsr(CPUX86State *env, uint32_t msr, uint64_t *val)
{
    *val = 0;
    return true;
}

bool hyperv_tcg_wrmsr(CPUX86State *env, uint32_t msr, uint64_t val)
{
    return true;
}

bool hyperv_tcg_hypercall(CPUX86State *env)
{
    return false;
}

int hyperv_tcg_set_sint(CPUState *cs, uint32_t sint)
{
    return -EINVAL;
}

bool hyperv_tcg_is_auto_eoi(X86CPU *cpu, int vector)
{
    return false;
}

void hyperv_tcg_eoi(X86CPU *cpu, int vector)
{
}
