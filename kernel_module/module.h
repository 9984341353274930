/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the objects of cbt.ko share.  From top to bottom: chardev.c takes the
 * calls of user space, attach.c, bits.c and switch.c carry them out on the
 * trackers of tracker.c, hook.c stands between the block layer and a driver and
 * records (record.h) what passes, mapper.c and table.c ask device-mapper,
 * event.c tells what a bio is, bitmap.c and ring.c hold what was recorded.
 * What every write passes is inline, in headers.
 *
 * Locks, outermost first:
 *   tracker lock    a mutex in tracker.c: which trackers and hooks there are.
 *                   Held across every call but those about events.
 *   dm's suspend    device-mapper's own lock of a volume, taken and left
 *                   within its functions that mapper.c calls.
 *   frozen queue    what a submit reads (a hook's trackers, their active
 *                   bitmaps and intervals) changes only while the disk's queue
 *                   is frozen; a submit holds a reference on the queue, and so
 *                   needs no lock.  Nothing between freeze and thaw may touch
 *                   user memory; all calls run under memalloc_noio.
 * Outside of the tracker lock, so that nobody who holds that waits for it:
 *   ring lock       a mutex in ring.c: who reads, and that the rings stay.
 *                   A submit needs no lock: it has its CPU's ring to itself
 *                   while it cannot be preempted.
 */
#ifndef CBT_MODULE_H
#define CBT_MODULE_H

#include <linux/atomic.h>
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/printk.h>
#include <linux/types.h>

#include "bitmap.h"
#include "cbt.h"
#include "compat.h"
#include "event.h"
#include "remainder.h"
#include "ring.h"
#include "why.h"

#undef pr_fmt
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

/* Of a frozen queue, and of device-mapper's lock. */
#define CBT_FREEZE_TIMEOUT (5 * HZ)

#if BITS_PER_LONG != 64 || !defined(__LITTLE_ENDIAN)
#error "bitmaps and rings are laid out for 64-bit little-endian machines"
#endif

/* ---- generation.c ---- */

int cbt_generation_make(u8 *generation);

/* ---- mapper.c ---- */

struct attribute;
struct cbt_hold;
struct kernfs_node;
struct kobject;
struct mapped_device;

/**
 * struct cbt_mapper - a disk as device-mapper knows it
 * @md: it, with a reference; NULL: not device-mapper's
 * @node: the folder "dm" of the disk in sysfs, held
 * @kobject: behind @node
 * @attribute: "suspended" in it
 * @page: its answer; tracker lock
 */
struct cbt_mapper {
	struct mapped_device *md;
	struct kernfs_node *node;
	struct kobject *kobject;
	struct attribute *attribute;
	char *page;
};

int cbt_mapper_init(void);
void cbt_mapper_exit(void);
int cbt_mapper_open(struct cbt_mapper *mapper, struct gendisk *disk);
bool cbt_mapper_suspended(struct cbt_mapper *mapper);
struct cbt_hold *cbt_mapper_hold(struct cbt_mapper *mapper);
void cbt_mapper_release(struct cbt_hold *hold);
void cbt_mapper_close(struct cbt_mapper *mapper);

/* ---- table.c ---- */

void cbt_table_watch(void);
void cbt_table_unwatch(void);
bool cbt_table_watched(void);

/* ---- hook.c ---- */

/**
 * struct cbt_hook - the alternate write handler of one disk
 * @node: in the table by disk; added and taken off under the tracker lock,
 *	searched under RCU
 * @retired: in the list of hooks that are no longer installed; tracker lock
 * @disk: held open by the trackers
 * @driver: the driver's own operations, put back at the end
 * @ops: the copy that the disk points to meanwhile
 * @mapper: @disk, as long as the hook is installed
 * @trackers: of this disk; changes only while the queue is frozen
 * @epoch: counts attaches and switches on this disk; likewise
 * @tables: exchanges of the disk's device-mapper table; atomic
 * @shrinks: of @tables, those by a smaller one
 * @remainders: bios that were split and will be seen again
 */
struct cbt_hook {
	struct hlist_node node;
	struct list_head retired;
	struct gendisk *disk;
	const struct block_device_operations *driver;
	struct block_device_operations ops;
	struct cbt_mapper mapper;
	struct list_head trackers;
	u64 epoch;
	atomic64_t tables;
	atomic64_t shrinks;
	struct cbt_remainders remainders;
};

struct cbt_tracker;

int cbt_hook_add(struct cbt_tracker *tracker, struct cbt_why *why);
int cbt_hook_remove(struct cbt_tracker *tracker, struct cbt_why *why);
bool cbt_hook_in_place(struct cbt_hook *hook);
int cbt_hook_freeze(struct gendisk *disk, struct cbt_why *why);
void cbt_hook_thaw(struct gendisk *disk);
void cbt_hook_table_exchanged(struct gendisk *disk, bool smaller);
void cbt_hook_free_retired(void);

