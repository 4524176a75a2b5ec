/*
 * Bare-metal guests: what a test has of the machine
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stdint.h>

#define PAGE_SIZE 4096
#define PAGE_ALIGNED __attribute__((aligned(PAGE_SIZE)))
#define ENABLED(page) ((uintptr_t)(page) | 1)

/* What a try_*() returns. */
enum {
    NO_FAULT = 0,
    FAULT_UD = 6,
    FAULT_GP = 13,
};

/* Each image is one test; it returns after its last check. */
void test(void);

/* Print "ok NAME", or "not ok NAME: got G want W". */
void check(const char *name, uint64_t got, uint64_t want);
/* Print a line that is no result. */
void note(const char *text);

static inline void outb(uint16_t port, uint8_t val)
{
    asm volatile("outb %0, %1" : : "a"(val), "Nd"(port) : "memory");
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t val;

    asm volatile("inb %1, %0" : "=a"(val) : "Nd"(port) : "memory");
    return val;
}

static inline void outl(uint16_t port, uint32_t val)
{
    asm volatile("outl %0, %1" : : "a"(val), "Nd"(port) : "memory");
}

typedef struct Cpuid {
    uint32_t eax, ebx, ecx, edx;
} Cpuid;

static inline Cpuid cpuid(uint32_t leaf)
{
    Cpuid r;

    asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
                 : "a"(leaf), "c"(0));
    return r;
}

/* An instruction that may fault: its vector is left in R11. */
#define GUARDED(instruction)            \
    "1: " instruction "\n"              \
    "2:\n"                              \
    ".pushsection .fixups, \"a\"\n"     \
    ".quad 1b, 2b\n"                    \
    ".popsection\n"

static inline uint64_t try_wrmsr(uint32_t msr, uint64_t val)
{
    register uint64_t fault asm("r11") = NO_FAULT;

    asm volatile(GUARDED("wrmsr") : "+r"(fault)
                 : "c"(msr), "a"((uint32_t)val), "d"((uint32_t)(val >> 32))
                 : "memory");
    return fault;
}

static inline uint64_t try_rdmsr(uint32_t msr)
{
    register uint64_t fault asm("r11") = NO_FAULT;
    uint32_t low, high;

    asm volatile(GUARDED("rdmsr") : "+r"(fault), "=a"(low), "=d"(high)
                 : "c"(msr) : "memory");
    return fault;
}

static inline uint64_t try_vmmcall(uint64_t input, uint64_t param)
{
    register uint64_t fault asm("r11") = NO_FAULT;
    uint64_t result;

    asm volatile(GUARDED("vmmcall") : "+r"(fault), "=a"(result)
                 : "c"(input), "d"(param) : "r8", "memory");
    return fault;
}

/* These end the test when they fault. */
static inline void wrmsr(uint32_t msr, uint64_t val)
{
    asm volatile("wrmsr" : : "c"(msr), "a"((uint32_t)val),
                 "d"((uint32_t)(val >> 32)) : "memory");
}

static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t low, high;

    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr) : "memory");
    return (uint64_t)high << 32 | low;
}

/* Interrupts are only taken in here. */
static inline void take_interrupts(void)
{
    asm volatile("sti; nop; nop; cli; pause" : : : "memory");
    outb(0x80, 0); /* lets QEMU's main loop at its lock */
}

/* For what must not happen: enough for whatever is on its way to arrive. */
static inline void settle(void)
{
    for (int i = 0; i < 2000; i++) {
        take_interrupts();
    }
}

/* There is no time limit but the one on the whole run. */
#define WAIT_FOR(condition)                                 \
    for (uint64_t _spins = 0; !(condition); _spins++) {     \
        if (_spins == 1 << 22) {                            \
            note("still waiting for " #condition);          \
        }                                                   \
        take_interrupts();                                  \
    }

/* How often each vector was taken, on any vCPU. */
extern volatile uint32_t interrupts[256];
/* Whether an interrupt is acknowledged as it is taken. */
extern volatile bool eoi_at_once;

void apic_eoi(void);
bool apic_in_service(uint8_t vector);
void apic_send_self(uint8_t vector);
/* For good, on the calling vCPU, which must not start others any more. */
void apic_enter_x2apic(void);

/* Start, or start again, the vCPU whose APIC id is 1. */
void start_ap(void);
/* Call a function on it. */
uint64_t on_ap(uint64_t (*function)(uint32_t), uint32_t argument);

#endif
