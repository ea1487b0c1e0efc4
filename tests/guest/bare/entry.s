# Entry, descriptor tables, page tables and everything that runs in ring 0.
#
# The program proper runs in ring 3, at full speed on every kind of KVM. Ring 0
# is entered by exceptions only, and does as little as possible there, because
# some hosts emulate it instruction by instruction: plain moves, MSR writes,
# `sti`, `hlt` and `iretq`, nothing else.
#
# Two ways in, one program:
#   ring3_entry  64-bit, ring 3, all registers loaded by the VMM ("Ballast" note);
#                all vCPUs come this way, each with its number in rsi
#   pvh_entry    32-bit, ring 0, paging off (Xen PVH note, e.g. qemu -kernel)
# Both have the physical address of a `hvm_start_info`: in rdi and in ebx.

    .set RING0_CODE, 0x08
    .set RING0_DATA, 0x10
    .set RING3_DATA, 0x1b
    .set RING3_CODE, 0x23
    .set TSS_SELECTOR, 0x28
    .set TIMER_VECTOR, 0x20

    .set VCPUS_MAX, 32                  # as in others.rs
    .set IO_BITMAP, 104
    .set TSS_BYTES, IO_BITMAP + 0x3f8 / 8 + 2
    .set TSS_STRIDE, 256
    .set RING0_STACK_BYTES, 512         # two frames are all that is ever there
    .set OTHER_STACK_BYTES, 4096

    .section .stub, "ax", @progbits
    .globl stub_base
stub_base:

# ---- descriptor tables ------------------------------------------------------

    .balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff            # 0x08 ring 0 code, 64-bit
    .quad 0x00cf93000000ffff            # 0x10 ring 0 data
    .quad 0x00cff3000000ffff            # 0x18 ring 3 data
    .quad 0x00affb000000ffff            # 0x20 ring 3 code, 64-bit
    .short TSS_BYTES - 1                # 0x28 TSS of vCPU 0, two slots
    .short tss - stub_base
    .byte 0x10, 0x89, 0, 0
    .quad 0
gdt_end:

    # One for each vCPU. Ring 3 reaches COM1 through the I/O bitmap, not through
    # IOPL: some hosts drop IOPL at the first iretq.
    .set n, 0
    .rept VCPUS_MAX
    .balign TSS_STRIDE
    .if n == 0
tss:
    .endif
    .long 0
    .quad ring0_stacks + (n + 1) * RING0_STACK_BYTES
    .fill 90, 1, 0
    .short IO_BITMAP
    .fill 0x3f8 / 8, 1, 0xff
    .byte 0                             # ports 0x3f8 to 0x3ff
    .byte 0xff
    .set n, n + 1
    .endr

    # Interrupt gates to ring 0; the offset is 0x100000 + (handler - stub_base).
    .macro gate handler
    .short \handler - stub_base, RING0_CODE
    .byte 0, 0x8e
    .short 0x10
    .quad 0
    .endm

    .altmacro
    .macro exception_gate number
    gate exception_\number
    .endm
    .balign 16
idt:
    .set n, 0
    .rept 32
    .if n == 6
    gate invalid_opcode
    .else
    exception_gate %n
    .endif
    .set n, n + 1
    .endr
    gate timer
idt_end:

gdt_pointer:
    .short gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .short idt_end - idt - 1
    .quad idt

# ---- PVH: from 32-bit ring 0 to ring 3 --------------------------------------

    .code32
    .globl pvh_entry
pvh_entry:
    cli
    movb $0xff, %al                     # firmware leaves the old PICs with a ticking timer
    outb %al, $0x21
    outb %al, $0xa1
    lgdt gdt_pointer
    movl $0x620, %eax                   # OSXMMEXCPT, OSFXSR, PAE
    movl %eax, %cr4
    movl $page_tables, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx              # EFER
    rdmsr
    orl $0x100, %eax                    # LME
    wrmsr
    movl $0x80050033, %eax              # PG, AM, WP, NE, ET, MP, PE
    movl %eax, %cr0
    ljmp $RING0_CODE, $long_mode

    .code64
long_mode:
    movl $RING0_DATA, %eax
    movl %eax, %ss
    movq $(ring0_stacks + RING0_STACK_BYTES), %rsp
    movl $RING3_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    lidt idt_pointer
    movl $TSS_SELECTOR, %eax
    ltr %ax
    movl %ebx, %edi
    xorl %esi, %esi
    pushq $RING3_DATA
    pushq $0
    pushq $2                            # flags: interrupts off
    pushq $RING3_CODE
    pushq $ring3_entry
    iretq

# ---- ring 3 -----------------------------------------------------------------

ring3_entry:
    xorl %ebp, %ebp
    testl %esi, %esi
    jnz other_vcpu
    movq $ring3_stack_top, %rsp
    call guest_main
    ud2
