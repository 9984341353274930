// SPDX-License-Identifier: GPL-2.0
/*
 * How trackers come and go: what may be tracked, the memory that it takes, and
 * the orderly end.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/log2.h>
#include <linux/major.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "module.h"

#define ID_MAX 65535
#define FLAGS (CBT_ATTACH_CONTINUE | CBT_ATTACH_UNCLEAN | CBT_ATTACH_NO_EVENTS | \
	       CBT_ATTACH_SINGLE | CBT_ATTACH_TABLES)

static u32 last_id;	/* tracker lock */

/* ---- what may be tracked ---- */

/*
 * A list of what may be hooked, not of what may not: a driver may know its
 * disks by the address of their operations and take a hooked one for another
 * driver's (nvme does so with its multipath heads, and crashes).  Device-mapper
 * and brd do not.
 */
static int check_driver(struct gendisk *disk)
{
	struct cbt_mapper mapper;
	int err;

	if (!disk->fops->submit_bio || queue_is_mq(disk->queue))
		return -EOPNOTSUPP;
	if (disk->major == RAMDISK_MAJOR)
		return 0;
	err = cbt_mapper_open(&mapper, disk);
	if (!err)
		cbt_mapper_close(&mapper);
	return err;
}

static int check_disk(struct block_device *bdev, struct cbt_why *why)
{
	int err = check_driver(bdev->bd_disk);

	if (err == -EOPNOTSUPP)
		return cbt_refuse(why, err,
				  "%pg: not a bio-based device-mapper volume; put a device-mapper linear target (LVM) on top and attach to that",
				  bdev);
	if (err)
		return err;
	if (blk_queue_dax(bdev->bd_disk->queue))
		return cbt_refuse(why, -EOPNOTSUPP,
				  "%pg: DAX writes would bypass the write handler", bdev);
	if (bdev_is_zoned(bdev))
		return cbt_refuse(why, -EOPNOTSUPP, "%pg: zoned devices are not tracked", bdev);
	if (!bdev_nr_bytes(bdev))
		return cbt_refuse(why, -ENODATA, "%pg: is empty; attach when its table is loaded",
				  bdev);
	return 0;
}

/* Would a file behind @fd be written to the volume itself? */
static int check_log(struct block_device *bdev, int fd, struct cbt_why *why)
{
	struct block_device *below;
	struct inode *inode;
	struct file *file;
	bool same;

	if (fd < 0)
		return 0;
	file = fget(fd);
	if (!file)
		return -EBADF;
	inode = file_inode(file);
	below = inode->i_sb->s_bdev;
	same = below && (below == bdev ||
			 (!bdev_is_partition(bdev) && below->bd_disk == bdev->bd_disk));
	if (S_ISBLK(inode->i_mode) && inode->i_rdev == bdev->bd_dev)
		same = true;
	fput(file);
	if (!same)
		return 0;
	return cbt_refuse(why, -ELOOP, "%pg: what is recorded would be saved on the tracked volume",
			  bdev);
}

static int check_call(const struct cbt_attach *call, struct cbt_why *why)
{
	bool given = memchr_inv(call->generation, 0, CBT_ID_BYTES);

	if ((call->role != CBT_ROLE_PHYSICAL && call->role != CBT_ROLE_SNAPSHOT) ||
	    !is_power_of_2(call->granularity) ||
	    call->granularity < CBT_GRANULARITY_MIN ||
	    call->granularity > CBT_GRANULARITY_MAX)
		return cbt_refuse(why, -EINVAL,
				  "attach: the role is 1 or 2, the granularity a power of two from 512 to 1048576");
	if (call->flags & ~FLAGS || memchr_inv(call->reserved, 0, sizeof(call->reserved)))
		return cbt_refuse(why, -EINVAL, "attach: unknown flags");
	if (given != !!(call->flags & CBT_ATTACH_CONTINUE))
		return cbt_refuse(why, -EINVAL,
				  "attach: a generation is given to go on with it, and only then");
	if (call->flags & CBT_ATTACH_CONTINUE && call->flags & CBT_ATTACH_UNCLEAN)
		return cbt_refuse(why, -EINVAL, "attach: what goes on is not unclean");
	return 0;
}

