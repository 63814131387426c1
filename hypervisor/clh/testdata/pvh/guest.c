/* Copyright The coco Authors. SPDX-License-Identifier: Apache-2.0
 *
 * A guest for the tests with a real Cloud Hypervisor. Its command line says what it does: "act=serve"
 * greets and echoes on vsock port 1024, refuses other ports and lets go of devices as it is asked;
 * "act=off", "act=reset", "act=triple" and "act=panic" end in that way. Constants are those of the VMM's
 * ACPI tables, of the virtio specification 1.2 (2.7, 4.1.4, 5.10) and of the PCI local bus.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum {
	serial_port = 0x3f8, pci_address = 0xcf8, pci_data = 0xcfc,
	acpi_sleep = 0x600, sleep_s5 = 0x34, /* sleep control: enable, type 5 */
	acpi_reset = 0x600, reset_value = 1, /* Cloud Hypervisor's reset register is the same port */
	pci_slots = 32, vsock_id = 0x10531af4, pvpanic_id = 0x00111b36,
	page = 2 << 20,
};

struct start_info {
	u32 magic, version, flags, modules;
	u64 module_list, cmdline, rsdp;
};

static void out8(u16 port, u8 v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static void out32(u16 port, u32 v) { __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port)); }

static u32 in32(u16 port)
{
	u32 v;
	__asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

static void barrier(void) { __asm__ volatile("mfence" : : : "memory"); }

static void print(const char *s)
{
	for (; *s; s++)
		out8(serial_port, *s);
}

static u32 pci_read(int slot, int reg)
{
	out32(pci_address, 0x80000000u | slot << 11 | (reg & ~3));
	return in32(pci_data);
}

static void pci_write(int slot, int reg, u32 v)
{
	out32(pci_address, 0x80000000u | slot << 11 | (reg & ~3));
	out32(pci_data, v);
}

static int pci_find(u32 id)
{
	for (int slot = 0; slot < pci_slots; slot++)
		if (pci_read(slot, 0) == id)
			return slot;
	return -1;
}

static u64 pci_bar(int slot, int n)
{
	u32 low = pci_read(slot, 0x10 + 4 * n);
	u64 at = low & ~15u;
	if ((low & 6) == 4)
		at |= (u64)pci_read(slot, 0x14 + 4 * n) << 32;
	return at;
}

/* map makes 2 MiB around a physical address readable, in the window at 3 GiB. */
extern u64 window[512];

static volatile u8 *map(u64 physical)
{
	static int used;
	int n = used++;
	window[n] = (physical & ~(u64)(page - 1)) | 0x93; /* present, writable, not cached, 2 MiB */
	__asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" : : : "rax", "memory");
	return (volatile u8 *)(0xc0000000ull + (u64)n * page + (physical & (page - 1)));
}

static int same(const u8 *a, const char *b, u32 n)
{
	while (n--)
		if (a[n] != (u8)b[n])
			return 0;
	return 1;
}

/* hotplug_registers finds the operation region PCST in the DSDT: five bytes of opcode, name and space,
 * then its address as a dword or qword constant. 0: there is none. */
static u64 hotplug_registers(u64 rsdp)
{
	const u8 *xsdt = (const u8 *)*(u64 *)(rsdp + 24);
	for (u32 at = 36; at < *(u32 *)(xsdt + 4); at += 8) {
		const u8 *fadt = (const u8 *)*(u64 *)(xsdt + at);
		if (!same(fadt, "FACP", 4))
			continue;
		const u8 *dsdt = (const u8 *)*(u64 *)(fadt + 140);
		u32 length = *(u32 *)(dsdt + 4);
		for (u32 i = 0; i + 16 < length; i++) {
			if (!same(dsdt + i, "PCST", 4))
				continue;
			if (dsdt[i + 5] == 0x0e)
				return *(u64 *)(dsdt + i + 6);
			if (dsdt[i + 5] == 0x0c)
				return *(u32 *)(dsdt + i + 6);
		}
	}
	return 0;
}

/* One split queue. All memory below 1 GiB is mapped as it is, so addresses are physical. */
enum { queue_size = 16, packet_size = 4096 };

struct queue {
	struct { u64 address; u32 length; u16 flags, next; } __attribute__((packed)) table[queue_size];
	struct { u16 flags, index, ring[queue_size]; } available;
	struct { u16 flags, index; struct { u32 id, length; } ring[queue_size]; } used __attribute__((aligned(4096)));
} __attribute__((aligned(4096)));

struct packet {
	u64 from_cid, to_cid;
	u32 from_port, to_port, length;
	u16 type, op;
	u32 flags, room, forwarded;
	u8 data[packet_size - 44];
} __attribute__((packed));

enum { op_request = 1, op_response, op_reset, op_shutdown, op_data, op_credit, op_credit_request };

static volatile struct queue receive, transmit, events;
static struct packet received[queue_size], sent[queue_size];
static volatile u16 *doorbell[3];
static u32 forwarded;

static void set_queue(volatile u8 *common, volatile u8 *notify, u32 multiplier, u16 n, volatile struct queue *q)
{
	*(volatile u16 *)(common + 22) = n;
	*(volatile u16 *)(common + 24) = queue_size;
	*(volatile u64 *)(common + 32) = (u64)q->table;
	*(volatile u64 *)(common + 40) = (u64)&q->available;
	*(volatile u64 *)(common + 48) = (u64)&q->used;
	doorbell[n] = (volatile u16 *)(notify + *(volatile u16 *)(common + 30) * multiplier);
	*(volatile u16 *)(common + 28) = 1;
}

static int vsock_start(void)
{
	int slot = pci_find(vsock_id);
	if (slot < 0)
		return 0;
	pci_write(slot, 4, pci_read(slot, 4) | 6); /* memory, bus master */
	volatile u8 *bar = map(pci_bar(slot, 0)), *common = 0, *notify = 0;
	u32 multiplier = 0;
	for (u32 at = pci_read(slot, 0x34) & 0xff; at;) {
		u32 head = pci_read(slot, at);
		volatile u8 *place = bar + pci_read(slot, at + 8);
		if ((head & 0xff) == 9 && head >> 24 == 1)
			common = place;
		if ((head & 0xff) == 9 && head >> 24 == 2) {
			notify = place;
			multiplier = pci_read(slot, at + 16);
		}
		at = head >> 8 & 0xff;
	}
	if (!common || !notify)
		return 0;
	common[20] = 0; /* reset, acknowledge, driver */
	common[20] = 1;
	common[20] = 3;
	*(volatile u32 *)(common + 8) = 0; /* of the features only VIRTIO_F_VERSION_1 */
	*(volatile u32 *)(common + 12) = 0;
	*(volatile u32 *)(common + 8) = 1;
	*(volatile u32 *)(common + 12) = 1;
	common[20] = 11;
	set_queue(common, notify, multiplier, 0, &receive);
	set_queue(common, notify, multiplier, 1, &transmit);
	set_queue(common, notify, multiplier, 2, &events);
	for (u16 i = 0; i < queue_size; i++) {
		receive.table[i].address = (u64)&received[i];
		receive.table[i].length = packet_size;
		receive.table[i].flags = 2; /* the device writes */
		receive.available.ring[i] = i;
	}
	barrier();
	receive.available.index = queue_size;
	common[20] = 15; /* driver ok */
	barrier();
	*doorbell[0] = 0;
	return 1;
}

static void answer(const struct packet *to, u16 op, const u8 *data, u32 length)
{
	u16 i = transmit.available.index % queue_size;
	struct packet *p = &sent[i];
	*p = (struct packet){ .from_cid = to->to_cid, .to_cid = to->from_cid, .from_port = to->to_port, .to_port = to->from_port,
		.length = length, .type = 1, .op = op, .room = 65536, .forwarded = forwarded };
	for (u32 k = 0; k < length; k++)
		p->data[k] = data[k];
	transmit.table[i].address = (u64)p;
	transmit.table[i].length = 44 + length;
	transmit.available.ring[i] = i;
	barrier();
	transmit.available.index++;
	barrier();
	*doorbell[1] = 1;
}

static void obey(const struct packet *p)
{
	switch (p->op) {
	case op_request:
		if (p->to_port != 1024) {
			answer(p, op_reset, 0, 0);
			return;
		}
		forwarded = 0;
		answer(p, op_response, 0, 0);
		answer(p, op_data, (const u8 *)"hello\n", 6);
		return;
	case op_data:
		forwarded += p->length;
		answer(p, op_data, p->data, p->length);
		return;
	case op_shutdown:
		answer(p, op_reset, 0, 0);
		return;
	case op_credit_request:
		answer(p, op_credit, 0, 0);
	}
}

static void vsock_poll(void)
{
	static u16 seen;
	for (; seen != receive.used.index; seen++) {
		u16 id = receive.used.ring[seen % queue_size].id;
		obey(&received[id]);
		receive.available.ring[receive.available.index % queue_size] = id;
		barrier();
		receive.available.index++;
		barrier();
		*doorbell[0] = 0;
	}
}

static void serve(u64 rsdp)
{
	u64 at = hotplug_registers(rsdp);
	volatile u32 *hotplug = at ? (volatile u32 *)map(at) : 0;
	if (!vsock_start())
		print("no vsock device\n");
	for (;;) {
		vsock_poll();
		if (!hotplug)
			continue;
		hotplug[3] = 0; /* the first segment */
		u32 come = hotplug[0], leaving = hotplug[1];
		(void)come; /* reading it is the acknowledgement */
		if (leaving)
			hotplug[2] = leaving;
	}
}

static void triple_fault(void)
{
	static const struct { u16 limit; u64 base; } __attribute__((packed)) none;
	__asm__ volatile("lidt %0; int3" : : "m"(none));
}

static void panic(void)
{
	int slot = pci_find(pvpanic_id);
	print("Kernel panic - not syncing: the command line says so\n");
	if (slot < 0)
		return;
	pci_write(slot, 4, pci_read(slot, 4) | 2);
	*map(pci_bar(slot, 0)) = 1; /* panicked */
	out8(acpi_reset, reset_value);
}

void run(const struct start_info *info)
{
	static const struct { const char *name; void (*act)(void); } ends[] = { { "act=triple", triple_fault }, { "act=panic", panic } };
	const u8 *line = (const u8 *)info->cmdline;
	u32 length = 0;
	while (line[length])
		length++;
	print("guest: up\n");
	for (u32 i = 0; i < length; i++) {
		if (i + 9 <= length && same(line + i, "act=serve", 9))
			serve(info->rsdp);
		if (i + 7 <= length && same(line + i, "act=off", 7))
			out8(acpi_sleep, sleep_s5);
		if (i + 9 <= length && same(line + i, "act=reset", 9))
			out8(acpi_reset, reset_value);
		for (u32 k = 0; k < sizeof ends / sizeof *ends; k++)
			if (i + 9 <= length && same(line + i, ends[k].name, 9))
				ends[k].act();
	}
	print("guest: nothing more to do\n");
}
