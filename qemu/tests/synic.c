/*
 * Messages, event flags and their interrupts, on both vCPUs
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "lib/hyperv.h"

#define SINT              2
#define VECTOR            0x62
#define AP_SINT           3
#define AP_VECTOR         0x73
#define AUTO_EOI_SINT     4
#define AUTO_EOI_VECTOR   0x64
#define EOI_SINT          5
#define EOI_VECTOR        0x65
#define CONNECTION        0x21
#define AP_CONNECTION     0x22
#define EVENT             0x31
#define UNDERLAY          0xaa

static Message *const slot = &messages[0][SINT];
static Message *const ap_slot = &messages[1][AP_SINT];
static PAGE_ALIGNED uint8_t elsewhere[PAGE_SIZE];
static PAGE_ALIGNED uint64_t event_input;

static void set_sint(unsigned sint, uint64_t value)
{
    wrmsr(MSR_SINT0 + sint, value);
}

static void test_messages(void)
{
    uint8_t *page = (uint8_t *)messages[0];

    for (unsigned i = 0; i < PAGE_SIZE; i++) {
        page[i] = UNDERLAY;
    }
    enable_synic(0);
    check("SIMP: the page starts empty",
          ((volatile uint8_t *)page)[0] | ((volatile uint8_t *)page)[4095], 0);

    set_sint(SINT, VECTOR);
    testdev(CREATE_MESSAGE_CONNECTION, 0, SINT, CONNECTION);
    outgoing.payload[3] = 0x12345678;
    check("PostMessage", post(CONNECTION, 1, 16), STATUS_SUCCESS);
    WAIT_FOR(interrupts[VECTOR]);
    settle();
    check("message: one interrupt", interrupts[VECTOR], 1);
    check("message: type", slot->type, 1);
    check("message: size", slot->size, 16);
    check("message: payload", slot->payload[3], 0x12345678);

    post(CONNECTION, 2, 16);
    WAIT_FOR(slot->flags & MESSAGE_PENDING);
    check("message pending: the slot is as it was", slot->type, 1);
    check("message pending: no interrupt", interrupts[VECTOR], 1);
    check("message pending: no buffer for a third",
          try_post(CONNECTION, 2, 16), STATUS_INSUFFICIENT_BUFFERS);
    release(slot);
    WAIT_FOR(interrupts[VECTOR] == 2);
    check("EOM brings what waits", slot->type, 2);
    release(slot);
}

/* The end of the interrupt is as good as EOM. */
static void test_eoi(void)
{
    interrupts[VECTOR] = 0;
    post(CONNECTION, 1, 8);
    WAIT_FOR(interrupts[VECTOR]);
    post(CONNECTION, 2, 8);
    WAIT_FOR(slot->flags & MESSAGE_PENDING);
    slot->type = 0;

    eoi_at_once = false;
    interrupts[VECTOR] = 0;
    apic_send_self(VECTOR);
    WAIT_FOR(interrupts[VECTOR]);
    settle();
    check("before EOI: in service", apic_in_service(VECTOR), true);
    check("before EOI: the message is held back", slot->type, 0);
    apic_eoi();
    WAIT_FOR(slot->type);
    WAIT_FOR(interrupts[VECTOR] == 2);
    check("EOI brings what waits", slot->type, 2);
    apic_eoi();
    eoi_at_once = true;
    release(slot);
    settle();
}

static void test_no_interrupt(void)
{
    static const struct {
        const char *name;
        uint32_t flag;
    } quiet[] = {
        { "masked SINT: a message, no interrupt", SINT_MASKED },
        { "polling SINT: a message, no interrupt", SINT_POLLING },
    };

    for (unsigned i = 0; i < 2; i++) {
        interrupts[VECTOR] = 0;
        set_sint(SINT, VECTOR | quiet[i].flag);
        post(CONNECTION, 5 + i, 8);
        WAIT_FOR(slot->type == 5 + i);
        settle();
        check(quiet[i].name, interrupts[VECTOR], 0);
        release(slot);
    }
    set_sint(SINT, VECTOR);
}

static void test_auto_eoi(void)
{
    eoi_at_once = false;
    testdev(CREATE_SINT_ROUTE, 0, AUTO_EOI_SINT, 0);
    set_sint(AUTO_EOI_SINT, AUTO_EOI_VECTOR | SINT_AUTO_EOI);
    for (unsigned i = 1; i <= 3; i++) {
        testdev(SET_SINT, 0, AUTO_EOI_SINT, 0);
        WAIT_FOR(interrupts[AUTO_EOI_VECTOR] == i);
    }
    check("auto-EOI: interrupts follow each other",
          interrupts[AUTO_EOI_VECTOR], 3);
    check("auto-EOI: none in service", apic_in_service(AUTO_EOI_VECTOR), false);

    testdev(CREATE_SINT_ROUTE, 0, EOI_SINT, 0);
    set_sint(EOI_SINT, EOI_VECTOR);
    for (unsigned i = 0; i < 3; i++) {
        testdev(SET_SINT, 0, EOI_SINT, 0);
        settle();
    }
    check("no auto-EOI: one interrupt", interrupts[EOI_VECTOR], 1);
    check("no auto-EOI: it is in service", apic_in_service(EOI_VECTOR), true);
    apic_eoi();
    WAIT_FOR(interrupts[EOI_VECTOR] == 2);
    apic_eoi();
    settle();
    check("no auto-EOI: the others had become one", interrupts[EOI_VECTOR], 2);
    eoi_at_once = true;
}

