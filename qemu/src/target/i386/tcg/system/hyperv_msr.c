/*
 * Hyper-V enlightenments for TCG guests: synthetic MSRs
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "exec/address-spaces.h"
#include "exec/memory.h"
#include "hw/hyperv/hyperv.h"
#include "system/runstate.h"
#include "hyperv_internal.h"

#define PAGE_ENABLE BIT(0)

/* Bytes of the reference TSC page and of the VP assist page that we own. */
#define TSC_PAGE_HEADER_SIZE 24
#define APIC_ASSIST_SIZE 4

/* vmmcall; ret */
static const uint8_t hypercall_code[] = { 0x0f, 0x01, 0xd9, 0xc3 };

/*
 * Write to a page that the guest has named.  Returns false, having written
 * nothing, unless it is RAM: an MSR must not poke at some device's registers.
 */
static bool write_guest_page(uint64_t msr_val, const void *buf, hwaddr len)
{
    hwaddr gpa = msr_val & TARGET_PAGE_MASK;
    hwaddr xlat, avail = len;
    MemoryRegion *mr;

    RCU_READ_LOCK_GUARD();
    mr = address_space_translate(&address_space_memory, gpa, &xlat, &avail,
                                 true, MEMTXATTRS_UNSPECIFIED);
    if (avail < len ||
        !memory_access_is_direct(mr, true, MEMTXATTRS_UNSPECIFIED)) {
        return false;
    }
    return address_space_write(&address_space_memory, gpa,
                               MEMTXATTRS_UNSPECIFIED, buf, len) == MEMTX_OK;
}

/* Time in the units of all Hyper-V clocks, 100 ns. */
static uint64_t reference_time(void)
{
    return qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL) / 100;
}

/*
 * CPU time of the vCPU's thread since the VM began, in 100 ns.  The sum is kept
 * in the MSR, so that it goes on after a migration.
 */
static uint64_t vp_runtime(CPUX86State *env)
{
    static __thread uint64_t counted;
    struct timespec ts;
    uint64_t now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    now = ts.tv_sec * 10000000ull + ts.tv_nsec / 100;
    env->msr_hv_runtime += now - counted;
    counted = now;
    return env->msr_hv_runtime;
}

/* With hv-enforce-cpuid the guest may only use what CPUID offers. */
static bool access_allowed(X86CPU *cpu, uint32_t msr)
{
    if (!cpu->hyperv_enforce_cpuid) {
        return true;
    }

    switch (msr) {
    case HV_X64_MSR_VP_INDEX:
        return hyperv_feat_enabled(cpu, HYPERV_FEAT_VPINDEX);
    case HV_X64_MSR_RESET:
        return hyperv_feat_enabled(cpu, HYPERV_FEAT_RESET);
    case HV_X64_MSR_VP_RUNTIME:
        return hyperv_feat_enabled(cpu, HYPERV_FEAT_RUNTIME);
    case HV_X64_MSR_TIME_REF_COUNT:
    case HV_X64_MSR_REFERENCE_TSC:
        return hyperv_feat_enabled(cpu, HYPERV_FEAT_TIME);
    case HV_X64_MSR_APIC_ASSIST_PAGE:
        return hyperv_feat_enabled(cpu, HYPERV_FEAT_VAPIC);
    case HV_X64_MSR_CRASH_P0 ... HV_X64_MSR_CRASH_CTL:
        return hyperv_feat_enabled(cpu, HYPERV_FEAT_CRASH);
    default:
        return true;
    }
}

static bool set_hypercall_page(CPUX86State *partition, uint64_t val)
{
    if (!partition->msr_hv_guest_os_id) {
        /* a guest without identity has no hypercalls; the write is lost */
        return true;
    }
    if ((val & HV_HYPERCALL_ENABLE) &&
        !write_guest_page(val, hypercall_code, sizeof(hypercall_code))) {
        return false;
    }
    partition->msr_hv_hypercall = val;
    return true;
}

static void report_crash(CPUState *cs, CPUX86State *env)
{
    /* the panic is reported on the vCPU that writes the MSR */
    memcpy(env->msr_hv_crash_params,
           hyperv_tcg_partition()->msr_hv_crash_params,
           sizeof(env->msr_hv_crash_params));
    qemu_system_guest_panicked(cpu_get_crash_info(cs));
}

