// SPDX-License-Identifier: GPL-2.0
/*
 * Tells a bio that its driver split and submitted again from a new one.
 *
 * When a driver's handler returns, what it submitted meanwhile waits in the
 * task's bio_list, and will be submitted by this task before it goes on.  What
 * waits there for the disk itself is the remainder of the bio just handled.
 * It is noted here until it arrives: the same bio, in the same task and list,
 * for the same range.
 *
 * One that never arrives (a NOWAIT bio that would have had to wait) leaves its
 * slot behind; the next that needs it takes it.  A remainder whose slot is
 * taken passes as a write of its own, which is true too.
 */
#include <linux/bio.h>
#include <linux/hash.h>
#include <linux/log2.h>
#include <linux/sched.h>

#include "module.h"

#define PROBES 4
/* In a slot whose owner is filling it. */
#define FILLING ((struct bio *)1)

static struct cbt_remainder *slot_at(struct cbt_remainders *all, struct bio *bio,
				     unsigned int probe)
{
	u32 at = hash_ptr(bio, ilog2(CBT_REMAINDERS)) + probe;

	return &all->slots[at % CBT_REMAINDERS];
}

/* A free slot, or the first one: its bio may have gone long ago. */
static struct cbt_remainder *claim(struct cbt_remainders *all, struct bio *bio)
{
	struct cbt_remainder *slot;
	struct bio *old;
	unsigned int probe;

	for (probe = 0; probe < PROBES; probe++) {
		slot = slot_at(all, bio, probe);
		if (!READ_ONCE(slot->bio) && !cmpxchg(&slot->bio, NULL, FILLING)) {
			atomic_inc(&all->used);
			return slot;
		}
	}
	slot = slot_at(all, bio, 0);
	old = READ_ONCE(slot->bio);
	if (!old || old == FILLING || cmpxchg(&slot->bio, old, FILLING) != old)
		return NULL;
	return slot;
}

void cbt_remainders_add(struct cbt_remainders *all, struct bio *bio, u64 epoch)
{
	struct cbt_remainder *slot;

	if (!op_is_write(bio_op(bio)))
		return;
	slot = claim(all, bio);
	if (!slot)
		return;
	slot->task = current;
	slot->list = current->bio_list;
	slot->sector = bio->bi_iter.bi_sector;
	slot->size = bio->bi_iter.bi_size;
	slot->epoch = epoch;
	/* Pairs with the acquire in find: whoever sees the bio sees the rest. */
	smp_store_release(&slot->bio, bio);
}

u64 cbt_remainders_find(struct cbt_remainders *all, struct bio *bio)
{
	unsigned int probe;

	for (probe = 0; probe < PROBES; probe++) {
		struct cbt_remainder *slot = slot_at(all, bio, probe);
		u64 epoch;
		bool same;

		/* Pairs with the release in add: what follows is of this one. */
		if (smp_load_acquire(&slot->bio) != bio)
			continue;
		epoch = slot->epoch;
		same = slot->task == current && slot->list == current->bio_list &&
		       slot->sector == bio->bi_iter.bi_sector &&
		       slot->size == bio->bi_iter.bi_size;
		/* Still ours?  Then what was read belongs together. */
		if (cmpxchg(&slot->bio, bio, NULL) != bio)
			return 0;
		atomic_dec(&all->used);
		return same ? epoch : 0;
	}
	return 0;
}
