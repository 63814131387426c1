/* Copyright The coco Authors. SPDX-License-Identifier: Apache-2.0
 *
 * The entry of a PVH guest: the VMM jumps here in 32-bit mode without paging, with the address of the
 * start information in %ebx. Paging comes with 64-bit mode only: where KVM is nested thinly, 32-bit
 * paging does not work. The first GiB is mapped as it is; the table "window" maps devices at 3 GiB.
 */
	.section .note.Xen, "a", @note
	.long 4, 4, 18			/* name's length, descriptor's length, XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long start

	.text
	.code32
	.globl start
start:	cli
	mov $stack_end, %esp
	mov %ebx, %edi			/* first argument of run */

	movl $level3 + 3, level4	/* present, writable */
	movl $level2 + 3, level3
	movl $window + 3, level3 + 3 * 8
	xor %ecx, %ecx
1:	mov %ecx, %eax			/* 512 pages of 2 MiB */
	shl $21, %eax
	or $0x83, %eax
	mov %eax, level2(, %ecx, 8)
	inc %ecx
	cmp $512, %ecx
	jne 1b

	mov %cr4, %eax
	or $0x20, %eax			/* PAE */
	mov %eax, %cr4
	mov $level4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx		/* EFER */
	rdmsr
	or $0x100, %eax			/* LME */
	wrmsr
	mov %cr0, %eax
	or $0x80000001, %eax		/* PG, PE */
	mov %eax, %cr0
	lgdt descriptor
	ljmp $8, $wide

	.code64
wide:	mov $16, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $stack_end, %rsp
	mov %edi, %edi			/* the upper half is undefined */
	call run
1:	hlt
	jmp 1b

	.data
	.align 8
table:	.quad 0
	.quad 0x00af9b000000ffff	/* code, 64 bits */
	.quad 0x00cf93000000ffff	/* data */
descriptor:
	.word 23
	.long table

	.bss
	.align 4096
	.globl window
level4:	.skip 4096
level3:	.skip 4096
level2:	.skip 4096
window:	.skip 4096
stack:	.skip 16384
stack_end:
	.section .note.GNU-stack, "", @progbits
