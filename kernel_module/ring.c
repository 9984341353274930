// SPDX-License-Identifier: GPL-2.0
/*
 * The rings: made, counted, mapped and polled.  See ring.h for how events get
 * in.
 */
#include <linux/cpumask.h>
#include <linux/fs.h>
#include <linux/ktime.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/smp.h>
#include <linux/stop_machine.h>
#include <linux/vmalloc.h>
#include <linux/wait.h>

#include "module.h"

#define RING_MIN 16
#define RING_MAX 0x1000000
#define QUIET_TRIES 64

struct cbt_ring_state cbt_rings = {
	.lock = __MUTEX_INITIALIZER(cbt_rings.lock),
	.wait = __WAIT_QUEUE_HEAD_INITIALIZER(cbt_rings.wait),
};

/* What waits in a ring; a full one if its reader's tail makes no sense. */
static u32 used(unsigned int cpu, u64 head)
{
	u64 count = head - READ_ONCE(cbt_rings.tails[cpu].tail);

	return min_t(u64, count, cbt_rings.room);
}

/* By begin, for want of room. */
void cbt_ring_drop(struct cbt_ring *ring, u64 seq)
{
	if (!ring->dropped)
		WRITE_ONCE(ring->first_dropped, seq);
	WRITE_ONCE(ring->last_dropped, seq);
	WRITE_ONCE(ring->dropped, ring->dropped + 1);
	/* Whoever sees no pending sees the drop. */
	smp_store_release(&ring->pending, 0);
}

/* The instant of a switch, in both orders. */
u64 cbt_ring_next_seq(u64 *time_ns)
{
	*time_ns = ktime_get_ns();
	return atomic64_read(cbt_ring_counter());
}

/* ---- making and counting ---- */

static void forget(struct cbt_shared *shared, struct cbt_tail *tails)
{
	vfree(shared);
	vfree(tails);
}

/* Under the tracker lock, while no tracker is attached: begins a new sequence. */
int cbt_ring_set(u64 events, struct cbt_why *why)
{
	u64 slots_offset = PAGE_ALIGN(sizeof(struct cbt_shared) +
				      nr_cpu_ids * sizeof(struct cbt_ring));
	u64 tails_bytes = PAGE_ALIGN(nr_cpu_ids * sizeof(struct cbt_tail));
	u8 generation[CBT_ID_BYTES];
	struct cbt_shared *shared = NULL;
	struct cbt_tail *tails = NULL;
	u64 room, bytes;
	int err;

	if (events < RING_MIN || events > RING_MAX)
		return cbt_refuse(why, -EINVAL, "ring: room for %llu events: not from 16 to 2^24",
				  events);
	room = roundup_pow_of_two(DIV_ROUND_UP_ULL(events, nr_cpu_ids));
	bytes = PAGE_ALIGN(slots_offset + nr_cpu_ids * room * sizeof(struct cbt_event));
	err = cbt_generation_make(generation);
	if (err)
		return err;
	if (bytes <= (u64)si_mem_available() << PAGE_SHIFT) {
		shared = vmalloc_user(bytes);
		tails = vmalloc_user(tails_bytes);
	}
	if (!shared || !tails) {
		forget(shared, tails);
		return cbt_refuse(why, -ENOMEM, "ring: %llu bytes of memory cannot be had", bytes);
	}
	mutex_lock(&cbt_rings.lock);
	if (cbt_rings.reader) {
		mutex_unlock(&cbt_rings.lock);
		forget(shared, tails);
		return cbt_refuse(why, -EBUSY, "ring: there is a reader");
	}
	swap(cbt_rings.shared, shared);
	swap(cbt_rings.tails, tails);
	cbt_rings.slots = (void *)cbt_rings.shared + slots_offset;
	cbt_rings.slots_offset = slots_offset;
	cbt_rings.shared_bytes = bytes;
	cbt_rings.tails_bytes = tails_bytes;
	cbt_rings.room = room;
	memcpy(cbt_rings.generation, generation, sizeof(generation));
	cbt_rings.monotonic_ns = ktime_get_ns();
	cbt_rings.realtime_ns = ktime_get_real_ns();
	atomic64_set(cbt_ring_counter(), 1);
	mutex_unlock(&cbt_rings.lock);
	forget(shared, tails);
	return 0;
}

void cbt_ring_free(void)
{
	forget(cbt_rings.shared, cbt_rings.tails);
}

