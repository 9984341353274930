// SPDX-License-Identifier: GPL-2.0
/*
 * Trackers: which there are, and what they tell of themselves.  How they come
 * and go is in attach.c, what they record in record.h, how intervals end in
 * switch.c.
 */
#include <linux/blkdev.h>
#include <linux/fs.h>
#include <linux/string.h>

#include "module.h"

/* Outermost lock of the module: trackers, their ids, and what is installed. */
DEFINE_MUTEX(cbt_tracker_lock);
LIST_HEAD(cbt_trackers);	/* by rising id */

/* ---- under the tracker lock ---- */

struct cbt_tracker *cbt_tracker_find(u32 id)
{
	struct cbt_tracker *tracker;

	list_for_each_entry(tracker, &cbt_trackers, all)
		if (tracker->id == id)
			return tracker;
	return NULL;
}

u64 cbt_tracker_blocks(const struct cbt_tracker *tracker)
{
	u64 mask = (1ULL << tracker->shift) - 1;

	return (tracker->size + mask) >> tracker->shift;
}

u64 cbt_tracker_memory(const struct cbt_tracker *tracker)
{
	u64 bitmaps = tracker->flags & CBT_ATTACH_SINGLE ? 2 : 4;

	return bitmaps * cbt_bitmap_memory(cbt_tracker_blocks(tracker));
}

/* With the queue frozen: may a tracker go, or is what was saved of it void? */
int cbt_tracker_missed(struct cbt_tracker *tracker, struct cbt_why *why)
{
	if (tracker->told || !(atomic_read(&tracker->states) & CBT_S_MISSED))
		return 0;
	tracker->told = true;
	return cbt_refuse(why, -ESTALE,
			  "%s: was written after it was sealed: what was saved is not clean",
			  tracker->name);
}

/* States that show only when somebody looks; sticky from then on. */
void cbt_tracker_look(struct cbt_tracker *tracker)
{
	struct block_device *bdev = tracker->open.bdev;

	if (bdev_nr_bytes(bdev) < tracker->size ||
	    atomic64_read(&tracker->hook->shrinks) != tracker->shrinks)
		cbt_tracker_set_state(tracker, CBT_S_SHRANK);
	if (bdev_nr_bytes(bdev) > tracker->size)
		cbt_tracker_set_state(tracker, CBT_S_GREW);
	if (!cbt_hook_in_place(tracker->hook))
		cbt_tracker_set_state(tracker, CBT_S_UNHOOKED);
	if (test_bit(GD_DEAD, &bdev->bd_disk->state))
		cbt_tracker_set_state(tracker, CBT_S_GONE);
	if (!(tracker->flags & CBT_ATTACH_TABLES) &&
	    atomic64_read(&tracker->hook->tables) != tracker->tables)
		cbt_tracker_set_state(tracker, CBT_S_TABLE);
}

static void fill_counts(struct cbt_status *status, struct cbt_tracker *tracker)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu) {
		const struct cbt_counts *counts = per_cpu_ptr(tracker->counts, cpu);

		status->events += READ_ONCE(counts->events);
		status->bytes += READ_ONCE(counts->bytes);
		status->discards += READ_ONCE(counts->discards);
		status->remainders += READ_ONCE(counts->remainders);
	}
}

static void fill_status(struct cbt_status *status, struct cbt_tracker *tracker)
{
	struct block_device *bdev = tracker->open.bdev;

	cbt_tracker_look(tracker);
	memset(status, 0, sizeof(*status));
	status->tracker = tracker->id;
	memcpy(status->generation, tracker->generation, CBT_ID_BYTES);
	memcpy(status->name, tracker->name, CBT_NAME_BYTES);
	status->major = MAJOR(bdev->bd_dev);
	status->minor = MINOR(bdev->bd_dev);
	status->granularity = 1U << tracker->shift;
	status->interval = tracker->interval;
	status->first_interval = tracker->first_interval;
	status->states = atomic_read(&tracker->states);
	status->role = tracker->role;
	status->frozen = tracker->frozen;
	status->attach_flags = tracker->flags;
	status->switches = tracker->switches;
	status->volume_size = tracker->size;
	status->current_size = bdev_nr_bytes(bdev);
	status->grown_to = atomic64_read(&tracker->grown_to);
	status->bitmap_bytes = cbt_bitmap_bytes(cbt_tracker_blocks(tracker));
	status->memory = cbt_tracker_memory(tracker);
	status->tables = atomic64_read(&tracker->hook->tables) - tracker->tables;
	fill_counts(status, tracker);
}

/* ---- calls ---- */

int cbt_tracker_status(struct cbt_status *status)
{
	bool next = status->flags & CBT_STATUS_NEXT;
	struct cbt_tracker *tracker;
	int err;

	if (status->flags & ~CBT_STATUS_NEXT)
		return -EINVAL;
	err = mutex_lock_killable(&cbt_tracker_lock);
	if (err)
		return err;
	err = -ENOENT;
	list_for_each_entry(tracker, &cbt_trackers, all) {
		if (tracker->id == status->tracker ||
		    (next && tracker->id > status->tracker)) {
			fill_status(status, tracker);
			err = 0;
			break;
		}
	}
	mutex_unlock(&cbt_tracker_lock);
	return err;
}

int cbt_tracker_info(struct cbt_info *info)
{
	struct list_head *at;
	int err;

	memset(info, 0, sizeof(*info));
	err = mutex_lock_killable(&cbt_tracker_lock);
	if (err)
		return err;
	list_for_each(at, &cbt_trackers)
		info->trackers++;
	if (!cbt_table_watched())
		info->flags |= CBT_I_NO_TABLES;
	mutex_unlock(&cbt_tracker_lock);
	return cbt_ring_info(info);
}
