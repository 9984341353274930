// SPDX-License-Identifier: GPL-2.0
/*
 * The rings: made, counted, mapped and polled.  See ring.h for how events get
 * in.
 */
#include <linux/cpumask.h>
#include <linux/fs.h>
#include <linux/ktime.h>
#include <linux/log2.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/sched/mm.h>
#include <linux/smp.h>
#include <linux/stop_machine.h>
#include <linux/vmalloc.h>
#include <linux/wait.h>

#include "module.h"

#define RING_MIN 16
#define RING_MAX 0x1000000
#define ROOM_DEFAULT 0x40000
#define ROOM_LEAST 4096
#define QUIET_TRIES 1000

struct cbt_ring_state cbt_rings = {
	.lock = __MUTEX_INITIALIZER(cbt_rings.lock),
	.wait = __WAIT_QUEUE_HEAD_INITIALIZER(cbt_rings.wait),
};

DEFINE_PER_CPU(struct cbt_own_ring, cbt_own_ring);

/* What waits in a ring; a full one if its reader's tail makes no sense. */
static u32 used(unsigned int cpu, u64 head)
{
	u64 count = head - READ_ONCE(cbt_rings.tails[cpu].tail);

	return min_t(u64, count, cbt_rings.room);
}

static void count_drop(struct cbt_ring *ring, u64 seq)
{
	if (!ring->dropped)
		WRITE_ONCE(ring->first_dropped, seq);
	WRITE_ONCE(ring->last_dropped, seq);
	WRITE_ONCE(ring->dropped, ring->dropped + 1);
}

/* By begin, for want of room. */
void cbt_ring_drop(struct cbt_ring *ring, u64 seq)
{
	unsigned long flags;

	local_irq_save(flags);
	count_drop(ring, seq);
	/* Whoever sees no pending sees the drop. */
	smp_store_release(&ring->pending, 0);
	local_irq_restore(flags);
}

/* By begin, when it interrupts one on the same CPU, whose pending is lower. */
void cbt_ring_drop_nested(struct cbt_ring *ring)
{
	unsigned long flags;

	local_irq_save(flags);
	count_drop(ring, atomic64_fetch_inc(cbt_ring_counter()));
	local_irq_restore(flags);
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

/* 0: a room that is enough for most, however many CPUs there may be. */
static u64 room_for(u64 events)
{
	u64 share = DIV_ROUND_UP_ULL(events ?: ROOM_DEFAULT, nr_cpu_ids);

	return roundup_pow_of_two(events ? share : max_t(u64, share, ROOM_LEAST));
}

static void share_out(void)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu) {
		struct cbt_own_ring *own = per_cpu_ptr(&cbt_own_ring, cpu);

		own->ring = &cbt_rings.shared->ring[cpu];
		own->tail = &cbt_rings.tails[cpu];
		own->slots = cbt_rings.slots + (u64)cpu * cbt_rings.room;
		own->room = cbt_rings.room;
	}
}

/* Begins a new sequence.  With both locks, while no tracker is attached. */
int cbt_ring_set(u64 events, struct cbt_why *why)
{
	u64 slots_offset = PAGE_ALIGN(sizeof(struct cbt_shared) +
				      nr_cpu_ids * sizeof(struct cbt_ring));
	u64 tails_bytes = PAGE_ALIGN(nr_cpu_ids * sizeof(struct cbt_tail));
	struct cbt_shared *shared = NULL;
	u8 generation[CBT_ID_BYTES];
	struct cbt_tail *tails = NULL;
	u64 room, bytes;
	int err;

	if (events && (events < RING_MIN || events > RING_MAX))
		return cbt_refuse(why, -EINVAL, "ring: room for %llu events: not from 16 to 2^24",
				  events);
	if (cbt_rings.reader)
		return cbt_refuse(why, -EBUSY, "ring: there is a reader");
	room = room_for(events);
	bytes = PAGE_ALIGN(slots_offset + nr_cpu_ids * room * sizeof(struct cbt_event));
	err = cbt_generation_make(generation);
	if (err)
		return err;
	if (cbt_memory_had(bytes)) {
		shared = vmalloc_user(bytes);
		tails = vmalloc_user(tails_bytes);
	}
	if (!shared || !tails) {
		forget(shared, tails);
		return cbt_refuse(why, -ENOMEM, "ring: %llu bytes of memory cannot be had", bytes);
	}
	forget(cbt_rings.shared, cbt_rings.tails);
	cbt_rings.shared = shared;
	cbt_rings.tails = tails;
	cbt_rings.slots = (void *)shared + slots_offset;
	cbt_rings.slots_offset = slots_offset;
	cbt_rings.shared_bytes = bytes;
	cbt_rings.tails_bytes = tails_bytes;
	cbt_rings.room = room;
	memcpy(cbt_rings.generation, generation, sizeof(generation));
	cbt_rings.monotonic_ns = ktime_get_ns();
	cbt_rings.realtime_ns = ktime_get_real_ns();
	atomic64_set(cbt_ring_counter(), 1);
	share_out();
	return 0;
}

