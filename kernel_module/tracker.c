// SPDX-License-Identifier: GPL-2.0
/*
 * Trackers: attach, record, read, detach.  How intervals are switched is in
 * switch.c.
 */
#include <linux/fs.h>
#include <linux/file.h>
#include <linux/log2.h>
#include <linux/major.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/random.h>
#include <linux/slab.h>

#include "module.h"

#define ID_MAX 65535

/* Outermost lock of the module: trackers, their ids, and what is installed. */
DEFINE_MUTEX(cbt_tracker_lock);
static LIST_HEAD(trackers);	/* by rising id */
static u32 last_id;

/* ---- recording: called by the hook with the queue held ---- */

static void note_growth(struct cbt_tracker *tracker, u64 end)
{
	s64 old = atomic64_read(&tracker->grown_to);

	while (end > (u64)old && !atomic64_try_cmpxchg(&tracker->grown_to, &old, end))
		;
	atomic_or(CBT_S_GREW, &tracker->states);
}

/*
 * Changed: every block that the range touches.  Discarded: of a discard the
 * blocks that it covers whole (the last one of the volume may be short), and a
 * touch of any other kind takes a block out again.
 */
static void mark(struct cbt_tracker *tracker, u8 op, u64 from, u64 to)
{
	struct cbt_bits_pair *bits = &tracker->bits[tracker->active];
	u64 mask = (1ULL << tracker->shift) - 1;
	u64 first = from >> tracker->shift;
	u64 end = (to + mask) >> tracker->shift;
	u64 whole_first, whole_end;

	cbt_bitmap_set(&bits->changed, first, end);
	if (op != CBT_OP_DISCARD && op != CBT_OP_SECURE_ERASE) {
		cbt_bitmap_clear(&bits->discarded, first, end);
		return;
	}
	whole_first = (from + mask) >> tracker->shift;
	whole_end = to == tracker->size ? end : to >> tracker->shift;
	cbt_bitmap_clear(&bits->discarded, first, min(whole_first, end));
	cbt_bitmap_clear(&bits->discarded, max(whole_end, first), end);
	cbt_bitmap_set(&bits->discarded, whole_first, whole_end);
}

/*
 * @whole: the operation with its range on the disk.  @again: it is the
 * remainder of one that came at @epoch of the hook.
 */
void cbt_tracker_record(struct cbt_tracker *tracker, const struct cbt_event *whole,
			bool again, u64 epoch)
{
	struct cbt_event event = *whole;
	u64 from = whole->offset;
	u64 to = whole->offset + whole->length;

	if (tracker->partition) {
		u64 end = tracker->start + bdev_nr_bytes(tracker->open.bdev);

		from = max(from, tracker->start);
		to = min(to, end);
		if (from >= to)
			return;
	}
	event.offset = from - tracker->start;
	event.length = to - from;
	if (event.known & CBT_K_INODE_OFFSET)
		event.inode_offset += from - whole->offset;
	to -= tracker->start;
	if (to > tracker->size)
		note_growth(tracker, to);
	if (event.offset < tracker->size)
		mark(tracker, event.op, event.offset, min(to, tracker->size));

	event.tracker = tracker->id;
	event.interval = tracker->interval;
	atomic64_inc(&tracker->events);
	if (again && epoch >= tracker->since) {
		event.flags |= CBT_F_REMAINDER;
		atomic64_inc(&tracker->remainders);
	} else {
		atomic64_add(event.length, &tracker->bytes);
	}
	if (event.op == CBT_OP_DISCARD || event.op == CBT_OP_SECURE_ERASE)
		atomic64_inc(&tracker->discards);
	cbt_ring_push(&event);
}

/* ---- attach and detach ---- */

/* Under the tracker lock. */
struct cbt_tracker *cbt_tracker_find(u32 id)
{
	struct cbt_tracker *tracker;

	list_for_each_entry(tracker, &trackers, all)
		if (tracker->id == id)
			return tracker;
	return NULL;
}

/*
 * A list of what may be hooked, not of what may not: a driver may know its
 * disks by the address of their operations and take a hooked one for another
 * driver's (nvme does so with its multipath heads, and crashes).  Device-mapper
 * and brd do not.
 */
static int check_driver(struct gendisk *disk)
{
	struct cbt_suspended state;
	int err;

	if (!disk->fops->submit_bio || queue_is_mq(disk->queue))
		return -EOPNOTSUPP;
	if (disk->major == RAMDISK_MAJOR)
		return 0;
	err = cbt_suspended_open(&state, disk);
	if (!err)
		cbt_suspended_close(&state);
	return err;
}

static int check_disk(struct block_device *bdev)
{
	struct gendisk *disk = bdev->bd_disk;
	int err = check_driver(disk);

	if (err) {
		cbt_err("%pg: not a bio-based device-mapper volume; put a device-mapper linear target (LVM) on top and attach to that\n",
			bdev);
		return err;
	}
	if (blk_queue_dax(disk->queue)) {
		cbt_err("%pg: DAX writes would bypass the write handler\n", bdev);
		return -EOPNOTSUPP;
	}
	if (bdev_is_zoned(bdev)) {
		cbt_err("%pg: zoned devices are not tracked\n", bdev);
		return -EOPNOTSUPP;
	}
	if (!bdev_nr_bytes(bdev)) {
		cbt_err("%pg: is empty; attach when its table is loaded\n", bdev);
		return -ENODATA;
	}
	return 0;
}

