/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The events of all trackers, in one sequence, until they are read.
 *
 * A bounded ring for each CPU, in memory that the reader maps; see cbt_events.h
 * for what lies where.  A submit, which runs in a task, has its CPU's ring to
 * itself while it cannot be preempted; all that CPUs share is the counter that
 * gives the numbers.  An event that finds no room uses up its number: a gap in
 * the numbers is a loss, and the count of drops is exact.  The same goes for
 * what a driver should submit from an interrupt just then.  The bitmaps do not
 * depend on any of this.
 *
 * What a reader may write, the tails, is only ever compared: a nonsensical one
 * reads as a full ring.
 *
 * @pending lets a reader who merges the rings know what is still to come.  It
 * is set to a lower bound of the number before the number is taken (the counter
 * is a full barrier), and to 0 after the event is in.  Whoever reads the
 * counter first and the pendings then has seen every lower number or its
 * pending.
 */
#ifndef CBT_RING_H
#define CBT_RING_H

#include <linux/atomic.h>
#include <linux/fs.h>
#include <linux/ktime.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/poll.h>
#include <linux/preempt.h>
#include <linux/smp.h>
#include <linux/wait.h>

#include "cbt.h"

struct cbt_why;

/**
 * struct cbt_shared - the rings as they are mapped; the slots follow
 * @all: the counter; atomic
 * @ring: one a CPU; its owner writes it, and cannot be preempted meanwhile
 */
struct cbt_shared {
	struct cbt_rings all;
	struct cbt_ring ring[];
};

/**
 * struct cbt_ring_state - where the rings are
 * @shared: mapped by the reader, who cannot write it
 * @tails: mapped by the reader, who writes it
 * @slots: in @shared
 * @room: of each ring; a power of two
 * @wait: who polls
 * @lock: of @reader; the rest changes under it and the tracker lock, while no
 *	tracker is attached
 * @reader: the open file that has mapped the tails
 * @slots_offset: of @slots in @shared
 * @shared_bytes: mapped
 * @tails_bytes: mapped
 * @monotonic_ns: the clock's anchor
 * @realtime_ns: likewise
 * @generation: of the sequence
 */
struct cbt_ring_state {
	struct cbt_shared *shared;
	struct cbt_tail *tails;
	struct cbt_event *slots;
	u32 room;
	wait_queue_head_t wait;
	struct mutex lock; /* of reader */
	struct file *reader;
	u64 slots_offset;
	u64 shared_bytes;
	u64 tails_bytes;
	u64 monotonic_ns;
	u64 realtime_ns;
	u8 generation[CBT_ID_BYTES];
};

extern struct cbt_ring_state cbt_rings;

/**
 * struct cbt_own_ring - a CPU's own ring; changes as @cbt_rings does
 * @ring: in cbt_rings.shared
 * @tail: in cbt_rings.tails
 * @slots: of it
 * @room: a power of two
 */
struct cbt_own_ring {
	struct cbt_ring *ring;
	struct cbt_tail *tail;
	struct cbt_event *slots;
	u64 room;
};

DECLARE_PER_CPU(struct cbt_own_ring, cbt_own_ring);

int cbt_ring_set(u64 events, struct cbt_why *why);
void cbt_ring_free(void);
void cbt_ring_drop(struct cbt_ring *ring, u64 seq);
void cbt_ring_drop_nested(struct cbt_ring *ring);
int cbt_ring_info(struct cbt_info *info);
u64 cbt_ring_next_seq(u64 *time_ns);
int cbt_ring_mmap(struct file *file, struct vm_area_struct *area);
void cbt_ring_leave(struct file *file);
__poll_t cbt_ring_poll(struct file *file, struct poll_table_struct *wait);

static inline atomic64_t *cbt_ring_counter(void)
{
	return (atomic64_t *)&cbt_rings.shared->all.next_seq;
}

/*
 * A slot with number and time, to be filled at once; no preemption until
 * cbt_ring_commit.  NULL: no room; the event counts as dropped.
 */
static __always_inline struct cbt_event *cbt_ring_begin(struct cbt_ring **at)
{
	const struct cbt_own_ring *own = &get_cpu_var(cbt_own_ring);
	struct cbt_ring *ring = own->ring;
	struct cbt_event *slot;
	u64 head, seq;

	if (unlikely(READ_ONCE(ring->pending))) {
		cbt_ring_drop_nested(ring);
		put_cpu_var(cbt_own_ring);
		return NULL;
	}
	WRITE_ONCE(ring->pending, atomic64_read(cbt_ring_counter()));
	barrier(); /* from here on an interrupt's submit leaves the ring alone */
	head = ring->head;
	seq = atomic64_fetch_inc(cbt_ring_counter());
	/* Pairs with the reader's release: it has copied what lay in the slot. */
	if (unlikely(head - smp_load_acquire(&own->tail->tail) >= own->room)) {
		cbt_ring_drop(ring, seq);
		put_cpu_var(cbt_own_ring);
		return NULL;
	}
	slot = &own->slots[head & (own->room - 1)];
	slot->seq = seq;
	slot->time_ns = ktime_get_ns();
	*at = ring;
	return slot;
}

/* Somebody who waits is woken once: he goes on until the rings are empty. */
static __always_inline void cbt_ring_commit(struct cbt_ring *ring)
{
	/* Whoever sees the head sees the event; whoever sees no pending, the head. */
	smp_store_release(&ring->head, ring->head + 1);
	/* As above. */
	smp_store_release(&ring->pending, 0);
	put_cpu_var(cbt_own_ring);
	/* With its barrier: a poll sees the head, or we see who polls. */
	if (unlikely(wq_has_sleeper(&cbt_rings.wait)))
		wake_up_interruptible(&cbt_rings.wait);
}

#endif /* CBT_RING_H */
