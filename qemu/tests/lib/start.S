/*
 * Bare-metal guests: from PVH's entry to C in long mode, a second vCPU, traps
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#define XEN_ELFNOTE_PHYS32_ENTRY 18

#define CODE64 0x08
#define DATA   0x10
#define CODE32 0x18

#define CR0_PE    (1 << 0)
#define CR0_PG    (1 << 31)
#define CR4_PAE   (1 << 5)
#define MSR_EFER  0xc0000080
#define EFER_LME  (1 << 8)

#define PAGE_TABLE 0x03 /* present, writable */
#define PAGE_2M    0x83

#define STACK_SIZE 65536

    .section .note, "a", @note
    .long 4, 8, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad boot_entry

/* Both vCPUs come here in flat 32-bit mode, without paging. */
.macro long_mode stack, main
    .code32
    cli
    mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %cr4, %eax
    or $CR4_PAE, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $EFER_LME, %eax
    wrmsr
    mov %cr0, %eax
    or $(CR0_PG | CR0_PE), %eax
    mov %eax, %cr0
    ljmp $CODE64, $1f
    .code64
1:  mov $\stack, %rsp
    call \main
2:  hlt
    jmp 2b
.endm

    .text
    .global boot_entry
    .code32
boot_entry:
    lgdt gdt_pointer
    ljmp $CODE32, $1f
1:  long_mode boot_stack_end, boot_main

    .code32
ap_entry:
    long_mode ap_stack_end, ap_main

/* In real mode; copied to where SIPI starts the vCPU (AP_START in guest.c). */
    .global ap_trampoline, ap_trampoline_end
    .code16
ap_trampoline:
    cli
    mov %cs, %ax
    mov %ax, %ds
    lgdtl ap_gdt_pointer - ap_trampoline
    mov %cr0, %eax
    or $CR0_PE, %eax
    mov %eax, %cr0
    ljmpl $CODE32, $ap_entry
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
ap_trampoline_end:

/* Entry n of the IDT is trap_stubs + 16 * n. */
    .global trap_stubs
    .code64
    .balign 16
trap_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17)
    push $0 /* in the place of an error code */
    .endif
    push $vector
    jmp trap_common
    .set vector, vector + 1
    .endr

trap_common:
    push %rax
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    mov %rsp, %rdi
    call trap
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq

    .data
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cf9b000000ffff
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

/* The first 4 GiB, mapped one to one. */
    .balign 4096
pml4:
    .quad pdpt + PAGE_TABLE
    .fill 511, 8, 0
pdpt:
    .quad page_directories + 0x0000 + PAGE_TABLE
    .quad page_directories + 0x1000 + PAGE_TABLE
    .quad page_directories + 0x2000 + PAGE_TABLE
    .quad page_directories + 0x3000 + PAGE_TABLE
    .fill 508, 8, 0
page_directories:
    .set page, 0
    .rept 4 * 512
    .quad page + PAGE_2M
    .set page, page + 0x200000
    .endr

    .bss
    .balign 16
    .skip STACK_SIZE
boot_stack_end:
    .skip STACK_SIZE
ap_stack_end:

    .section .note.GNU-stack, "", @progbits
