// SPDX-License-Identifier: GPL-2.0
/*
 * The alternate write handler.
 *
 * A disk points to its driver's block_device_operations.  A hook is a copy of
 * them with a submit_bio of ours, and the disk is made to point to the copy;
 * nothing of the driver is changed, and detaching puts its pointer back.  Our
 * submit_bio records a write in every tracker of the disk (the bits, then the
 * event) and then calls the driver's.
 *
 * The block layer calls submit_bio with a reference on the queue, so while the
 * queue is frozen nobody is inside: hooks are put in and taken out, and
 * trackers added, removed and switched, only then.
 *
 * A bio can come more than once.  A remainder of a split comes again within
 * the same submit (see remainder.c); what was deferred while the volume was
 * suspended, and the data of a flush, come again later from another task.  The
 * bits are set each time, in the interval then current: that is what makes a
 * switch under suspend sound.
 *
 * Memory of a hook is kept until the module is unloaded, because another CPU
 * may have loaded the pointer to its copy for some other operation.
 */
#include <linux/blk-mq.h>
#include <linux/hash.h>
#include <linux/hashtable.h>
#include <linux/rculist.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "module.h"
#include "record.h"

#define TABLE_BITS 6

static DEFINE_HASHTABLE(hooks, TABLE_BITS);
static LIST_HEAD(retired);

/* The last hook of each bucket, so that a submit need not search. */
static struct cbt_hook *latest[1 << TABLE_BITS];

static struct cbt_hook **latest_of(struct gendisk *disk)
{
	return &latest[hash_ptr(disk, TABLE_BITS)];
}

static noinline struct cbt_hook *search_hook(struct gendisk *disk)
{
	struct cbt_hook *hook, *found = NULL;

	rcu_read_lock();
	hash_for_each_possible_rcu(hooks, hook, node, (unsigned long)disk) {
		if (hook->disk == disk) {
			found = hook;
			break;
		}
	}
	rcu_read_unlock();
	return found;
}

/*
 * By the disk and not by container_of() on its operations: another module may
 * have laid a copy of ours over ours.  The caller holds the disk's queue or the
 * tracker lock, and so what is found; RCU is for the others in the bucket.
 * Memory of a hook stays, so the latest may be looked at without.
 */
static inline struct cbt_hook *find_hook(struct gendisk *disk)
{
	struct cbt_hook *hook = READ_ONCE(*latest_of(disk));

	if (likely(hook && READ_ONCE(hook->disk) == disk))
		return hook;
	return search_hook(disk);
}

static void show_hook(struct cbt_hook *hook)
{
	hash_add_rcu(hooks, &hook->node, (unsigned long)hook->disk);
	WRITE_ONCE(*latest_of(hook->disk), hook);
}

static void hide_hook(struct cbt_hook *hook)
{
	hash_del_rcu(&hook->node);
	if (*latest_of(hook->disk) == hook)
		WRITE_ONCE(*latest_of(hook->disk), NULL);
}

static void cbt_submit_bio(struct bio *bio)
{
	struct gendisk *disk = bio->bi_bdev->bd_disk;
	struct cbt_tracker *tracker;
	struct cbt_hook *hook;
	u64 epoch;

	hook = find_hook(disk);
	if (WARN_ON_ONCE(!hook)) {
		bio_io_error(bio);
		return;
	}
	if (!cbt_bio_writes(bio)) {
		hook->driver->submit_bio(bio);
		return;
	}
	epoch = cbt_remainders_take(&hook->remainders, bio);
	list_for_each_entry(tracker, &hook->trackers, on_hook)
		cbt_tracker_record(tracker, bio, epoch);
	hook->driver->submit_bio(bio);
	/* The bio may be gone; the disk and the hook stay: the queue is held. */
	cbt_remainders_note(&hook->remainders, disk, hook->epoch);
}

/*
 * Waits until no submit is inside the disk, and lets none in.  A limit, since
 * a driver may be waiting for something that the caller holds up.
 */
int cbt_hook_freeze(struct gendisk *disk, struct cbt_why *why)
{
	blk_freeze_queue_start(disk->queue);
	if (blk_mq_freeze_queue_wait_timeout(disk->queue, CBT_FREEZE_TIMEOUT) > 0)
		return 0;
	blk_mq_unfreeze_queue(disk->queue);
	return cbt_refuse(why, -EBUSY, "%s: cannot be frozen: a write is stuck in its driver",
			  disk->disk_name);
}

void cbt_hook_thaw(struct gendisk *disk)
{
	blk_mq_unfreeze_queue(disk->queue);
}

/* False when somebody has replaced our operations after us. */
bool cbt_hook_in_place(struct cbt_hook *hook)
{
	return READ_ONCE(hook->disk->fops) == &hook->ops;
}

/*
 * A hook out of use serves again where its copy of the operations is what is
 * wanted, to the last byte: somebody may still be reading it.
 */
static struct cbt_hook *make_hook(struct gendisk *disk)
{
	struct block_device_operations ops = *disk->fops;
	struct cbt_hook *hook;

