// SPDX-License-Identifier: GPL-2.0
/*
 * Trackers: what they record of a write, and what they tell of themselves.
 * How they come and go is in attach.c, how intervals end in switch.c.
 */
#include <linux/blkdev.h>
#include <linux/build_bug.h>
#include <linux/fs.h>
#include <linux/sched.h>
#include <linux/string.h>

#include "module.h"

/* Outermost lock of the module: trackers, their ids, and what is installed. */
DEFINE_MUTEX(cbt_tracker_lock);
LIST_HEAD(cbt_trackers);	/* by rising id */

/* ---- recording: called by the hook with the queue held ---- */

static void set_state(struct cbt_tracker *tracker, int state)
{
	if (!(atomic_read(&tracker->states) & state))
		atomic_or(state, &tracker->states);
}

static void note_growth(struct cbt_tracker *tracker, u64 end)
{
	s64 old = atomic64_read(&tracker->grown_to);

	while (end > (u64)old && !atomic64_try_cmpxchg(&tracker->grown_to, &old, end))
		;
	set_state(tracker, CBT_S_GREW);
}

/*
 * Changed: every block that the range touches.  Discarded: of a discard the
 * blocks that it covers whole (the last one of the volume may be short), and a
 * touch of any other kind takes a block out again.
 */
static __always_inline void mark(struct cbt_tracker *tracker, u8 op, u64 from, u64 to)
{
	struct cbt_bits_pair *bits = &tracker->bits[tracker->active];
	u64 mask = (1ULL << tracker->shift) - 1;
	u64 first = from >> tracker->shift;
	u64 end = (to + mask) >> tracker->shift;
	u64 whole_first, whole_end;

	cbt_bitmap_set(&bits->changed, first, end);
	if (op != CBT_OP_DISCARD && op != CBT_OP_SECURE_ERASE) {
		if (unlikely(READ_ONCE(bits->discards)))
			cbt_bitmap_clear(&bits->discarded, first, end);
		return;
	}
	WRITE_ONCE(bits->discards, true);
	whole_first = (from + mask) >> tracker->shift;
	whole_end = to == tracker->size ? end : to >> tracker->shift;
	cbt_bitmap_clear(&bits->discarded, first, min(whole_first, end));
	cbt_bitmap_clear(&bits->discarded, max(whole_end, first), end);
	cbt_bitmap_set(&bits->discarded, whole_first, whole_end);
}

static __always_inline void count(struct cbt_tracker *tracker,
				  const struct cbt_write *write, u64 length, bool remainder)
{
	this_cpu_inc(tracker->counts->events);
	if (remainder)
		this_cpu_inc(tracker->counts->remainders);
	else
		this_cpu_add(tracker->counts->bytes, length);
	if (write->op == CBT_OP_DISCARD || write->op == CBT_OP_SECURE_ERASE)
		this_cpu_inc(tracker->counts->discards);
}

/* @skipped: bytes of the write before @offset that are not this volume's. */
static __always_inline void put_event(struct cbt_tracker *tracker,
				      const struct cbt_write *write, u64 offset,
				      u64 length, u64 skipped, bool remainder)
{
	struct cbt_event *event;
	struct cbt_ring *ring;

	event = cbt_ring_begin(&ring);
	if (!event)
		return;
	event->offset = offset;
	event->length = length;
	event->inode = write->inode;
	event->inode_offset = write->inode_offset;
	if (write->known & CBT_K_INODE_OFFSET)
		event->inode_offset += skipped;
	event->interval = tracker->interval;
	event->pid = current->pid;
	event->flags = write->flags | (remainder ? CBT_F_REMAINDER : 0);
	event->tracker = tracker->id;
	event->op = write->op;
	event->known = write->known;
	/* The kernel keeps the name padded with zeros. */
	BUILD_BUG_ON(sizeof(event->comm) != sizeof(current->comm));
	memcpy(event->comm, current->comm, sizeof(event->comm));
	cbt_ring_commit(ring);
}

void cbt_tracker_record(struct cbt_tracker *tracker, const struct cbt_write *write)
{
	u64 from = write->offset;
	u64 to = write->offset + write->length;
	u64 skipped = 0;
	bool remainder;

	if (tracker->partition) {
		u64 end = tracker->start + bdev_nr_bytes(tracker->open.bdev);

		from = max(from, tracker->start);
		to = min(to, end);
		if (from >= to)
			return;
		skipped = from - write->offset;
		from -= tracker->start;
		to -= tracker->start;
	}
	if (unlikely(tracker->sealed)) {
		set_state(tracker, CBT_S_MISSED);
		return;
	}
	if (unlikely(to > tracker->size))
		note_growth(tracker, to);
	if (from < tracker->size)
		mark(tracker, write->op, from, min(to, tracker->size));

	remainder = write->again && write->epoch >= tracker->since;
	count(tracker, write, to - from, remainder);
	if (!(tracker->flags & CBT_ATTACH_NO_EVENTS))
		put_event(tracker, write, from, to - from, skipped, remainder);
}

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
		set_state(tracker, CBT_S_SHRANK);
	if (bdev_nr_bytes(bdev) > tracker->size)
		set_state(tracker, CBT_S_GREW);
	if (!cbt_hook_in_place(tracker->hook))
		set_state(tracker, CBT_S_UNHOOKED);
	if (test_bit(GD_DEAD, &bdev->bd_disk->state))
		set_state(tracker, CBT_S_GONE);
	if (!(tracker->flags & CBT_ATTACH_TABLES) &&
	    atomic64_read(&tracker->hook->tables) != tracker->tables)
		set_state(tracker, CBT_S_TABLE);
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
