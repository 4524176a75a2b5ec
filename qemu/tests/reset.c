/*
 * Resets while the host has something to say: each boot finds all as new
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "lib/hyperv.h"

#define RESETS       8
#define AP_VECTOR    0x73
#define RESET_PORT   0xcf9

/* Counts boots, in a byte of CMOS that the firmware has no use for. */
#define CMOS_INDEX   0x70
#define CMOS_DATA    0x71
#define CMOS_BOOTS   0x60

static void check_new(uint64_t (*read)(uint32_t), const char *const names[])
{
    static const uint32_t zero[] = { MSR_SCONTROL, MSR_SIEFP, MSR_SIMP };

    for (unsigned i = 0; i < 3; i++) {
        check(names[i], read(zero[i]), 0);
    }
    check(names[3], read(MSR_SINT0 + VMBUS_SINT), SINT_MASKED);
}

static uint64_t read_ap(uint32_t msr)
{
    return on_ap(rdmsr, msr);
}

static uint64_t use_ap_synic(uint32_t vector)
{
    enable_synic(1);
    wrmsr(MSR_SINT0 + VMBUS_SINT, vector);
    return 0;
}

void test(void)
{
    static const char *const first[] = {
        "SCONTROL is zero", "SIEFP is zero", "SIMP is zero", "SINT is masked",
    };
    static const char *const other[] = {
        "other vCPU: SCONTROL is zero", "other vCPU: SIEFP is zero",
        "other vCPU: SIMP is zero", "other vCPU: SINT is masked",
    };
    unsigned resets;

    outb(CMOS_INDEX, CMOS_BOOTS);
    resets = inb(CMOS_DATA);
    note("booted");

    check("GUEST_OS_ID is zero", rdmsr(MSR_GUEST_OS_ID), 0);
    check("HYPERCALL is zero", rdmsr(MSR_HYPERCALL), 0);
    check_new(rdmsr, first);
    start_ap();
    check_new(read_ap, other);

    enable_hypercalls(1);
    enable_synic(0);
    wrmsr(MSR_SINT0 + VMBUS_SINT, SINT_MASKED);
    on_ap(use_ap_synic, AP_VECTOR);
    vmbus_contact();
    check("the host answers", true, true);
    if (resets == RESETS) {
        return;
    }
    outb(CMOS_INDEX, CMOS_BOOTS);
    outb(CMOS_DATA, resets + 1);

    vmbus_fill(VMBUS_REQUEST_OFFERS);
    post(VMBUS_CONNECTION, 1, 8);
    if (resets & 1) {
        /* the slot is taken and more waits for it */
        WAIT_FOR(messages[0][VMBUS_SINT].flags & MESSAGE_PENDING);
    }
    vmbus_fill(VMBUS_UNLOAD);
    try_post(VMBUS_CONNECTION, 1, 8);
    vmbus_fill(VMBUS_INITIATE_CONTACT);
    try_post(VMBUS_CONNECTION, 1, 40);
    if (resets & 2) {
        wrmsr(MSR_EOM, 0);
    }
    if (resets & 4) {
        wrmsr(MSR_RESET, 1);
    }
    outb(RESET_PORT, 2);
    outb(RESET_PORT, 6);
    for (;;) {
        asm volatile("pause");
    }
}
