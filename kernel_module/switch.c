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
 * So the volumes are held: none of them can be resumed until the switch is
 * done.  Then the queues are frozen, in the caller's order, from the top of the
 * stack down: a driver above may be waiting for one below to finish, never the
 * other way round.  The bitmaps to come were zeroed when the last ones were
 * cleared, so that all of this takes as long on a large volume as on a small.
 */
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "module.h"

/* How often to look, while waiting for a suspend: it may last a few ms only. */
#define LOOK_MIN_US 100
#define LOOK_MAX_US 300

/**
 * struct part - one tracker's part in a switch
 * @tracker: attached; the tracker lock keeps it
 * @hold: keeps its volume from being resumed; NULL or an error: does not
 */
struct part {
	struct cbt_tracker *tracker;
	struct cbt_hold *hold;
};

static struct gendisk *disk_of(const struct part *part)
{
	return part->tracker->hook->disk;
}

static int check_part(const struct part *part, struct cbt_why *why)
{
	const struct cbt_tracker *tracker = part->tracker;

	if (tracker->flags & CBT_ATTACH_SINGLE)
		return cbt_refuse(why, -EINVAL, "%s: was attached for a single interval",
				  tracker->name);
	if (tracker->sealed)
		return cbt_refuse(why, -ESTALE, "%s: is sealed", tracker->name);
	if (atomic_read(&tracker->states) & CBT_S_LOADING)
		return cbt_refuse(why, -EBUSY, "%s: its earlier bits are not all back",
				  tracker->name);
	if (tracker->dirty)
		return cbt_refuse(why, -EEXIST,
				  "%s: interval %u was not cleared; save its bitmaps and clear them",
				  tracker->name, tracker->interval - 1);
	if (tracker->interval == U32_MAX)
		return -EOVERFLOW;
	return 0;
}

static int find_parts(struct part *parts, u32 count, const u32 *ids, struct cbt_why *why)
{
	u32 i, j;
	int err;

	for (i = 0; i < count; i++) {
		parts[i].tracker = cbt_tracker_find(ids[i]);
		if (!parts[i].tracker)
			return -ENOENT;
		err = check_part(&parts[i], why);
		if (err)
			return err;
		for (j = 0; j < i; j++)
			if (parts[j].tracker == parts[i].tracker)
				return -EINVAL;
	}
	return 0;
}

static struct cbt_mapper *mapper_of(const struct part *part)
{
	return &part->tracker->hook->mapper;
}

static int check_mappers(struct part *parts, u32 count, struct cbt_why *why)
{
	u32 i;

	for (i = 0; i < count; i++)
		if (!mapper_of(&parts[i])->md)
			return cbt_refuse(why, -EOPNOTSUPP,
					  "%s: not a device-mapper volume, cannot be suspended",
					  parts[i].tracker->name);
	return 0;
}

/* The first that is not suspended, or NULL. */
static struct cbt_tracker *find_running(struct part *parts, u32 count)
{
	u32 i;

	for (i = 0; i < count; i++)
		if (!cbt_mapper_suspended(mapper_of(&parts[i])))
			return parts[i].tracker;
	return NULL;
}

/* EAGAIN: one is not suspended; why says which. */
static int check_suspended(struct part *parts, u32 count, struct cbt_why *why)
{
	struct cbt_tracker *running = find_running(parts, count);

	if (!running)
		return 0;
	snprintf(why->text, sizeof(why->text),
		 "%s: not suspended: a switch now would lose writes", running->name);
	return -EAGAIN;
}

/*
 * Asked before and after: holding a volume that is not suspended would suspend
 * it, which is right only where it was resumed in between.
 */
static int hold(struct part *parts, u32 count, struct cbt_why *why)
{
	int err = check_suspended(parts, count, why);
	u32 i;

	for (i = 0; i < count && !err; i++) {
		parts[i].hold = cbt_mapper_hold(mapper_of(&parts[i]));
		err = PTR_ERR_OR_ZERO(parts[i].hold);
		if (err == -EBUSY)
			cbt_refuse(why, err,
				   "%s: a resume of it is stuck; name the topmost volume first, and resume from the bottom up",
				   parts[i].tracker->name);
	}
	return err ?: check_suspended(parts, count, why);
}

