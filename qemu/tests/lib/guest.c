/*
 * Bare-metal guests: console, results, traps, local APIC, the second vCPU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "guest.h"

#define SERIAL_PORT     0x3f8
#define DEBUG_EXIT_PORT 0xf4
/* QEMU exits with 2 * n + 1, which is neither its success nor its failure. */
#define EXIT_PASS 0x10
#define EXIT_FAIL 0x11

#define APIC_BASE          0xfee00000
#define APIC_TPR           0x80
#define APIC_EOI           0xb0
#define APIC_SVR           0xf0
#define APIC_ISR           0x100
#define APIC_ICR           0x300
#define APIC_ICR_HIGH      0x310
#define APIC_ENABLE        0x1ff
#define MSR_APIC_BASE      0x1b
#define APIC_BASE_X2APIC   0x400
#define MSR_X2APIC_EOI     0x80b
#define ICR_INIT           0x4500
#define ICR_STARTUP        0x4600
#define ICR_SELF           0x40000
#define AP_ID              1
#define AP_START           0x8000
#define FIRST_INTERRUPT    32

typedef struct TrapFrame {
    uint64_t r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax;
    uint64_t vector, error, rip, cs, rflags, rsp, ss;
} TrapFrame;

typedef struct __attribute__((packed)) Gate {
    uint16_t offset_low, selector, attributes, offset_mid;
    uint32_t offset_high, reserved;
} Gate;

typedef struct Fixup {
    uint64_t fault, resume;
} Fixup;

extern const char trap_stubs[], ap_trampoline[], ap_trampoline_end[];
extern const Fixup fixups[], fixups_end[];

volatile uint32_t interrupts[256];
volatile bool eoi_at_once = true;

static unsigned checks, failures;
static bool x2apic;
static Gate idt[256];
static uint64_t (*volatile job)(uint32_t);
static volatile uint32_t job_argument;
static volatile uint64_t job_result;
static volatile bool ap_running;

/* Called from start.S, and by code that the compiler makes. */
void boot_main(void);
void ap_main(void);
void trap(TrapFrame *frame);
void *memset(void *to, int byte, uint64_t size);
void *memcpy(void *to, const void *from, uint64_t size);

void *memset(void *to, int byte, uint64_t size)
{
    void *at = to;

    asm volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(byte) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, uint64_t size)
{
    void *at = to;

    asm volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(size) : : "memory");
    return to;
}

static void put(const char *text)
{
    while (*text) {
        outb(SERIAL_PORT, *text++);
    }
}

static void put_number(uint64_t n, unsigned base)
{
    if (n >= base) {
        put_number(n / base, base);
    }
    outb(SERIAL_PORT, "0123456789abcdef"[n % base]);
}

static void put_hex(const char *label, uint64_t n)
{
    put(label);
    put("0x");
    put_number(n, 16);
}

void check(const char *name, uint64_t got, uint64_t want)
{
    bool ok = got == want;

    checks++;
    failures += !ok;
    put(ok ? "ok " : "not ok ");
    put(name);
    if (!ok) {
        put_hex(": got ", got);
        put_hex(" want ", want);
    }
    put("\n");
}

void note(const char *text)
{
    put("# ");
    put(text);
    put("\n");
}

static void __attribute__((noreturn)) finish(void)
{
    put("# ");
    put_number(checks, 10);
    put(" checks, ");
    put_number(failures, 10);
    put(" failed\n");
    for (;;) {
        outb(DEBUG_EXIT_PORT, failures ? EXIT_FAIL : EXIT_PASS);
    }
}

static volatile uint32_t *apic(unsigned reg)
{
    return (volatile uint32_t *)(uintptr_t)(APIC_BASE + reg);
}

void apic_eoi(void)
{
    if (x2apic) {
        wrmsr(MSR_X2APIC_EOI, 0);
    } else {
        *apic(APIC_EOI) = 0;
    }
}

void apic_enter_x2apic(void)
{
    wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | APIC_BASE_X2APIC);
    x2apic = true;
}

bool apic_in_service(uint8_t vector)
{
    return *apic(APIC_ISR + vector / 32 * 16) >> (vector % 32) & 1;
}

void apic_send_self(uint8_t vector)
{
    *apic(APIC_ICR) = ICR_SELF | vector;
}

void trap(TrapFrame *frame)
{
    if (frame->vector >= FIRST_INTERRUPT) {
        interrupts[frame->vector]++;
        if (eoi_at_once) {
            apic_eoi();
        }
        return;
    }
    for (const Fixup *fixup = fixups; fixup < fixups_end; fixup++) {
        if (fixup->fault == frame->rip) {
            frame->r11 = frame->vector;
            frame->rip = fixup->resume;
            return;
        }
    }
    put_hex("# at ", frame->rip);
    put("\n");
    check("no exception", frame->vector, NO_FAULT);
    finish();
}

static void init_cpu(void)
{
    struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } pointer = { sizeof(idt) - 1, (uintptr_t)idt };

    asm volatile("lidt %0" : : "m"(pointer));
    *apic(APIC_SVR) = APIC_ENABLE;
    *apic(APIC_TPR) = 0;
}

void boot_main(void)
{
    for (unsigned i = 0; i < 256; i++) {
        uint64_t stub = (uintptr_t)trap_stubs + 16 * i;

        idt[i] = (Gate) {
            .offset_low = stub,
            .selector = 0x08,
            .attributes = 0x8e00,
            .offset_mid = stub >> 16,
            .offset_high = stub >> 32,
        };
    }
    /* no interrupt of the 8259s */
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    init_cpu();
    test();
    finish();
}

void ap_main(void)
{
    init_cpu();
    ap_running = true;
    for (;;) {
        while (!job) {
            asm volatile("pause");
        }
        job_result = job(job_argument);
        job = 0;
    }
}

void start_ap(void)
{
    memcpy((void *)AP_START, ap_trampoline, ap_trampoline_end - ap_trampoline);
    ap_running = false;
    *apic(APIC_ICR_HIGH) = AP_ID << 24;
    *apic(APIC_ICR) = ICR_INIT;
    settle();
    *apic(APIC_ICR) = ICR_STARTUP | AP_START >> 12;
    WAIT_FOR(ap_running);
}

uint64_t on_ap(uint64_t (*function)(uint32_t), uint32_t argument)
{
    job_argument = argument;
    job = function;
    /* an interrupt that is meant for the other must not be taken here */
    while (job) {
        asm volatile("pause");
    }
    return job_result;
}
