// SPDX-License-Identifier: GPL-2.0
/*
 * Bitmaps out to user space, back in after a restart, and cleared when saved.
 *
 * Through a buffer of the call's own: a page fault on the caller's may wait for
 * the very volume that waits for a switch, which waits for the tracker lock.
 */
#include <linux/minmax.h>
#include <linux/sched.h>
#include <linux/string.h>

#include "module.h"

static struct cbt_bitmap *map_of(struct cbt_tracker *tracker, const struct cbt_bits *call)
{
	bool frozen = call->which == CBT_BITS_FROZEN;
	struct cbt_bits_pair *pair = &tracker->bits[tracker->active ^ frozen];

	return call->kind == CBT_BITS_DISCARDED ? &pair->discarded : &pair->changed;
}

static int copy_out(struct cbt_tracker *tracker, struct cbt_bits *call, void *buffer)
{
	bool frozen = call->which == CBT_BITS_FROZEN;
	struct cbt_bitmap *map;
	u64 bytes;

	if (frozen && !tracker->frozen)
		return -ENODATA;
	map = map_of(tracker, call);
	bytes = cbt_bitmap_bytes(map->blocks);
	if (call->offset > bytes)
		return -EINVAL;
	call->length = min(call->length, bytes - call->offset);
	call->interval = tracker->interval - frozen;
	memcpy(buffer, (char *)map->words + call->offset, call->length);
	return 0;
}

/* @buffer has room for @call->length bytes, CBT_BITS_AT_ONCE at most. */
int cbt_bits_copy(struct cbt_bits *call, void *buffer)
{
	struct cbt_tracker *tracker;
	int err;

	err = mutex_lock_killable(&cbt_tracker_lock);
	if (err)
		return err;
	tracker = cbt_tracker_find(call->tracker);
	err = tracker ? copy_out(tracker, call, buffer) : -ENOENT;
	mutex_unlock(&cbt_tracker_lock);
	return err;
}

/*
 * @loaded counts the bytes of both bitmaps, one after the other.  What comes
 * from user space is compared before it is added to.
 */
static int add_part(struct cbt_tracker *tracker, const struct cbt_bits *call,
		    const void *buffer, struct cbt_why *why)
{
	struct cbt_bitmap *map = map_of(tracker, call);
	u64 bytes = cbt_bitmap_bytes(map->blocks);
	u64 before = call->kind == CBT_BITS_DISCARDED ? bytes : 0;

	if (!(atomic_read(&tracker->states) & CBT_S_LOADING))
		return cbt_refuse(why, -ENODATA, "load: %s was not attached to go on",
				  tracker->name);
	if (tracker->sealed)
		return cbt_refuse(why, -ESTALE, "load: %s is sealed", tracker->name);
	if (call->offset > bytes || !call->length || call->length > bytes - call->offset ||
	    before + call->offset != tracker->loaded ||
	    (call->offset + call->length < bytes && call->length % sizeof(u64)))
		return cbt_refuse(why, -EINVAL, "load: not the next part of the bitmap");
	if (call->kind == CBT_BITS_DISCARDED)
		WRITE_ONCE(tracker->bits[tracker->active].discards, true);
	if (cbt_bitmap_add(map, call->offset, buffer, call->length))
		return cbt_refuse(why, -EINVAL, "load: bits past the end of %s", tracker->name);
	tracker->loaded += call->length;
	if (tracker->loaded == 2 * bytes)
		atomic_andnot(CBT_S_LOADING, &tracker->states);
	return 0;
}

int cbt_bits_load(const struct cbt_bits *call, const void *buffer, struct cbt_why *why)
{
	struct cbt_tracker *tracker;
	int err;

	err = mutex_lock_killable(&cbt_tracker_lock);
	if (err)
		return err;
	tracker = cbt_tracker_find(call->tracker);
	err = tracker ? add_part(tracker, call, buffer, why) : -ENOENT;
	mutex_unlock(&cbt_tracker_lock);
	return err;
}

/* One step; true when all is zero. */
static bool clear_step(struct cbt_tracker *tracker)
{
	struct cbt_bits_pair *pair = &tracker->bits[!tracker->active];
	u64 bytes = cbt_bitmap_memory(pair->changed.blocks);

	tracker->frozen = false;
	if (tracker->dirty) {
		bool second = tracker->dirty <= bytes;
		struct cbt_bitmap *map = second ? &pair->discarded : &pair->changed;
		u64 end = second ? tracker->dirty : tracker->dirty - bytes;
		u64 step = min_t(u64, end, CBT_BITS_AT_ONCE);

		memset((char *)map->words + end - step, 0, step);
		tracker->dirty -= step;
	}
	if (!tracker->dirty)
		pair->discards = false;
	return !tracker->dirty;
}

/*
 * A large bitmap takes its time, and somebody else's volume may be suspended
 * for a switch: the lock is left after every step.
 */
int cbt_bits_clear(u32 id, struct cbt_why *why)
{
	bool done = false;
	int err = 0;

	while (!done && !err) {
		struct cbt_tracker *tracker;

		err = mutex_lock_killable(&cbt_tracker_lock);
		if (err)
			break;
		tracker = cbt_tracker_find(id);
		if (tracker)
			done = clear_step(tracker);
		else
			err = -ENOENT;
		mutex_unlock(&cbt_tracker_lock);
		cond_resched();
	}
	return err;
}