/* Adds up what the rings say; false if an event was put in meanwhile. */
static bool add_up(struct cbt_info *info)
{
	unsigned int cpu;

	info->dropped = 0;
	info->first_dropped = 0;
	info->last_dropped = 0;
	info->ring_used = 0;
	info->next_seq = atomic64_read(cbt_ring_counter());
	smp_rmb(); /* the counter before the pendings */
	for (cpu = 0; cpu < nr_cpu_ids; cpu++) {
		struct cbt_ring *ring = &cbt_rings.shared->ring[cpu];
		u64 first, last;

		/* Pairs with the releases of begin and commit. */
		if (smp_load_acquire(&ring->pending))
			return false;
		first = READ_ONCE(ring->first_dropped);
		last = READ_ONCE(ring->last_dropped);
		if (first && (!info->first_dropped || first < info->first_dropped))
			info->first_dropped = first;
		info->last_dropped = max(info->last_dropped, last);
		info->dropped += READ_ONCE(ring->dropped);
		info->ring_used += used(cpu, READ_ONCE(ring->head));
	}
	smp_rmb(); /* all of it before the counter once more */
	return info->next_seq == atomic64_read(cbt_ring_counter());
}

static int add_up_alone(void *info)
{
	add_up(info);
	return 0;
}

/*
 * All counts of one moment.  Usually there is one in which nobody writes; if
 * not, the CPUs are stopped for one.  Never waits for a reader: it may be stuck
 * on a volume that is suspended.  Under the tracker lock: the rings stay.
 */
void cbt_ring_info(struct cbt_info *info)
{
	int tries = QUIET_TRIES;

	info->version = CBT_VERSION;
	info->event_bytes = sizeof(struct cbt_event);
	memcpy(info->generation, cbt_rings.generation, CBT_ID_BYTES);
	info->monotonic_ns = cbt_rings.monotonic_ns;
	info->realtime_ns = cbt_rings.realtime_ns;
	info->rings = nr_cpu_ids;
	info->ring_room = cbt_rings.room;
	info->tails_bytes = cbt_rings.tails_bytes;
	info->rings_bytes = cbt_rings.shared_bytes;
	info->slots_offset = cbt_rings.slots_offset;
	while (tries && !add_up(info)) {
		tries--;
		cpu_relax();
	}
	if (!tries)
		stop_machine(add_up_alone, info, NULL);
	info->recorded = info->next_seq - 1 - info->dropped;
}

/* ---- reading ---- */

static int map_tails(struct file *file, struct vm_area_struct *area)
{
	int err;

	if (cbt_rings.reader && cbt_rings.reader != file)
		return -EBUSY;
	if (area->vm_end - area->vm_start != cbt_rings.tails_bytes)
		return -EINVAL;
	err = remap_vmalloc_range(area, cbt_rings.tails, 0);
	if (!err)
		cbt_rings.reader = file;
	return err;
}

static int map_rings(struct vm_area_struct *area)
{
	if (area->vm_flags & VM_WRITE)
		return -EPERM;
	if (area->vm_end - area->vm_start != cbt_rings.shared_bytes)
		return -EINVAL;
	cbt_area_never_writable(area);
	return remap_vmalloc_range(area, cbt_rings.shared, 0);
}

int cbt_ring_mmap(struct file *file, struct vm_area_struct *area)
{
	u64 offset = (u64)area->vm_pgoff << PAGE_SHIFT;
	int err = -EINVAL;

	if (!(area->vm_flags & VM_SHARED))
		return -EINVAL;
	mutex_lock(&cbt_rings.lock);
	if (offset == CBT_MAP_TAILS)
		err = map_tails(file, area);
	else if (offset == CBT_MAP_RINGS)
		err = map_rings(area);
	mutex_unlock(&cbt_rings.lock);
	return err;
}

/* The last descriptor and mapping of @file are gone. */
void cbt_ring_leave(struct file *file)
{
	mutex_lock(&cbt_rings.lock);
	if (cbt_rings.reader == file)
		cbt_rings.reader = NULL;
	mutex_unlock(&cbt_rings.lock);
}

/* The rings stay while there is a reader; another may poll, and look at them under the lock. */
__poll_t cbt_ring_poll(struct file *file, struct poll_table_struct *wait)
{
	unsigned int cpu;
	__poll_t events = 0;

	poll_wait(file, &cbt_rings.wait, wait);
	/* Pairs with wq_has_sleeper: we are in the queue, then look. */
	smp_mb();
	mutex_lock(&cbt_rings.lock);
	for (cpu = 0; cpu < nr_cpu_ids && !events; cpu++)
		if (used(cpu, READ_ONCE(cbt_rings.shared->ring[cpu].head)))
			events = EPOLLIN | EPOLLRDNORM;
	mutex_unlock(&cbt_rings.lock);
	return events;
}