static void release(struct part *parts, u32 count)
{
	while (count--) {
		cbt_mapper_release(parts[count].hold);
		parts[count].hold = NULL;
	}
}

static void mark_running(struct part *parts, u32 count)
{
	u32 i;

	for (i = 0; i < count; i++)
		if (!cbt_mapper_suspended(mapper_of(&parts[i])))
			atomic_or(CBT_S_RUNNING, &parts[i].tracker->states);
}

static void thaw(struct part *parts, u32 count)
{
	while (count--)
		cbt_hook_thaw(disk_of(&parts[count]));
}

static int freeze(struct part *parts, u32 count, struct cbt_why *why)
{
	u32 i;
	int err;

	for (i = 0; i < count; i++) {
		err = cbt_hook_freeze(disk_of(&parts[i]), why);
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
	tracker->dirty = 2 * cbt_bitmap_memory(cbt_tracker_blocks(tracker));
	tracker->switches++;
}

static int switch_parts(struct cbt_switch *call, struct part *parts, struct cbt_why *why)
{
	u64 begin = ktime_get_ns();
	u32 i;
	int err;

	err = freeze(parts, call->count, why);
	if (err)
		return err;
	if (call->flags & CBT_SWITCH_RUNNING)
		mark_running(parts, call->count);
	for (i = 0; i < call->count; i++)
		exchange(parts[i].tracker);
	call->seq = cbt_ring_next_seq(&call->time_ns);
	thaw(parts, call->count);
	call->frozen_ns = ktime_get_ns() - begin;
	return 0;
}

/* EAGAIN: not suspended. */
static int switch_held(struct cbt_switch *call, struct part *parts, struct cbt_why *why)
{
	int err = check_mappers(parts, call->count, why);

	if (err)
		return err;
	err = hold(parts, call->count, why);
	if (!err)
		err = switch_parts(call, parts, why);
	release(parts, call->count);
	if (!err)
		call->flags |= CBT_SWITCH_SUSPENDED;
	return err;
}

static int try_switch(struct cbt_switch *call, const u32 *ids, struct part *parts,
		      struct cbt_why *why)
{
	u32 i;
	int err;

	memset(parts, 0, call->count * sizeof(*parts));
	err = mutex_lock_killable(&cbt_tracker_lock);
	if (err)
		return err;
	err = find_parts(parts, call->count, ids, why);
	if (!err && call->flags & CBT_SWITCH_RUNNING)
		err = switch_parts(call, parts, why);
	else if (!err)
		err = switch_held(call, parts, why);
	for (i = 0; i < call->count && !err; i++)
		cbt_tracker_look(parts[i].tracker);
	mutex_unlock(&cbt_tracker_lock);
	return err;
}

/* The tracker lock is free while this waits: others read and save meanwhile. */
int cbt_switch(struct cbt_switch *call, const u32 *ids, struct cbt_why *why)
{
	unsigned long end = jiffies + msecs_to_jiffies(call->wait_ms);
	struct part *parts;
	int err;

	parts = kcalloc(call->count, sizeof(*parts), GFP_KERNEL);
	if (!parts)
		return -ENOMEM;
	for (;;) {
		err = try_switch(call, ids, parts, why);
		if (err != -EAGAIN)
			break;
		if (!call->wait_ms) {
			pr_err_ratelimited("%s\n", why->text);
			err = -EBUSY;
			break;
		}
		if (time_after(jiffies, end)) {
			err = cbt_refuse(why, -ETIMEDOUT, "nobody suspended the volumes in time");
			break;
		}
		if (signal_pending(current)) {
			why->text[0] = 0;
			err = -EINTR;
			break;
		}
		usleep_range(LOOK_MIN_US, LOOK_MAX_US);
	}
	kfree(parts);
	return err;
}