/* Would a file behind @fd be written to the volume itself? */
static int check_log(struct block_device *bdev, int fd)
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
	cbt_err("%pg: the events would be saved on the tracked volume\n", bdev);
	return -ELOOP;
}

static u64 blocks_of(struct cbt_tracker *tracker)
{
	u64 mask = (1ULL << tracker->shift) - 1;

	return (tracker->size + mask) >> tracker->shift;
}

static u64 memory_of(struct cbt_tracker *tracker)
{
	return 4 * cbt_bitmap_memory(blocks_of(tracker));
}

static void free_bits(struct cbt_tracker *tracker)
{
	int i;

	for (i = 0; i < 2; i++) {
		cbt_bitmap_free(&tracker->bits[i].changed);
		cbt_bitmap_free(&tracker->bits[i].discarded);
	}
}

static int alloc_bits(struct cbt_tracker *tracker)
{
	u64 blocks = blocks_of(tracker);
	u64 memory = memory_of(tracker);
	int err = 0;
	int i;

	if (memory > (u64)si_mem_available() << PAGE_SHIFT)
		err = -ENOMEM;
	for (i = 0; i < 2 && !err; i++) {
		err = cbt_bitmap_alloc(&tracker->bits[i].changed, blocks);
		if (!err)
			err = cbt_bitmap_alloc(&tracker->bits[i].discarded, blocks);
	}
	if (err) {
		cbt_err("%s: its bitmaps take %llu bytes of memory, which cannot be had; a coarser granularity takes less\n",
			tracker->name, memory);
		free_bits(tracker);
	}
	return err;
}

static void fill_tracker(struct cbt_tracker *tracker, const struct cbt_attach *call)
{
	struct block_device *bdev = tracker->open.bdev;

	snprintf(tracker->name, sizeof(tracker->name), "%pg", bdev);
	get_random_bytes(tracker->generation, sizeof(tracker->generation));
	tracker->role = call->role;
	tracker->shift = ilog2(call->granularity);
	tracker->partition = bdev_is_partition(bdev);
	tracker->start = tracker->partition ?
			 (u64)bdev->bd_start_sect << SECTOR_SHIFT : 0;
	tracker->size = bdev_nr_bytes(bdev);
	tracker->first_interval = call->interval;
	tracker->interval = call->interval;
}

static bool attach_call_valid(const struct cbt_attach *call)
{
	return (call->role == CBT_ROLE_PHYSICAL || call->role == CBT_ROLE_SNAPSHOT) &&
	       is_power_of_2(call->granularity) &&
	       call->granularity >= CBT_GRANULARITY_MIN &&
	       call->granularity <= CBT_GRANULARITY_MAX &&
	       !call->reserved[0] && !call->reserved[1] && !call->reserved[2] &&
	       !call->reserved2;
}

/* Under the tracker lock: gives it an id and puts it to work. */
static int install(struct cbt_tracker *tracker)
{
	int err;

	if (last_id == ID_MAX)
		return -ENOSPC;
	tracker->id = last_id + 1;
	err = cbt_hook_add(tracker);
	if (err)
		return err;
	last_id++;
	list_add_tail(&tracker->all, &trackers);
	__module_get(THIS_MODULE);
	return 0;
}

int cbt_tracker_attach(struct cbt_attach *call, dev_t dev)
{
	struct cbt_tracker *tracker;
	int err;

	if (!attach_call_valid(call)) {
		cbt_err("attach: the role is 1 or 2, the granularity a power of two from 512 to 1048576\n");
		return -EINVAL;
	}
	tracker = kzalloc(sizeof(*tracker), GFP_KERNEL);
	if (!tracker)
		return -ENOMEM;
	err = cbt_bdev_open(&tracker->open, dev);
	if (err)
		goto out_free;
	err = check_disk(tracker->open.bdev);
	if (!err)
		err = check_log(tracker->open.bdev, call->log_fd);
	if (err)
		goto out_close;
	fill_tracker(tracker, call);
	err = alloc_bits(tracker);
	if (err)
		goto out_close;
	err = mutex_lock_killable(&cbt_tracker_lock);
	if (err)
		goto out_bits;
	err = install(tracker);
	if (!err) {
		call->tracker = tracker->id;
		call->volume_size = tracker->size;
		call->bitmap_bytes = cbt_bitmap_bytes(blocks_of(tracker));
		call->memory = memory_of(tracker);
		pr_info("%s: tracker %u attached, %llu bytes, %llu bytes of memory\n",
			tracker->name, tracker->id, call->volume_size, call->memory);
	}
	mutex_unlock(&cbt_tracker_lock);
	if (!err)
		return 0;
out_bits:
	free_bits(tracker);
out_close:
	cbt_bdev_close(&tracker->open);
out_free:
	kfree(tracker);
	return err;
}