static void test_events(void)
{
    volatile uint8_t *flags = &event_flags[0][SINT][EVENT / 8];

    interrupts[VECTOR] = 0;
    testdev(CREATE_EVENT_CONNECTION, 0, SINT, EVENT);
    check("SignalEvent, fast", hypercall(SIGNAL_EVENT | FAST, EVENT),
          STATUS_SUCCESS);
    WAIT_FOR(interrupts[VECTOR]);
    check("event: its flag alone is set", *flags, 1 << EVENT % 8);
    hypercall(SIGNAL_EVENT | FAST, EVENT);
    settle();
    check("event: no interrupt while the flag is set", interrupts[VECTOR], 1);

    *flags = 0;
    event_input = EVENT;
    check("SignalEvent, slow",
          hypercall(SIGNAL_EVENT, (uintptr_t)&event_input), STATUS_SUCCESS);
    WAIT_FOR(interrupts[VECTOR] == 2);
    check("event: set again", *flags, 1 << EVENT % 8);
}

static uint64_t enable_ap_synic(uint32_t sint)
{
    enable_synic(1);
    set_sint(sint, AP_VECTOR);
    return rdmsr(MSR_SIMP);
}

static uint64_t await_interrupt(uint32_t vector)
{
    WAIT_FOR(interrupts[vector]);
    settle();
    return interrupts[vector];
}

static void test_other_vcpu(void)
{
    check("other vCPU: SIMP", on_ap(enable_ap_synic, AP_SINT),
          ENABLED(messages[1]));
    testdev(CREATE_MESSAGE_CONNECTION, 1, AP_SINT, AP_CONNECTION);
    post(AP_CONNECTION, 9, 8);
    check("other vCPU: one interrupt", on_ap(await_interrupt, AP_VECTOR), 1);
    check("other vCPU: the message", ap_slot->type, 9);
    check("other vCPU: not in the first one's page",
          messages[0][AP_SINT].type, 0);

    start_ap();
    check("INIT keeps VP_INDEX", on_ap(rdmsr, MSR_VP_INDEX), 1);
    check("INIT keeps SIMP", on_ap(rdmsr, MSR_SIMP), ENABLED(messages[1]));
    check("INIT keeps the SINT", on_ap(rdmsr, MSR_SINT0 + AP_SINT), AP_VECTOR);
    ap_slot->type = 0;
    interrupts[AP_VECTOR] = 0;
    post(AP_CONNECTION, 10, 8);
    check("INIT: messages go on", on_ap(await_interrupt, AP_VECTOR), 1);
    check("INIT: the message", ap_slot->type, 10);
}

static void test_overlay(void)
{
    volatile uint8_t *page = (volatile uint8_t *)messages[0];

    wrmsr(MSR_SIMP, ENABLED(elsewhere));
    check("SIMP moves: the RAM below is back", page[0], UNDERLAY);
    wrmsr(MSR_SIMP, ENABLED(messages[0]));
    post(CONNECTION, 11, 8);
    WAIT_FOR(slot->type == 11);
    wrmsr(MSR_SIMP, 0);
    check("SIMP disabled: the RAM below is back", page[0], UNDERLAY);
    wrmsr(MSR_SIMP, ENABLED(messages[0]));
    check("SIMP: enabled again, its slots are free", slot->type, 0);

    /* one page for both is the guest's folly, but no harm to the host */
    wrmsr(MSR_SIEFP, ENABLED(messages[0]));
    wrmsr(MSR_SIEFP, ENABLED(event_flags[0]));
    interrupts[VECTOR] = 0;
    post(CONNECTION, 12, 8);
    WAIT_FOR(interrupts[VECTOR]);
    check("SIEFP over SIMP and away: messages go on", slot->type, 12);
    release(slot);
}

static void test_x2apic(void)
{
    apic_enter_x2apic();
    interrupts[VECTOR] = 0;
    for (unsigned i = 1; i <= 2; i++) {
        post(CONNECTION, 12 + i, 8);
        WAIT_FOR(interrupts[VECTOR] == i);
        check("x2APIC: a message with its interrupt", slot->type, 12 + i);
        release(slot);
    }
}

void test(void)
{
    enable_hypercalls(1);
    start_ap();
    test_messages();
    test_eoi();
    test_no_interrupt();
    test_auto_eoi();
    test_events();
    test_other_vcpu();
    test_overlay();
    test_x2apic();
}
