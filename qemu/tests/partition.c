/*
 * CPUID, the MSRs of the partition and of a vCPU, statuses of hypercalls
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "lib/hyperv.h"

#define OS_ID          0x8100000000000001
#define VMMCALL_RET    0xc3d9010f
#define DEVICE         0xfee00001 /* local APIC */
#define HOLE           0x7ffffff001
#define LAST_PAGE      0xfffffffffffff001
#define NO_CONNECTION  0x55
#define SIZE_MAX_BYTES 240

#define MAX_LEAF       0x40000005
#define MICR           0x7263694d
#define HV_1           0x31237648
/* runtime, time, SynIC, hypercalls, VP index, reset, reference TSC */
#define FEATURES_EAX   0x2e7
#define FEATURES_EBX   0x30  /* post messages, signal events */
#define FEATURES_EDX   0x408 /* dynamic partitioning, crash MSRs */
#define RECOMMENDED    0x220 /* relaxed timing, no auto-EOI */

static PAGE_ALIGNED volatile uint32_t page[PAGE_SIZE / 4];

static void test_cpuid(void)
{
    Cpuid leaf = cpuid(0x40000000);

    check("CPUID: highest leaf", leaf.eax, MAX_LEAF);
    check("CPUID: vendor", leaf.ebx, MICR);
    check("CPUID: interface", cpuid(0x40000001).eax, HV_1);
    leaf = cpuid(0x40000003);
    check("CPUID: features", leaf.eax, FEATURES_EAX);
    check("CPUID: privileges", leaf.ebx, FEATURES_EBX);
    check("CPUID: other features", leaf.edx, FEATURES_EDX);
    check("CPUID: recommendations", cpuid(0x40000004).eax, RECOMMENDED);
    leaf = cpuid(0x40000007);
    check("CPUID: a leaf beyond is zero",
          leaf.eax | leaf.ebx | leaf.ecx | leaf.edx, 0);
}

static void test_hypercall_page(void)
{
    static const struct {
        const char *name;
        uint64_t value;
    } bad[] = {
        { "HYPERCALL: a device's page is #GP", DEVICE },
        { "HYPERCALL: a page outside RAM is #GP", HOLE },
        { "HYPERCALL: the last page there is, is #GP", LAST_PAGE },
    };

    check("VMMCALL is #UD while hypercalls are off",
          try_vmmcall(NOTIFY_LONG_SPIN_WAIT, 0), FAULT_UD);
    wrmsr(MSR_HYPERCALL, ENABLED(hypercall_page));
    check("HYPERCALL: ignored without GUEST_OS_ID", rdmsr(MSR_HYPERCALL), 0);

    wrmsr(MSR_GUEST_OS_ID, OS_ID);
    check("GUEST_OS_ID", rdmsr(MSR_GUEST_OS_ID), OS_ID);
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        check(bad[i].name, try_wrmsr(MSR_HYPERCALL, bad[i].value), FAULT_GP);
    }
    check("HYPERCALL: a #GP changes nothing", rdmsr(MSR_HYPERCALL), 0);

    wrmsr(MSR_HYPERCALL, ENABLED(hypercall_page));
    check("HYPERCALL: the page calls and returns",
          *(uint32_t *)hypercall_page, VMMCALL_RET);
}

static void test_clocks(void)
{
    uint64_t last = rdmsr(MSR_TIME_REF_COUNT), runtime = rdmsr(MSR_VP_RUNTIME);
    unsigned backwards = 0;

    for (unsigned i = 0; i < 2000; i++) {
        uint64_t now = i % 100 ? rdmsr(MSR_TIME_REF_COUNT)
                               : on_ap(rdmsr, MSR_TIME_REF_COUNT);

        backwards += now < last;
        last = now;
    }
    check("TIME_REF_COUNT never goes back, on either vCPU", backwards, 0);
    WAIT_FOR(rdmsr(MSR_TIME_REF_COUNT) > last);
    WAIT_FOR(rdmsr(MSR_VP_RUNTIME) > runtime);
    check("clocks run", true, true);

    page[0] = 0xff;
    wrmsr(MSR_REFERENCE_TSC, ENABLED(page));
    check("REFERENCE_TSC: the page sends to the MSR", page[0], 0);
}

