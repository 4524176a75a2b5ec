/*
 * Hyper-V enlightenments for TCG guests: properties, CPUID, reset
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "exec/translation-block.h"
#include "kvm/hyperv.h"
#include "hyperv_internal.h"

/* What one hv-* property adds to CPUID, or that TCG has nothing to add. */
typedef struct Enlightenment {
    const char *property;
    bool offered;
    uint32_t features_eax, features_ebx, features_edx;
    uint32_t recommendations;
} Enlightenment;

static const Enlightenment enlightenments[] = {
    [HYPERV_FEAT_RELAXED] = {
        "hv-relaxed", true,
        .recommendations = HV_RELAXED_TIMING_RECOMMENDED,
    },
    [HYPERV_FEAT_VPINDEX] = {
        "hv-vpindex", true,
        .features_eax = HV_VP_INDEX_AVAILABLE,
    },
    [HYPERV_FEAT_SYNIC] = {
        "hv-synic", true,
        .features_eax = HV_SYNIC_AVAILABLE,
        .features_ebx = HV_POST_MESSAGES | HV_SIGNAL_EVENTS,
    },
    [HYPERV_FEAT_TIME] = {
        "hv-time", true,
        .features_eax = HV_TIME_REF_COUNT_AVAILABLE |
                        HV_REFERENCE_TSC_AVAILABLE,
    },
    [HYPERV_FEAT_RUNTIME] = {
        "hv-runtime", true,
        .features_eax = HV_VP_RUNTIME_AVAILABLE,
    },
    [HYPERV_FEAT_CRASH] = {
        "hv-crash", true,
        .features_edx = HV_GUEST_CRASH_MSR_AVAILABLE,
    },
    [HYPERV_FEAT_RESET] = {
        "hv-reset", true,
        .features_eax = HV_RESET_AVAILABLE,
    },
    [HYPERV_FEAT_VAPIC] = { "hv-vapic" },
    [HYPERV_FEAT_STIMER] = { "hv-stimer" },
    [HYPERV_FEAT_FREQUENCIES] = { "hv-frequencies" },
    [HYPERV_FEAT_REENLIGHTENMENT] = { "hv-reenlightenment" },
    [HYPERV_FEAT_TLBFLUSH] = { "hv-tlbflush" },
    [HYPERV_FEAT_EVMCS] = { "hv-evmcs" },
    [HYPERV_FEAT_IPI] = { "hv-ipi" },
    [HYPERV_FEAT_STIMER_DIRECT] = { "hv-stimer-direct" },
    [HYPERV_FEAT_AVIC] = { "hv-avic" },
    [HYPERV_FEAT_SYNDBG] = { "hv-syndbg" },
    [HYPERV_FEAT_MSR_BITMAP] = { "hv-emsr-bitmap" },
    [HYPERV_FEAT_XMM_INPUT] = { "hv-xmm-input" },
    [HYPERV_FEAT_TLBFLUSH_EXT] = { "hv-tlbflush-ext" },
    [HYPERV_FEAT_TLBFLUSH_DIRECT] = { "hv-tlbflush-direct" },
};

bool hyperv_tcg_realize(X86CPU *cpu, Error **errp)
{
    if (cpu->hyperv_passthrough) {
        error_setg(errp, "hv-passthrough needs KVM");
        return false;
    }
    for (int i = 0; i < ARRAY_SIZE(enlightenments); i++) {
        if (hyperv_feat_enabled(cpu, i) && !enlightenments[i].offered) {
            error_setg(errp, "TCG does not provide %s",
                       enlightenments[i].property);
            return false;
        }
    }
    if (!hyperv_feat_enabled(cpu, HYPERV_FEAT_SYNIC)) {
        return true;
    }
    if (!hyperv_feat_enabled(cpu, HYPERV_FEAT_VPINDEX)) {
        error_setg(errp, "hv-synic requires hv-vpindex");
        return false;
    }
    if (hyperv_x86_synic_add(cpu) < 0) {
        error_setg(errp, "hv-synic is not built into this QEMU");
        return false;
    }

    /*
     * Other threads set event flags while the guest clears some: its locked
     * instructions must be atomic even if there is only one vCPU.
     */
    tcg_cflags_set(CPU(cpu), CF_PARALLEL);
    return true;
}

