// SPDX-License-Identifier: GPL-2.0
/*
 * The end of an interval, on several volumes at one instant.
 *
 * The order that loses nothing: dmsetup suspend (which syncs, drains, and from
 * then on defers writes); make the snapshot; this switch; dmsetup resume.
 * Whatever was marked in the old interval has landed before the instant, and
 * whatever is deferred is marked again, in the new interval, on its way down.
 * Switching after the resume instead loses what was written in between: those
 * writes are in the old interval's bitmap and not in the old snapshot.
 *
 * All that can fail or take long is done first: finding out how to ask for the
 * suspended state, zeroing the bitmaps to come.  Then the queues are frozen,
 * in the caller's order, from the top of the stack down: a driver above may be
 * waiting for one below to finish, never the other way round.
 */
#include <linux/ktime.h>
#include <linux/mutex.h>
#include <linux/slab.h>

#include "module.h"

/**
 * struct part - one tracker's part in a switch
 * @tracker: attached; the tracker lock keeps it
 * @suspended: how to ask
 */
struct part {
	struct cbt_tracker *tracker;
	struct cbt_suspended suspended;
};

static struct gendisk *disk_of(const struct part *part)
{
	return part->tracker->hook->disk;
}

static void forget_frozen(struct cbt_tracker *tracker)
{
	struct cbt_bits_pair *pair = &tracker->bits[!tracker->active];

	tracker->frozen = false;
	if (!tracker->dirty)
		return;
	cbt_bitmap_zero(&pair->changed);
	cbt_bitmap_zero(&pair->discarded);
	tracker->dirty = false;
}

static int find_parts(struct part *parts, u32 count, const u32 *ids)
{
	u32 i, j;

	for (i = 0; i < count; i++) {
		parts[i].tracker = cbt_tracker_find(ids[i]);
		if (!parts[i].tracker)
			return -ENOENT;
		if (parts[i].tracker->interval == U32_MAX)
			return -EOVERFLOW;
		for (j = 0; j < i; j++)
			if (parts[j].tracker == parts[i].tracker)
				return -EINVAL;
	}
	return 0;
}

static int open_suspended(struct part *parts, u32 count, bool running)
{
	u32 i;
	int err;

	for (i = 0; i < count; i++) {
		err = cbt_suspended_open(&parts[i].suspended, disk_of(&parts[i]));
		if (err == -EOPNOTSUPP && running)
			continue;
		if (err) {
			cbt_err("%s: not a device-mapper volume, cannot be suspended\n",
				parts[i].tracker->name);
			return err;
		}
	}
	return 0;
}

/* True if all are suspended; complains about, or marks, those that are not. */
static bool ask_suspended(struct part *parts, u32 count, bool running)
{
	bool all = true;
	u32 i;

	for (i = 0; i < count; i++) {
		if (cbt_suspended_ask(&parts[i].suspended))
			continue;
		all = false;
		if (running)
			atomic_or(CBT_S_RUNNING, &parts[i].tracker->states);
		else
			cbt_err("%s: not suspended: a switch now would lose writes\n",
				parts[i].tracker->name);
	}
	return all;
}

static void thaw(struct part *parts, u32 count)
{
	while (count--)
		cbt_hook_thaw(disk_of(&parts[count]));
}

static int freeze(struct part *parts, u32 count)
{
	u32 i;
	int err;

	for (i = 0; i < count; i++) {
		err = cbt_hook_freeze(disk_of(&parts[i]));
		if (err) {
			thaw(parts, i);
			return err;
		}
	}
	return 0;
}

static void exchange(struct cbt_tracker *tracker)
{
	tracker->active ^= 1;
	tracker->interval++;
	tracker->since = ++tracker->hook->epoch;
	tracker->frozen = true;
	tracker->dirty = true;
	tracker->switches++;
}

static int switch_parts(struct cbt_switch *call, struct part *parts)
{
	bool running = call->flags & CBT_SWITCH_RUNNING;
	u32 count = call->count;
	bool suspended;
	u64 begin;
	u32 i;
	int err;

	for (i = 0; i < count; i++)
		forget_frozen(parts[i].tracker);
	begin = ktime_get_ns();
	err = freeze(parts, count);
	if (err)
		return err;
	suspended = ask_suspended(parts, count, running);
	if (suspended || running) {
		for (i = 0; i < count; i++)
			exchange(parts[i].tracker);
		call->seq = cbt_ring_next_seq(&call->time_ns);
	} else {
		err = -EBUSY;
	}
	thaw(parts, count);
	call->frozen_ns = ktime_get_ns() - begin;
	if (suspended)
		call->flags |= CBT_SWITCH_SUSPENDED;
	return err;
}

int cbt_tracker_switch(struct cbt_switch *call, const u32 *ids)
{
	bool running = call->flags & CBT_SWITCH_RUNNING;
	struct part *parts;
	u32 i;
	int err;

	parts = kcalloc(call->count, sizeof(*parts), GFP_KERNEL);
	if (!parts)
		return -ENOMEM;
	err = mutex_lock_killable(&cbt_tracker_lock);
	if (err)
		goto out;
	err = find_parts(parts, call->count, ids);
	if (!err)
		err = open_suspended(parts, call->count, running);
	/* Before anything is forgotten: an early no costs nothing. */
	if (!err && !running && !ask_suspended(parts, call->count, false))
		err = -EBUSY;
	if (!err)
		err = switch_parts(call, parts);
	for (i = 0; i < call->count; i++) {
		if (parts[i].tracker && !err)
			cbt_tracker_look(parts[i].tracker);
		cbt_suspended_close(&parts[i].suspended);
	}
	mutex_unlock(&cbt_tracker_lock);
out:
	kfree(parts);
	return err;
}

int cbt_tracker_clear(u32 id)
{
	struct cbt_tracker *tracker;
	int err = mutex_lock_killable(&cbt_tracker_lock);

	if (err)
		return err;
	tracker = cbt_tracker_find(id);
	if (tracker)
		forget_frozen(tracker);
	else
		err = -ENOENT;
	mutex_unlock(&cbt_tracker_lock);
	return err;
}