static void test_access(void)
{
    static const struct {
        const char *name;
        uint32_t msr;
        uint64_t value;
        uint64_t fault;
    } writes[] = {
        { "VP_INDEX is read-only", MSR_VP_INDEX, 1, FAULT_GP },
        { "TIME_REF_COUNT is read-only", MSR_TIME_REF_COUNT, 1, FAULT_GP },
        { "VP_RUNTIME is read-only", MSR_VP_RUNTIME, 0, FAULT_GP },
        { "SVERSION is read-only", MSR_SVERSION, 1, FAULT_GP },
        { "VP_ASSIST: a page outside RAM is #GP", MSR_VP_ASSIST, HOLE,
          FAULT_GP },
        { "SIEFP: a page beyond the address width is #GP", MSR_SIEFP,
          LAST_PAGE, FAULT_GP },
        { "SIMP: a page beyond the address width is #GP", MSR_SIMP,
          1ull << 52 | 1, FAULT_GP },
        { "SINT: a vector below 16 is #GP", MSR_SINT0 + 2, 15, FAULT_GP },
        { "SINT: unless it is masked", MSR_SINT0 + 2, SINT_MASKED | 15,
          NO_FAULT },
        { "RESET: writing 0 does nothing", MSR_RESET, 0, NO_FAULT },
        { "EOI is not offered", MSR_EOI, 0, FAULT_GP },
        { "timers are not offered", MSR_STIMER0_CONFIG, 0, FAULT_GP },
        { "an unknown MSR is #GP", 0x400001ff, 0, FAULT_GP },
    };

    for (unsigned i = 0; i < sizeof(writes) / sizeof(writes[0]); i++) {
        check(writes[i].name, try_wrmsr(writes[i].msr, writes[i].value),
              writes[i].fault);
    }
    check("TSC_FREQUENCY is not offered", try_rdmsr(MSR_TSC_FREQUENCY),
          FAULT_GP);
    check("timers are not offered to read", try_rdmsr(MSR_STIMER0_CONFIG + 1),
          FAULT_GP);
    check("an unknown MSR is #GP to read", try_rdmsr(0x400001ff), FAULT_GP);
    check("SVERSION", rdmsr(MSR_SVERSION), 1);
    check("SINT0 comes up masked", rdmsr(MSR_SINT0), SINT_MASKED);
    check("SINT15 comes up masked", rdmsr(MSR_SINT0 + 15), SINT_MASKED);

    page[0] = 7;
    wrmsr(MSR_VP_ASSIST, ENABLED(page));
    check("VP_ASSIST: the page is cleared", page[0], 0);
    check("CRASH_CTL: what can be notified", rdmsr(MSR_CRASH_CTL), 1ull << 63);
}

/* What is written on one vCPU is read on the other, or is not. */
static void test_sharing(void)
{
    wrmsr(MSR_CRASH_P0 + 4, 0x1004);
    wrmsr(MSR_SINT0 + 7, 0x77);
    check("VP_INDEX of the first vCPU", rdmsr(MSR_VP_INDEX), 0);
    check("VP_INDEX of the other", on_ap(rdmsr, MSR_VP_INDEX), 1);
    check("GUEST_OS_ID is the partition's", on_ap(rdmsr, MSR_GUEST_OS_ID),
          OS_ID);
    check("HYPERCALL is the partition's", on_ap(rdmsr, MSR_HYPERCALL),
          ENABLED(hypercall_page));
    check("REFERENCE_TSC is the partition's", on_ap(rdmsr, MSR_REFERENCE_TSC),
          ENABLED(page));
    check("CRASH_P4 is the partition's", on_ap(rdmsr, MSR_CRASH_P0 + 4),
          0x1004);
    check("VP_ASSIST is the vCPU's", on_ap(rdmsr, MSR_VP_ASSIST), 0);
    check("SINT7 is the vCPU's", on_ap(rdmsr, MSR_SINT0 + 7), SINT_MASKED);
}

static void test_statuses(void)
{
    static const struct {
        const char *name;
        uint64_t input, param, status;
    } calls[] = {
        { "unknown code", 0x7777, 0, STATUS_INVALID_CODE },
        { "rep count on a simple call", SIGNAL_EVENT | FAST | REP_COUNT(1),
          NO_CONNECTION, STATUS_INVALID_INPUT },
        { "NotifyLongSpinWait", NOTIFY_LONG_SPIN_WAIT, 0, STATUS_SUCCESS },
        { "PostMessage: fast", POST_MESSAGE | FAST, 0, STATUS_INVALID_CODE },
        { "PostMessage: alignment", POST_MESSAGE, 1, STATUS_INVALID_ALIGNMENT },
        { "PostMessage: input outside RAM", POST_MESSAGE, HOLE & ~1ull,
          STATUS_INSUFFICIENT_MEMORY },
        { "SignalEvent: unknown connection", SIGNAL_EVENT | FAST, NO_CONNECTION,
          STATUS_INVALID_CONNECTION_ID },
        { "SignalEvent: flag number", SIGNAL_EVENT | FAST, 1ull << 32 | 5,
          STATUS_INVALID_PORT_ID },
        { "SignalEvent: reserved bits", SIGNAL_EVENT | FAST, 1ull << 48,
          STATUS_INVALID_INPUT },
    };

    for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        check(calls[i].name, hypercall(calls[i].input, calls[i].param),
              calls[i].status);
    }
    check("PostMessage: unknown connection", try_post(NO_CONNECTION, 1, 8),
          STATUS_INVALID_CONNECTION_ID);
    check("PostMessage: payload too long",
          try_post(NO_CONNECTION, 1, SIZE_MAX_BYTES + 1), STATUS_INVALID_INPUT);
    check("PostMessage: payload of 2^32 - 1 bytes",
          try_post(NO_CONNECTION, 1, UINT32_MAX), STATUS_INVALID_INPUT);

    wrmsr(MSR_GUEST_OS_ID, 0);
    check("GUEST_OS_ID 0 turns hypercalls off",
          try_vmmcall(NOTIFY_LONG_SPIN_WAIT, 0), FAULT_UD);
}

void test(void)
{
    test_cpuid();
    test_hypercall_page();
    start_ap();
    test_clocks();
    test_access();
    test_sharing();
    test_statuses();
}