void cbt_ring_free(void)
{
	forget(cbt_rings.shared, cbt_rings.tails);
}

/* Waits until all below @seq are in or dropped: no task stays in between. */
static void settle(u64 seq)
{
	unsigned int cpu;

	for (cpu = 0; cpu < nr_cpu_ids; cpu++) {
		struct cbt_ring *ring = &cbt_rings.shared->ring[cpu];
		u64 pending;

		do {
			/* Pairs with the releases of commit and drop. */
			pending = smp_load_acquire(&ring->pending);
			if (!pending || pending >= seq)
				break;
			cpu_relax();
		} while (true);
	}
}

static u64 count_drops(void)
{
	unsigned int cpu;
	u64 drops = 0;

	for (cpu = 0; cpu < nr_cpu_ids; cpu++)
		drops += READ_ONCE(cbt_rings.shared->ring[cpu].dropped);
	return drops;
}

/*
 * The counts of one moment, namely of the events below next_seq.  False if
 * there was a drop in between, of an event below it or not.
 */
static bool add_up(struct cbt_info *info)
{
	u64 before = count_drops();

	smp_rmb(); /* the drops, then the counter */
	info->next_seq = atomic64_read(cbt_ring_counter());
	smp_rmb(); /* the counter, then the pendings */
	settle(info->next_seq);
	info->dropped = count_drops();
	return info->dropped == before;
}

static int add_up_alone(void *info)
{
	add_up(info);
	return 0;
}

static void look_at_rings(struct cbt_info *info)
{
	unsigned int cpu;

	for (cpu = 0; cpu < nr_cpu_ids; cpu++) {
		struct cbt_ring *ring = &cbt_rings.shared->ring[cpu];
		u64 first = READ_ONCE(ring->first_dropped);

		if (first && (!info->first_dropped || first < info->first_dropped))
			info->first_dropped = first;
		info->last_dropped = max(info->last_dropped, READ_ONCE(ring->last_dropped));
		info->ring_used += used(cpu, READ_ONCE(ring->head));
	}
}

/*
 * Where events are dropped all the time there may be no moment without: then
 * the CPUs are stopped for one.  Never waits for a reader, who may be stuck on
 * a volume that is suspended.
 */
int cbt_ring_info(struct cbt_info *info)
{
	int tries = QUIET_TRIES;

	mutex_lock(&cbt_rings.lock);
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
		cond_resched();
	}
	if (!tries)
		stop_machine(add_up_alone, info, NULL);
	info->recorded = info->next_seq - 1 - info->dropped;
	look_at_rings(info);
	mutex_unlock(&cbt_rings.lock);
	return 0;
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
	unsigned int noio;
	int err = -EINVAL;

	if (!(area->vm_flags & VM_SHARED))
		return -EINVAL;
	/* Others wait for the lock, and page tables take memory. */
	noio = memalloc_noio_save();
	mutex_lock(&cbt_rings.lock);
	if (offset == CBT_MAP_TAILS)
		err = map_tails(file, area);
	else if (offset == CBT_MAP_RINGS)
		err = map_rings(area);
	mutex_unlock(&cbt_rings.lock);
	memalloc_noio_restore(noio);
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
