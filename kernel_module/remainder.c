// SPDX-License-Identifier: GPL-2.0
/*
 * Tells a bio that its driver split and submitted again from a new one.
 *
 * When a driver's handler returns, what it submitted meanwhile waits in the
 * task's bio_list, and will be submitted by this task before it goes on.  What
 * waits there for the disk itself is the remainder of the bio just handled.
 * It is noted here until it arrives; it cannot be freed before, so its address
 * is good for exactly that long.
 *
 * No slot free: the remainder passes as a write of its own, which is true too.
 */
#include <linux/bio.h>
#include <linux/hash.h>
#include <linux/log2.h>
#include <linux/sched.h>

#include "module.h"

#define PROBES 8

static struct cbt_remainder *slot_at(struct cbt_remainders *all, struct bio *bio,
				     unsigned int probe)
{
	u32 at = hash_ptr(bio, ilog2(CBT_REMAINDERS)) + probe;

	return &all->slots[at % CBT_REMAINDERS];
}

static void note(struct cbt_remainders *all, struct bio *bio, u64 epoch)
{
	unsigned int probe;

	for (probe = 0; probe < PROBES; probe++) {
		struct cbt_remainder *slot = slot_at(all, bio, probe);

		if (cmpxchg(&slot->bio, NULL, bio))
			continue;
		slot->task = current;
		slot->epoch = epoch;
		atomic_inc(&all->waiting);
		return;
	}
}

/* After the driver's handler: notes what it submitted to @disk itself. */
void cbt_remainders_note(struct cbt_remainders *all, struct gendisk *disk, u64 epoch)
{
	struct bio *bio;

	if (!current->bio_list)
		return;
	bio_list_for_each(bio, &current->bio_list[0])
		if (bio->bi_bdev->bd_disk == disk && op_is_write(bio_op(bio)))
			note(all, bio, epoch);
}

/* Before the driver's handler: was @bio noted, and at which epoch? */
bool cbt_remainders_take(struct cbt_remainders *all, struct bio *bio, u64 *epoch)
{
	unsigned int probe;
	bool ours;

	if (!atomic_read(&all->waiting))
		return false;
	for (probe = 0; probe < PROBES; probe++) {
		struct cbt_remainder *slot = slot_at(all, bio, probe);

		if (READ_ONCE(slot->bio) != bio)
			continue;
		*epoch = slot->epoch;
		ours = slot->task == current;
		atomic_dec(&all->waiting);
		/* Whoever claims the slot next must not be read by us. */
		smp_store_release(&slot->bio, NULL);
		return ours;
	}
	return false;
}