/* ---- tracker.c ---- */

/**
 * struct cbt_bits_pair - what is kept of one interval
 * @changed: blocks written in any way
 * @discarded: whole blocks whose last operation was a discard
 * @discards: whether there is one in @discarded; never false too late
 */
struct cbt_bits_pair {
	struct cbt_bitmap changed;
	struct cbt_bitmap discarded;
	bool discards;
};

/**
 * struct cbt_counts - one CPU's part of a tracker's counts
 * @events: operations recorded
 * @bytes: their lengths, remainders left out
 * @discards: of @events
 * @remainders: of @events
 */
struct cbt_counts {
	u64 events;
	u64 bytes;
	u64 discards;
	u64 remainders;
};

/**
 * struct cbt_tracker - one volume, followed
 * @id: as user space knows it
 * @all: in the list of all; tracker lock
 * @open: the volume, held open for reading
 * @hook: shared with the other trackers of its disk
 * @on_hook: in @hook->trackers; frozen queue
 * @generation: of its bitmaps
 * @name: of the volume
 * @role: CBT_ROLE_*
 * @shift: log2 of the granularity
 * @flags: CBT_ATTACH_*
 * @start: of the volume on its disk, bytes
 * @size: of the volume when attached, bytes
 * @partition: whether the volume is a part of its disk
 * @sealed: records no more; frozen queue
 * @told: that a sealed tracker's volume was written; tracker lock
 * @first_interval: as given at attach
 * @interval: current; frozen queue
 * @active: index into @bits of the current interval's; frozen queue
 * @since: @hook->epoch at attach or the last switch; frozen queue
 * @bits: the two intervals' bitmaps; with CBT_ATTACH_SINGLE only the first
 * @loaded: bytes of bitmaps that were brought back; tracker lock
 * @frozen: the other pair of @bits holds @interval - 1; tracker lock
 * @dirty: bytes of that pair that are still to be cleared; tracker lock
 * @switches: made; tracker lock
 * @tables: @hook->tables at attach
 * @shrinks: @hook->shrinks at attach
 * @states: CBT_S_*, sticky, atomic
 * @grown_to: see struct cbt_status
 * @counts: a CPU each
 */
struct cbt_tracker {
	u32 id;
	struct list_head all;
	struct cbt_bdev open;
	struct cbt_hook *hook;
	struct list_head on_hook;
	u8 generation[CBT_ID_BYTES];
	char name[CBT_NAME_BYTES];
	u8 role;
	u8 shift;
	u32 flags;
	u64 start;
	u64 size;
	bool partition;
	bool sealed;
	bool told;
	u32 first_interval;
	u32 interval;
	unsigned int active;
	u64 since;
	struct cbt_bits_pair bits[2];
	u64 loaded;
	bool frozen;
	u64 dirty;
	u64 switches;
	s64 tables;
	s64 shrinks;
	atomic_t states;
	atomic64_t grown_to;
	struct cbt_counts __percpu *counts;
};

/* Sticky; a busy line of memory stays shared. */
static inline void cbt_tracker_set_state(struct cbt_tracker *tracker, int state)
{
	if (!(atomic_read(&tracker->states) & state))
		atomic_or(state, &tracker->states);
}

/* The tracker lock, and what is looked up under it. */
extern struct mutex cbt_tracker_lock;
extern struct list_head cbt_trackers;
struct cbt_tracker *cbt_tracker_find(u32 id);

/* Three quarters of what is to be had: the rest is for those who need some later. */
static inline bool cbt_memory_had(u64 bytes)
{
	u64 available = (u64)si_mem_available() << PAGE_SHIFT;

	return bytes <= available - available / 4;
}

u64 cbt_tracker_blocks(const struct cbt_tracker *tracker);
u64 cbt_tracker_memory(const struct cbt_tracker *tracker);
void cbt_tracker_look(struct cbt_tracker *tracker);
int cbt_tracker_missed(struct cbt_tracker *tracker, struct cbt_why *why);
int cbt_tracker_status(struct cbt_status *status);
int cbt_tracker_info(struct cbt_info *info);

/* ---- attach.c ---- */

int cbt_attach(struct cbt_attach *call, dev_t dev, struct cbt_why *why);
int cbt_detach(u32 id, struct cbt_why *why);
int cbt_seal(u32 id, struct cbt_why *why);
int cbt_reset_rings(u64 events, struct cbt_why *why);

/* ---- bits.c ---- */

#define CBT_BITS_AT_ONCE 0x100000

int cbt_bits_copy(struct cbt_bits *call, void *buffer);
int cbt_bits_load(const struct cbt_bits *call, const void *buffer, struct cbt_why *why);
int cbt_bits_clear(u32 id, struct cbt_why *why);

/* ---- switch.c ---- */

int cbt_switch(struct cbt_switch *call, const u32 *ids, struct cbt_why *why);

#endif /* CBT_MODULE_H */