bool hyperv_tcg_wrmsr(CPUX86State *env, uint32_t msr, uint64_t val)
{
    static const uint8_t zeroes[TSC_PAGE_HEADER_SIZE];
    X86CPU *cpu = env_archcpu(env);
    CPUX86State *partition;

    if (!hyperv_tcg_enabled(cpu)) {
        return true;
    }
    if (!access_allowed(cpu, msr)) {
        return false;
    }

    BQL_LOCK_GUARD();
    partition = hyperv_tcg_partition();

    switch (msr) {
    case HV_X64_MSR_GUEST_OS_ID:
        partition->msr_hv_guest_os_id = val;
        if (!val) {
            partition->msr_hv_hypercall &= ~(uint64_t)HV_HYPERCALL_ENABLE;
        }
        return true;
    case HV_X64_MSR_HYPERCALL:
        return set_hypercall_page(partition, val);
    case HV_X64_MSR_RESET:
        if (val == 1) {
            qemu_system_reset_request(SHUTDOWN_CAUSE_GUEST_RESET);
        }
        return true;
    case HV_X64_MSR_REFERENCE_TSC:
        /*
         * Sequence 0 sends the guest to TIME_REF_COUNT: the rate of TCG's TSC
         * is the host's, unknown and not the same after a migration.
         */
        if (val & PAGE_ENABLE) {
            write_guest_page(val, zeroes, TSC_PAGE_HEADER_SIZE);
        }
        partition->msr_hv_tsc = val;
        return true;
    case HV_X64_MSR_APIC_ASSIST_PAGE:
        if ((val & PAGE_ENABLE) &&
            !write_guest_page(val, zeroes, APIC_ASSIST_SIZE)) {
            return false;
        }
        env->msr_hv_vapic = val;
        return true;
    case HV_X64_MSR_SCONTROL ... HV_X64_MSR_SINT15:
        return hyperv_tcg_synic_wrmsr(env, msr, val);
    case HV_X64_MSR_CRASH_P0 ... HV_X64_MSR_CRASH_P4:
        partition->msr_hv_crash_params[msr - HV_X64_MSR_CRASH_P0] = val;
        return true;
    case HV_X64_MSR_CRASH_CTL:
        if (val & HV_CRASH_CTL_NOTIFY) {
            report_crash(CPU(cpu), env);
        }
        return true;
    default:
        return false;
    }
}

bool hyperv_tcg_rdmsr(CPUX86State *env, uint32_t msr, uint64_t *val)
{
    X86CPU *cpu = env_archcpu(env);
    CPUX86State *partition;

    *val = 0;
    if (!hyperv_tcg_enabled(cpu)) {
        return true;
    }
    if (!access_allowed(cpu, msr)) {
        return false;
    }
    if (msr == HV_X64_MSR_TIME_REF_COUNT) {
        /* the guest's clock: no lock here */
        *val = reference_time();
        return true;
    }

    BQL_LOCK_GUARD();
    partition = hyperv_tcg_partition();

    switch (msr) {
    case HV_X64_MSR_GUEST_OS_ID:
        *val = partition->msr_hv_guest_os_id;
        return true;
    case HV_X64_MSR_HYPERCALL:
        *val = partition->msr_hv_hypercall;
        return true;
    case HV_X64_MSR_VP_INDEX:
        *val = hyperv_vp_index(CPU(cpu));
        return true;
    case HV_X64_MSR_RESET:
        return true;
    case HV_X64_MSR_VP_RUNTIME:
        *val = vp_runtime(env);
        return true;
    case HV_X64_MSR_REFERENCE_TSC:
        *val = partition->msr_hv_tsc;
        return true;
    case HV_X64_MSR_APIC_ASSIST_PAGE:
        *val = env->msr_hv_vapic;
        return true;
    case HV_X64_MSR_SCONTROL ... HV_X64_MSR_SINT15:
        return hyperv_tcg_synic_rdmsr(env, msr, val);
    case HV_X64_MSR_CRASH_P0 ... HV_X64_MSR_CRASH_P4:
        *val = partition->msr_hv_crash_params[msr - HV_X64_MSR_CRASH_P0];
        return true;
    case HV_X64_MSR_CRASH_CTL:
        *val = HV_CRASH_CTL_NOTIFY;
        return true;
    default:
        return false;
    }
}