int cbt_tracker_detach(u32 id)
{
	struct cbt_tracker *tracker;
	int err;

	err = mutex_lock_killable(&cbt_tracker_lock);
	if (err)
		return err;
	tracker = cbt_tracker_find(id);
	if (!tracker) {
		mutex_unlock(&cbt_tracker_lock);
		return -ENOENT;
	}
	err = cbt_hook_remove(tracker);
	if (!err)
		list_del(&tracker->all);
	mutex_unlock(&cbt_tracker_lock);
	if (err)
		return err;
	pr_info("%s: tracker %u detached\n", tracker->name, id);
	free_bits(tracker);
	cbt_bdev_close(&tracker->open);
	kfree(tracker);
	module_put(THIS_MODULE);
	return 0;
}

/* ---- reading ---- */

#define BITS_AT_ONCE 0x100000

static int copy_bits(struct cbt_tracker *tracker, struct cbt_bits *call, void *buffer)
{
	bool frozen = call->which == CBT_BITS_FROZEN;
	struct cbt_bits_pair *pair = &tracker->bits[tracker->active ^ frozen];
	struct cbt_bitmap *map = call->kind == CBT_BITS_DISCARDED ? &pair->discarded :
								    &pair->changed;
	u64 bytes = cbt_bitmap_bytes(map->blocks);

	if (frozen && !tracker->frozen)
		return -ENODATA;
	if (call->offset > bytes)
		return -EINVAL;
	call->length = min(call->length, bytes - call->offset);
	call->interval = tracker->interval - frozen;
	memcpy(buffer, (char *)map->words + call->offset, call->length);
	return 0;
}

/*
 * Through a buffer of our own: a page fault on the caller's may wait for the
 * very volume that waits for a switch, which waits for the tracker lock.
 */
int cbt_tracker_bits(struct cbt_bits *call)
{
	struct cbt_tracker *tracker;
	void *buffer;
	int err;

	if (call->which > CBT_BITS_FROZEN || call->kind > CBT_BITS_DISCARDED ||
	    call->reserved[0] || call->reserved[1] || call->reserved2)
		return -EINVAL;
	call->length = min_t(u64, call->length, BITS_AT_ONCE);
	buffer = kvmalloc(max_t(u64, call->length, 1), GFP_KERNEL);
	if (!buffer)
		return -ENOMEM;
	err = mutex_lock_killable(&cbt_tracker_lock);
	if (err)
		goto out;
	tracker = cbt_tracker_find(call->tracker);
	err = tracker ? copy_bits(tracker, call, buffer) : -ENOENT;
	mutex_unlock(&cbt_tracker_lock);
	if (!err && copy_to_user(u64_to_user_ptr(call->buffer), buffer, call->length))
		err = -EFAULT;
out:
	kvfree(buffer);
	return err;
}

/* States that show only when somebody looks; sticky from then on. */
void cbt_tracker_look(struct cbt_tracker *tracker)
{
	struct block_device *bdev = tracker->open.bdev;

	if (bdev_nr_bytes(bdev) < tracker->size)
		atomic_or(CBT_S_SHRANK, &tracker->states);
	if (!cbt_hook_in_place(tracker->hook))
		atomic_or(CBT_S_UNHOOKED, &tracker->states);
	if (test_bit(GD_DEAD, &bdev->bd_disk->state))
		atomic_or(CBT_S_GONE, &tracker->states);
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
	status->switches = tracker->switches;
	status->volume_size = tracker->size;
	status->current_size = bdev_nr_bytes(bdev);
	status->grown_to = atomic64_read(&tracker->grown_to);
	status->bitmap_bytes = cbt_bitmap_bytes(blocks_of(tracker));
	status->memory = memory_of(tracker);
	status->events = atomic64_read(&tracker->events);
	status->bytes = atomic64_read(&tracker->bytes);
	status->discards = atomic64_read(&tracker->discards);
	status->remainders = atomic64_read(&tracker->remainders);
}

int cbt_tracker_status(struct cbt_status *status)
{
	struct cbt_tracker *tracker;
	bool next = status->flags & CBT_STATUS_NEXT;
	int err;

	if (status->flags & ~CBT_STATUS_NEXT)
		return -EINVAL;
	err = mutex_lock_killable(&cbt_tracker_lock);
	if (err)
		return err;
	err = -ENOENT;
	list_for_each_entry(tracker, &trackers, all) {
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
	list_for_each(at, &trackers)
		info->trackers++;
	mutex_unlock(&cbt_tracker_lock);
	cbt_ring_info(info);
	return 0;
}

/* A new ring, a new generation, ids from 1 again. */
int cbt_tracker_ring(u64 events)
{
	int err = mutex_lock_killable(&cbt_tracker_lock);

	if (err)
		return err;
	err = list_empty(&trackers) ? cbt_ring_set(events) : -EBUSY;
	if (!err)
		last_id = 0;
	mutex_unlock(&cbt_tracker_lock);
	return err;
}
