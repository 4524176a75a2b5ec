/*
 * Hyper-V enlightenments for TCG guests: synthetic interrupt controller
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "exec/address-spaces.h"
#include "hw/i386/apic.h"
#include "hw/i386/apic_internal.h"
#include "hw/i386/apic-msidef.h"
#include "hw/pci/msi.h"
#include "kvm/hyperv.h"
#include "hyperv_internal.h"

#define SINT_POLLING BIT(18)
#define FIRST_VALID_VECTOR 16

static bool sint_has_vector(uint64_t sint, int vector)
{
    return !(sint & HV_SINT_MASKED) && (sint & HV_SINT_VECTOR_MASK) == vector;
}

int hyperv_tcg_set_sint(CPUState *cs, uint32_t sint)
{
    X86CPU *cpu = X86_CPU(cs);
    APICCommonState *apic = APIC_COMMON(cpu->apic_state);
    uint32_t dest;
    uint64_t val;
    MSIMessage msi;

    if (sint >= HV_SINT_COUNT) {
        return -EINVAL;
    }

    BQL_LOCK_GUARD();
    val = cpu->env.msr_hv_synic_sint[sint];
    if (val & (HV_SINT_MASKED | SINT_POLLING)) {
        return 0;
    }

    dest = is_x2apic_mode(cpu->apic_state) ? apic->initial_apic_id : apic->id;
    msi.address = APIC_DEFAULT_ADDRESS | (uint64_t)(dest & ~0xff) << 32 |
                  (dest & 0xff) << MSI_ADDR_DEST_ID_SHIFT;
    msi.data = val & HV_SINT_VECTOR_MASK;
    apic_get_class(&error_abort)->send_msi(&msi);
    return 0;
}

bool hyperv_tcg_is_auto_eoi(X86CPU *cpu, int vector)
{
    if (!tcg_enabled() || !hyperv_feat_enabled(cpu, HYPERV_FEAT_SYNIC)) {
        return false;
    }
    for (int i = 0; i < HV_SINT_COUNT; i++) {
        uint64_t sint = cpu->env.msr_hv_synic_sint[i];

        if (sint_has_vector(sint, vector) && (sint & HV_SINT_AUTO_EOI)) {
            return true;
        }
    }
    return false;
}

void hyperv_tcg_eoi(X86CPU *cpu, int vector)
{
    uint16_t sints = 0;

    if (!tcg_enabled() || !hyperv_feat_enabled(cpu, HYPERV_FEAT_SYNIC)) {
        return;
    }
    for (int i = 0; i < HV_SINT_COUNT; i++) {
        if (sint_has_vector(cpu->env.msr_hv_synic_sint[i], vector)) {
            sints |= BIT(i);
        }
    }
    if (sints) {
        hyperv_synic_acked(CPU(cpu), sints);
    }
}

/*
 * Runs while all vCPUs are stopped, as the memory map changes under them.
 * @data is the page that has just been enabled, 0 if none.
 */
static void update_overlays(CPUState *cs, run_on_cpu_data data)
{
    BQL_LOCK_GUARD();
    hyperv_x86_synic_update(X86_CPU(cs));
    if (data.target_ptr) {
        /*
         * A message that a former user of the SynIC left unread (kexec) would
         * block its slot for good.  Nor will anybody acknowledge it.
         */
        address_space_set(&address_space_memory, data.target_ptr, 0,
                          TARGET_PAGE_SIZE, MEMTXATTRS_UNSPECIFIED);
        hyperv_synic_acked(cs, UINT16_MAX);
    }
}

static bool set_page(CPUX86State *env, uint64_t *msr, uint64_t val)
{
    X86CPU *cpu = env_archcpu(env);
    bool enable = val & HV_SIMP_ENABLE;
    uint64_t page = val & TARGET_PAGE_MASK;
    bool enabled_now = enable && !(*msr & HV_SIMP_ENABLE);

    if (enable && page >> cpu->phys_bits) {
        return false;
    }
    *msr = val;
    async_safe_run_on_cpu(CPU(cpu), update_overlays,
                          RUN_ON_CPU_TARGET_PTR(enabled_now ? page : 0));
    return true;
}

bool hyperv_tcg_synic_wrmsr(CPUX86State *env, uint32_t msr, uint64_t val)
{
    X86CPU *cpu = env_archcpu(env);

    if (!hyperv_feat_enabled(cpu, HYPERV_FEAT_SYNIC)) {
        return false;
    }

    switch (msr) {
    case HV_X64_MSR_SCONTROL:
        env->msr_hv_synic_control = val;
        async_safe_run_on_cpu(CPU(cpu), update_overlays,
                              RUN_ON_CPU_TARGET_PTR(0));
        return true;
    case HV_X64_MSR_SIEFP:
        return set_page(env, &env->msr_hv_synic_evt_page, val);
    case HV_X64_MSR_SIMP:
        return set_page(env, &env->msr_hv_synic_msg_page, val);
    case HV_X64_MSR_EOM:
        hyperv_synic_acked(CPU(cpu), UINT16_MAX);
        return true;
    case HV_X64_MSR_SINT0 ... HV_X64_MSR_SINT15:
        if (!(val & HV_SINT_MASKED) &&
            (val & HV_SINT_VECTOR_MASK) < FIRST_VALID_VECTOR) {
            return false;
        }
        env->msr_hv_synic_sint[msr - HV_X64_MSR_SINT0] = val;
        return true;
    default:
        return false;
    }
}

bool hyperv_tcg_synic_rdmsr(CPUX86State *env, uint32_t msr, uint64_t *val)
{
    if (!hyperv_feat_enabled(env_archcpu(env), HYPERV_FEAT_SYNIC)) {
        return false;
    }

    switch (msr) {
    case HV_X64_MSR_SCONTROL:
        *val = env->msr_hv_synic_control;
        return true;
    case HV_X64_MSR_SVERSION:
        *val = HV_SYNIC_VERSION;
        return true;
    case HV_X64_MSR_SIEFP:
        *val = env->msr_hv_synic_evt_page;
        return true;
    case HV_X64_MSR_SIMP:
        *val = env->msr_hv_synic_msg_page;
        return true;
    case HV_X64_MSR_EOM:
        *val = 0;
        return true;
    case HV_X64_MSR_SINT0 ... HV_X64_MSR_SINT15:
        *val = env->msr_hv_synic_sint[msr - HV_X64_MSR_SINT0];
        return true;
    default:
        return false;
    }
}
