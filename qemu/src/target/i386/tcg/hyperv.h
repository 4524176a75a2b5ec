/*
 * Hyper-V enlightenments for TCG guests
 *
 * Hyper-V Top-Level Functional Specification (TLFS) 6.0b is the source; where
 * it leaves room, the behaviour is that of KVM.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TARGET_I386_TCG_HYPERV_H
#define TARGET_I386_TCG_HYPERV_H

#include "cpu.h"

/* The MSRs that TLFS gives to the hypervisor and that are known here. */
#define HYPERV_TCG_MSR_FIRST 0x40000000
#define HYPERV_TCG_MSR_LAST  0x400001ff

/*
 * Check the hv-* properties of @cpu and prepare what they ask for.
 * An enlightenment that TCG cannot provide is an error.
 */
bool hyperv_tcg_realize(X86CPU *cpu, Error **errp);

/* System reset; runs after all devices were reset. */
void hyperv_tcg_reset(X86CPU *cpu);

/* INIT leaves synthetic MSRs alone: take them over from @before. */
void hyperv_tcg_init(CPUX86State *env, const CPUX86State *before);

/* Returns false for a leaf that is not Hyper-V's. */
bool hyperv_tcg_cpuid(X86CPU *cpu, uint32_t leaf, uint32_t *eax, uint32_t *ebx,
                      uint32_t *ecx, uint32_t *edx);

/* Both return false if the access is to raise #GP. */
bool hyperv_tcg_rdmsr(CPUX86State *env, uint32_t msr, uint64_t *val);
bool hyperv_tcg_wrmsr(CPUX86State *env, uint32_t msr, uint64_t val);

/* VMMCALL.  Returns false if it is to raise #UD. */
bool hyperv_tcg_hypercall(CPUX86State *env);

/* Raise synthetic interrupt @sint of @cs: 0, or -EINVAL if there is none. */
int hyperv_tcg_set_sint(CPUState *cs, uint32_t sint);

/* Whether an interrupt with @vector is over as soon as it is taken. */
bool hyperv_tcg_is_auto_eoi(X86CPU *cpu, int vector);

/* The guest ended the interrupt with @vector: retry messages held back. */
void hyperv_tcg_eoi(X86CPU *cpu, int vector);

#endif