other_vcpu:
    movl %esi, %edi
    imull $OTHER_STACK_BYTES, %esi
    leaq other_stacks(%rsi), %rsp       # its end: vCPU 0 has none of them
    call guest_other
    ud2

# hypercall(operation: edi, argument: esi): the one `ud2` that is a request.
    .globl hypercall
hypercall:
    movl %edi, %eax
hypercall_instruction:
    ud2
    ret

# Where any other exception ends: in ring 3, on a fresh stack.
exception_in_ring3:
    movq $fault_stack_top, %rsp
    call guest_exception
    ud2

# ---- ring 0 -----------------------------------------------------------------

# eax: 0 sets up the timer, 1 sleeps until the timer fires once, esi
# nanoseconds from now. Clobbers eax, ecx, edx.
invalid_opcode:
    cmpq $hypercall_instruction, (%rsp)
    jne exception_6
    addq $2, (%rsp)
    xorl %edx, %edx
    cmpl $1, %eax
    je sleep

    movl $0x1b, %ecx                    # IA32_APIC_BASE
    rdmsr
    orl $0xc00, %eax                    # enabled, x2APIC
    wrmsr
    xorl %edx, %edx
    movl $0x80f, %ecx                   # spurious vector, APIC on
    movl $0x1ff, %eax
    wrmsr
    movl $0x835, %ecx                   # LINT0 masked: nothing from the old PIC
    movl $0x10000, %eax
    wrmsr
    movl $0x83e, %ecx                   # timer divides by 1
    movl $0xb, %eax
    wrmsr
    movl $0x832, %ecx                   # timer periodic: one lost tick is not the last
    movl $(0x20000 + TIMER_VECTOR), %eax
    wrmsr
    iretq

sleep:
    movl $0x838, %ecx                   # initial count, restarts the timer
    movl %esi, %eax
    wrmsr
    sti
    hlt
    jmp sleep                           # not reached: `timer` leaves for ring 3

# Interrupts are on in `sleep` only: back to the stack it had, and out to ring 3.
timer:
    movl $0x80b, %ecx                   # end of interrupt
    xorl %eax, %eax
    xorl %edx, %edx
    wrmsr
    movq 24(%rsp), %rsp
    iretq

    .macro exception number
exception_\number:
    .if (\number == 8) || ((\number >= 10) && (\number <= 14)) || (\number == 17) || (\number == 21)
    .else
    pushq $0
    .endif
    pushq $\number
    jmp exception_common
    .endm
    .set n, 0
    .rept 32
    exception %n
    .set n, n + 1
    .endr

exception_common:
    popq %rdi                           # vector
    popq %rsi                           # error code
    movq (%rsp), %rdx                   # instruction
    movq %cr2, %rcx                     # address
    movq $exception_in_ring3, (%rsp)
    movq $RING3_CODE, 8(%rsp)
    movq $2, 16(%rsp)
    movq $RING3_DATA, 32(%rsp)
    iretq
    .noaltmacro
    .globl stub_end
stub_end:

# ---- page tables: the first 5 GiB, one to one, 2 MiB pages, open to ring 3 --

    .section .pagetables, "aw", @progbits
page_tables:
    .quad page_directories_pointer + 0x27
    .fill 511, 8, 0
page_directories_pointer:
    .quad page_directories + 0x27
    .quad page_directories + 0x1027
    .quad page_directories + 0x2027
    .quad page_directories + 0x3027
    .quad page_directories + 0x4027
    .fill 507, 8, 0
page_directories:
    .set n, 0
    .rept 1536
    .quad n * 0x200000 + 0xe7           # present, writable, user, accessed, dirty, large
    .set n, n + 1
    .endr
    .rept 512                           # the fourth GiB has devices: not cached, either
    .quad n * 0x200000 + 0xff
    .set n, n + 1
    .endr
    .rept 512
    .quad n * 0x200000 + 0xe7
    .set n, n + 1
    .endr

    .section .bss.stacks, "aw", @nobits
    .balign 4096
ring0_stacks:
    .skip VCPUS_MAX * RING0_STACK_BYTES
    .skip 8192
fault_stack_top:
    .skip 65536
ring3_stack_top:
other_stacks:
    .skip (VCPUS_MAX - 1) * OTHER_STACK_BYTES

# ---- notes ------------------------------------------------------------------

    .section .note.guest, "a", @note
    .balign 4
    .long 4, 8, 18                      # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry
    .long 8, 88, 1                      # ring-3 boot contract, see docs/probe-guest.md
    .asciz "Ballast"
    .quad 2                             # version
    .quad ring3_entry
    .quad page_tables
    .quad gdt, gdt_end - gdt - 1
    .quad idt, idt_end - idt - 1
    .quad tss, TSS_BYTES - 1
    .quad TSS_STRIDE, VCPUS_MAX
