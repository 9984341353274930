// SPDX-License-Identifier: GPL-2.0
/*
 * The mapped rings: takes events out, in the order of their numbers.
 * cbt_events.h says how the module and its one reader share them.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cbtctl.h"

static struct cbt_info info;
static struct cbt_tail *tails;
static const struct cbt_rings *rings;
static const struct cbt_ring *ring;	/* info.rings of them */
static const struct cbt_event *slots;	/* info.ring_room of them a ring */
static __u64 *ends;			/* how far rings_take() came in each */

static __u64 acquire(const __u64 *value)
{
	return __atomic_load_n(value, __ATOMIC_ACQUIRE);
}

void rings_open(void)
{
	__u8 generation[CBT_ID_BYTES];
	void *map;

	module_call(CBT_IOC_INFO, &info, "info");
	memcpy(generation, info.generation, sizeof(generation));
	map = mmap(NULL, info.tails_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, module_fd,
		   CBT_MAP_TAILS);
	if (map == MAP_FAILED && errno == EBUSY)
		fail(CBT_DEVICE ": another program reads the events");
	if (map == MAP_FAILED)
		refused("events", errno);
	tails = map;
	map = mmap(NULL, info.rings_bytes, PROT_READ, MAP_SHARED, module_fd, CBT_MAP_RINGS);
	if (map == MAP_FAILED)
		refused("events", errno);
	rings = map;
	ring = (const void *)(rings + 1);
	slots = (const void *)((const char *)map + info.slots_offset);
	ends = calloc(info.rings, sizeof(*ends));
	if (!ends)
		fail_errno("events");
	/* From now on they cannot be set anew, but until now they could. */
	module_call(CBT_IOC_INFO, &info, "info");
	if (memcmp(generation, info.generation, sizeof(generation)))
		fail("events: the rings were set anew meanwhile");
}

static const struct cbt_event *slot(__u32 r, __u64 n)
{
	return &slots[(__u64)r * info.ring_room + n % info.ring_room];
}

/* All events below it are in the rings, or were dropped. */
static __u64 watermark(void)
{
	__u64 below = acquire(&rings->next_seq);
	__u32 r;

	for (r = 0; r < info.rings; r++) {
		__u64 pending = acquire(&ring[r].pending);

		if (pending && pending < below)
			below = pending;
	}
	return below;
}

/* The lowest number that waits in a ring, or @below if none is lower. */
static __u64 lowest(__u64 below)
{
	__u32 r;

	for (r = 0; r < info.rings; r++) {
		__u64 tail = tails[r].tail;

		if (tail != acquire(&ring[r].head) && slot(r, tail)->seq < below)
			below = slot(r, tail)->seq;
	}
	return below;
}

static int by_seq(const void *a, const void *b)
{
	const struct cbt_event *left = a, *right = b;

	return left->seq < right->seq ? -1 : left->seq > right->seq;
}

/*
 * Copies the events with the lowest numbers, all below @below and within a span
 * of @room numbers, in rising order.  Returns how many; all events below
 * @reached have been taken.  They wait in the rings until rings_taken() says
 * that they are saved.
 */
size_t rings_take(struct cbt_event *events, size_t room, __u64 below, __u64 *reached)
{
	__u64 mark = watermark();
	size_t count = 0;
	__u64 base;
	__u32 r;

	if (below > mark)
		below = mark;
	base = lowest(below);
	if (below - base > room)
		below = base + room;
	for (r = 0; r < info.rings; r++) {
		__u64 head = acquire(&ring[r].head);
		__u64 tail = tails[r].tail;

		while (tail != head && count < room && slot(r, tail)->seq < below)
			events[count++] = *slot(r, tail++);
		ends[r] = tail;
	}
	qsort(events, count, sizeof(*events), by_seq);
	*reached = below;
	return count;
}

/* What rings_take() copied last is saved: its room may be used again. */
void rings_taken(void)
{
	__u32 r;

	for (r = 0; r < info.rings; r++)
		__atomic_store_n(&tails[r].tail, ends[r], __ATOMIC_RELEASE);
}

__u64 rings_next_seq(void)
{
	return acquire(&rings->next_seq);
}

/* The lowest number that a reader who begins now can get. */
__u64 rings_first_seq(void)
{
	return lowest(watermark());
}

/* Events taken since the sequence began, by all readers. */
__u64 rings_all_taken(void)
{
	__u64 taken = 0;
	__u32 r;

	for (r = 0; r < info.rings; r++)
		taken += tails[r].tail;
	return taken;
}
