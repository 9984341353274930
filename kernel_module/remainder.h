/* SPDX-License-Identifier: GPL-2.0 */
/* Tells a bio that its driver split and submitted again from a new one. */
#ifndef CBT_REMAINDER_H
#define CBT_REMAINDER_H

#include <linux/atomic.h>
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/sched.h>

#define CBT_REMAINDERS 64	/* a power of two */

/**
 * struct cbt_remainder - a bio that its driver submitted again, until it comes
 * @bio: NULL where the slot is free; whoever exchanges it owns the rest
 * @task: in whose bio_list it waits
 * @list: that list, on the stack of the submit that it belongs to
 * @sector: where it begins
 * @size: bytes
 * @epoch: of the hook when the bio was first seen
 */
struct cbt_remainder {
	struct bio *bio;
	struct task_struct *task;
	struct bio_list *list;
	sector_t sector;
	u32 size;
	u64 epoch;
};

/**
 * struct cbt_remainders - all of a hook
 * @used: slots in use; zero lets an ordinary submit skip the search
 * @slots: a hash by the bio's address
 */
struct cbt_remainders {
	atomic_t used;
	struct cbt_remainder slots[CBT_REMAINDERS];
};

void cbt_remainders_add(struct cbt_remainders *all, struct bio *bio, u64 epoch);
u64 cbt_remainders_find(struct cbt_remainders *all, struct bio *bio);

/* After the driver's handler: notes what it submitted to @disk itself. */
static inline void cbt_remainders_note(struct cbt_remainders *all,
				       struct gendisk *disk, u64 epoch)
{
	struct bio *bio;

	if (!current->bio_list)
		return;
	bio_list_for_each(bio, &current->bio_list[0])
		if (unlikely(bio->bi_bdev->bd_disk == disk))
			cbt_remainders_add(all, bio, epoch);
}

/* Before the driver's handler: the epoch at which @bio was noted, or 0. */
static inline u64 cbt_remainders_take(struct cbt_remainders *all, struct bio *bio)
{
	if (likely(!atomic_read(&all->used)))
		return 0;
	return cbt_remainders_find(all, bio);
}

#endif /* CBT_REMAINDER_H */