/* ---- memory ---- */

static void free_memory(struct cbt_tracker *tracker)
{
	int i;

	for (i = 0; i < 2; i++) {
		cbt_bitmap_free(&tracker->bits[i].changed);
		cbt_bitmap_free(&tracker->bits[i].discarded);
	}
	free_percpu(tracker->counts);
}

static int alloc_memory(struct cbt_tracker *tracker, struct cbt_why *why)
{
	int pairs = tracker->flags & CBT_ATTACH_SINGLE ? 1 : 2;
	u64 blocks = cbt_tracker_blocks(tracker);
	u64 memory = cbt_tracker_memory(tracker);
	int err = 0;
	int i;

	if (!cbt_memory_had(memory))
		err = -ENOMEM;
	for (i = 0; i < pairs && !err; i++) {
		err = cbt_bitmap_alloc(&tracker->bits[i].changed, blocks);
		if (!err)
			err = cbt_bitmap_alloc(&tracker->bits[i].discarded, blocks);
	}
	if (!err) {
		tracker->counts = alloc_percpu(struct cbt_counts);
		if (!tracker->counts)
			err = -ENOMEM;
	}
	if (!err)
		return 0;
	free_memory(tracker);
	return cbt_refuse(why, err,
			  "%s: its bitmaps take %llu bytes of memory, which cannot be had; a coarser granularity takes less",
			  tracker->name, memory);
}

/* ---- attach ---- */

static int fill_tracker(struct cbt_tracker *tracker, const struct cbt_attach *call)
{
	struct block_device *bdev = tracker->open.bdev;

	snprintf(tracker->name, sizeof(tracker->name), "%pg", bdev);
	tracker->role = call->role;
	tracker->flags = call->flags;
	tracker->shift = ilog2(call->granularity);
	tracker->partition = bdev_is_partition(bdev);
	tracker->start = tracker->partition ?
			 (u64)bdev->bd_start_sect << SECTOR_SHIFT : 0;
	tracker->size = bdev_nr_bytes(bdev);
	tracker->first_interval = call->interval;
	tracker->interval = call->interval;
	if (call->flags & CBT_ATTACH_UNCLEAN)
		atomic_or(CBT_S_UNCLEAN, &tracker->states);
	if (!(call->flags & CBT_ATTACH_CONTINUE))
		return cbt_generation_make(tracker->generation);
	atomic_or(CBT_S_LOADING, &tracker->states);
	memcpy(tracker->generation, call->generation, CBT_ID_BYTES);
	return 0;
}

static int check_generation(const struct cbt_tracker *tracker, struct cbt_why *why)
{
	struct cbt_tracker *other;

	list_for_each_entry(other, &cbt_trackers, all)
		if (!memcmp(other->generation, tracker->generation, CBT_ID_BYTES))
			return cbt_refuse(why, -EEXIST,
					  "%s: tracker %u of %s has this generation already",
					  tracker->name, other->id, other->name);
	return 0;
}

/* Under the tracker lock: gives it an id and puts it to work. */
static int install(struct cbt_tracker *tracker, struct cbt_why *why)
{
	int err;

	if (last_id == ID_MAX)
		return cbt_refuse(why, -ENOSPC, "all ids are used up: set the rings anew");
	err = check_generation(tracker, why);
	if (err)
		return err;
	tracker->id = last_id + 1;
	err = cbt_hook_add(tracker, why);
	if (err)
		return err;
	last_id++;
	list_add_tail(&tracker->all, &cbt_trackers);
	__module_get(THIS_MODULE);
	return 0;
}