void hyperv_tcg_reset(X86CPU *cpu)
{
    if (hyperv_feat_enabled(cpu, HYPERV_FEAT_SYNIC)) {
        for (int i = 0; i < HV_SINT_COUNT; i++) {
            cpu->env.msr_hv_synic_sint[i] = HV_SINT_MASKED;
        }
        hyperv_x86_synic_reset(cpu);
    }
}

void hyperv_tcg_init(CPUX86State *env, const CPUX86State *before)
{
    size_t start = offsetof(CPUX86State, msr_hv_hypercall);
    size_t end = offsetof(CPUX86State, msr_hv_tsc_emulation_status) +
                 sizeof(env->msr_hv_tsc_emulation_status);

    memcpy((char *)env + start, (const char *)before + start, end - start);
}

bool hyperv_tcg_cpuid(X86CPU *cpu, uint32_t leaf, uint32_t *eax, uint32_t *ebx,
                      uint32_t *ecx, uint32_t *edx)
{
    if (!hyperv_tcg_enabled(cpu) || leaf < HV_CPUID_VENDOR_AND_MAX_FUNCTIONS ||
        leaf > HV_CPUID_MAX) {
        return false;
    }

    *eax = *ebx = *ecx = *edx = 0;
    switch (leaf) {
    case HV_CPUID_VENDOR_AND_MAX_FUNCTIONS:
        *eax = HV_CPUID_IMPLEMENT_LIMITS;
        *ebx = cpu->hyperv_vendor_id[0];
        *ecx = cpu->hyperv_vendor_id[1];
        *edx = cpu->hyperv_vendor_id[2];
        break;
    case HV_CPUID_INTERFACE:
        *eax = cpu->hyperv_interface_id[0];
        *ebx = cpu->hyperv_interface_id[1];
        *ecx = cpu->hyperv_interface_id[2];
        *edx = cpu->hyperv_interface_id[3];
        break;
    case HV_CPUID_VERSION:
        *eax = cpu->hyperv_ver_id_build;
        *ebx = deposit32(cpu->hyperv_ver_id_minor, 16, 16,
                         cpu->hyperv_ver_id_major);
        *ecx = cpu->hyperv_ver_id_sp;
        *edx = deposit32(cpu->hyperv_ver_id_sn, 24, 8, cpu->hyperv_ver_id_sb);
        break;
    case HV_CPUID_FEATURES:
        *eax = HV_HYPERCALL_AVAILABLE;
        *edx = HV_CPU_DYNAMIC_PARTITIONING_AVAILABLE;
        for (int i = 0; i < ARRAY_SIZE(enlightenments); i++) {
            if (hyperv_feat_enabled(cpu, i)) {
                *eax |= enlightenments[i].features_eax;
                *ebx |= enlightenments[i].features_ebx;
                *edx |= enlightenments[i].features_edx;
            }
        }
        break;
    case HV_CPUID_ENLIGHTMENT_INFO:
        *eax = HV_DEPRECATING_AEOI_RECOMMENDED;
        *ebx = cpu->hyperv_spinlock_attempts;
        for (int i = 0; i < ARRAY_SIZE(enlightenments); i++) {
            if (hyperv_feat_enabled(cpu, i)) {
                *eax |= enlightenments[i].recommendations;
            }
        }
        if (cpu->hyperv_no_nonarch_cs == ON_OFF_AUTO_ON) {
            *eax |= HV_NO_NONARCH_CORESHARING;
        }
        break;
    case HV_CPUID_IMPLEMENT_LIMITS:
        *eax = cpu->hv_max_vps;
        *ebx = cpu->hyperv_limits[0];
        *ecx = cpu->hyperv_limits[1];
        *edx = cpu->hyperv_limits[2];
        break;
    default:
        break;
    }
    return true;
}