	ops.submit_bio = cbt_submit_bio;
	cbt_drop_bypass(&ops);
	list_for_each_entry(hook, &retired, retired) {
		if (!memcmp(&hook->ops, &ops, sizeof(ops))) {
			list_del(&hook->retired);
			goto found;
		}
	}
	hook = kzalloc(sizeof(*hook), GFP_KERNEL);
	if (!hook)
		return NULL;
	hook->ops = ops;
found:
	WRITE_ONCE(hook->disk, disk);
	hook->driver = disk->fops;
	hook->epoch = 0;
	atomic64_set(&hook->tables, 0);
	atomic64_set(&hook->shrinks, 0);
	memset(&hook->remainders, 0, sizeof(hook->remainders));
	INIT_LIST_HEAD(&hook->trackers);
	return hook;
}

/*
 * Under the tracker lock.  The grace period lets those finish who walk the
 * bucket that the hook was in: submits to another disk, which our frozen queue
 * did not wait for.
 */
static void retire(struct cbt_hook *hook)
{
	synchronize_rcu();
	cbt_mapper_close(&hook->mapper);
	list_add(&hook->retired, &retired);
}

static int refuse_replaced(struct gendisk *disk, struct cbt_why *why)
{
	return cbt_refuse(why, -EBUSY, "%s: another module has replaced our write handler",
			  disk->disk_name);
}

static int open_mapper(struct cbt_hook *hook, struct cbt_why *why)
{
	int err = cbt_mapper_open(&hook->mapper, hook->disk);

	if (!err || err == -EOPNOTSUPP) /* brd is not device-mapper's */
		return 0;
	list_add(&hook->retired, &retired);
	return cbt_refuse(why, err, "%s: no memory for a hook", hook->disk->disk_name);
}

static int install(struct cbt_hook *hook, struct cbt_tracker *tracker, bool first,
		   struct cbt_why *why)
{
	int err = cbt_hook_freeze(hook->disk, why);

	if (err)
		return err;
	tracker->hook = hook;
	tracker->since = ++hook->epoch;
	tracker->tables = atomic64_read(&hook->tables);
	tracker->shrinks = atomic64_read(&hook->shrinks);
	list_add_tail(&tracker->on_hook, &hook->trackers);
	if (first)
		WRITE_ONCE(hook->disk->fops, &hook->ops);
	cbt_hook_thaw(hook->disk);
	return 0;
}

/* Under the tracker lock. */
int cbt_hook_add(struct cbt_tracker *tracker, struct cbt_why *why)
{
	struct gendisk *disk = tracker->open.bdev->bd_disk;
	struct cbt_hook *hook = find_hook(disk);
	bool first = !hook;
	int err;

	if (!first && !cbt_hook_in_place(hook))
		return refuse_replaced(disk, why);
	if (first) {
		hook = make_hook(disk);
		if (!hook)
			return cbt_refuse(why, -ENOMEM, "%s: no memory for a hook",
					  disk->disk_name);
		err = open_mapper(hook, why);
		if (err)
			return err;
		show_hook(hook);
	}
	err = install(hook, tracker, first, why);
	if (err && first) {
		hide_hook(hook);
		retire(hook);
	}
	return err;
}

/*
 * With the queue frozen: may the driver's operations be put back?  They may be
 * there already, put back by somebody who had laid his own under ours.
 */
static bool removable(struct cbt_hook *hook)
{
	return cbt_hook_in_place(hook) || READ_ONCE(hook->disk->fops) == hook->driver;
}

/* Under the tracker lock. */
int cbt_hook_remove(struct cbt_tracker *tracker, struct cbt_why *why)
{
	struct cbt_hook *hook = tracker->hook;
	struct gendisk *disk = hook->disk;
	bool last = list_is_singular(&hook->trackers);
	int err = cbt_hook_freeze(disk, why);

	if (err)
		return err;
	if (last && !removable(hook))
		err = refuse_replaced(disk, why);
	else
		err = cbt_tracker_missed(tracker, why);
	if (err) {
		cbt_hook_thaw(disk);
		return err;
	}
	list_del(&tracker->on_hook);
	if (last) {
		WRITE_ONCE(disk->fops, hook->driver);
		hide_hook(hook);
	}
	cbt_hook_thaw(disk);
	if (last)
		retire(hook);
	return 0;
}

/* From a probe: nothing may be waited for. */
void cbt_hook_table_exchanged(struct gendisk *disk, bool smaller)
{
	struct cbt_hook *hook = find_hook(disk);

	if (!hook)
		return;
	atomic64_inc(&hook->tables);
	if (smaller)
		atomic64_inc(&hook->shrinks);
}

/*
 * At the end of the module, when no tracker is left.  A task that was preempted
 * between the loads of a disk's operations and of one of them may still use
 * the copy: it has not slept since.
 */
void cbt_hook_free_retired(void)
{
	struct cbt_hook *hook, *next;

	synchronize_rcu_tasks();
	synchronize_rcu();
	list_for_each_entry_safe(hook, next, &retired, retired)
		kfree(hook);
}