static void tell(struct cbt_attach *call, const struct cbt_tracker *tracker)
{
	call->tracker = tracker->id;
	call->volume_size = tracker->size;
	call->bitmap_bytes = cbt_bitmap_bytes(cbt_tracker_blocks(tracker));
	call->memory = cbt_tracker_memory(tracker);
	memcpy(call->generation, tracker->generation, CBT_ID_BYTES);
	pr_info("%s: tracker %u attached, %llu bytes, %llu bytes of memory\n",
		tracker->name, tracker->id, call->volume_size, call->memory);
}

int cbt_attach(struct cbt_attach *call, dev_t dev, struct cbt_why *why)
{
	struct cbt_tracker *tracker;
	int err;

	err = check_call(call, why);
	if (err)
		return err;
	tracker = kzalloc(sizeof(*tracker), GFP_KERNEL);
	if (!tracker)
		return -ENOMEM;
	err = cbt_bdev_open(&tracker->open, dev);
	if (err)
		goto out_free;
	err = check_disk(tracker->open.bdev, why);
	if (!err)
		err = check_log(tracker->open.bdev, call->log_fd, why);
	if (!err)
		err = fill_tracker(tracker, call);
	if (err)
		goto out_close;
	err = alloc_memory(tracker, why);
	if (err)
		goto out_close;
	err = mutex_lock_killable(&cbt_tracker_lock);
	if (err)
		goto out_memory;
	err = install(tracker, why);
	if (!err)
		tell(call, tracker);
	mutex_unlock(&cbt_tracker_lock);
	if (!err)
		return 0;
out_memory:
	free_memory(tracker);
out_close:
	cbt_bdev_close(&tracker->open);
out_free:
	kfree(tracker);
	return err;
}

/* ---- the end ---- */

static int check_not_suspended(struct cbt_tracker *tracker, struct cbt_why *why)
{
	if (!cbt_mapper_suspended(&tracker->hook->mapper))
		return 0;
	return cbt_refuse(why, -EDEADLK,
			  "%s: is suspended, and closing it may wait for its resume; resume it first",
			  tracker->name);
}

int cbt_detach(u32 id, struct cbt_why *why)
{
	struct cbt_tracker *tracker;
	int err;

	err = mutex_lock_killable(&cbt_tracker_lock);
	if (err)
		return err;
	tracker = cbt_tracker_find(id);
	err = tracker ? check_not_suspended(tracker, why) : -ENOENT;
	if (!err)
		err = cbt_hook_remove(tracker, why);
	if (!err)
		list_del(&tracker->all);
	mutex_unlock(&cbt_tracker_lock);
	if (err)
		return err;
	pr_info("%s: tracker %u detached\n", tracker->name, id);
	free_memory(tracker);
	cbt_bdev_close(&tracker->open);
	kfree(tracker);
	module_put(THIS_MODULE);
	return 0;
}

int cbt_seal(u32 id, struct cbt_why *why)
{
	struct cbt_tracker *tracker;
	struct gendisk *disk;
	int err;

	err = mutex_lock_killable(&cbt_tracker_lock);
	if (err)
		return err;
	tracker = cbt_tracker_find(id);
	if (!tracker) {
		err = -ENOENT;
		goto out;
	}
	disk = tracker->hook->disk;
	err = cbt_hook_freeze(disk, why);
	if (err)
		goto out;
	tracker->sealed = true;
	cbt_hook_thaw(disk);
	atomic_or(CBT_S_SEALED, &tracker->states);
out:
	mutex_unlock(&cbt_tracker_lock);
	return err;
}

/* New rings, a new generation, ids from 1 again. */
int cbt_reset_rings(u64 events, struct cbt_why *why)
{
	int err;

	mutex_lock(&cbt_rings.lock);
	err = mutex_lock_killable(&cbt_tracker_lock);
	if (err)
		goto out;
	if (list_empty(&cbt_trackers))
		err = cbt_ring_set(events, why);
	else
		err = cbt_refuse(why, -EBUSY, "ring: a tracker is attached");
	if (!err)
		last_id = 0;
	mutex_unlock(&cbt_tracker_lock);
out:
	mutex_unlock(&cbt_rings.lock);
	return err;
}
