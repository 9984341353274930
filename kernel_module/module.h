/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the objects of cbt.ko share.  From top to bottom: chardev.c takes the
 * calls of user space, tracker.c keeps the trackers, switch.c ends intervals,
 * hook.c stands between the block layer and a driver, event.c tells what a bio
 * is, bitmap.c and ring.c hold what was recorded.
 *
 * Locks, outermost first:
 *   tracker lock    a mutex in tracker.c: which trackers and hooks there are.
 *                   Held across every call but reading events.
 *   frozen queue    what a submit reads (a hook's trackers, their active
 *                   bitmaps and intervals) changes only while the disk's queue
 *                   is frozen; a submit holds a reference on the queue, and so
 *                   needs no lock.  Nothing between freeze and thaw may touch
 *                   user memory; all calls run under memalloc_noio.
 *   ring lock       a spinlock in ring.c; nothing is taken inside.
 */
#ifndef CBT_MODULE_H
#define CBT_MODULE_H

#include <linux/atomic.h>
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/printk.h>
#include <linux/types.h>

#include "cbt.h"
#include "compat.h"

#undef pr_fmt
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

/* Why a call was refused.  Anybody's loop of bad calls must not fill the log. */
#define cbt_err(fmt, ...) pr_err_ratelimited(fmt, ##__VA_ARGS__)

#define CBT_FREEZE_TIMEOUT (5 * HZ)

/* ---- bitmap.c ---- */

/**
 * struct cbt_bitmap - one bit a block, in virtually contiguous memory
 * @words: of which the last may have pad bits, always zero
 * @blocks: bits in use
 *
 * Setting and clearing are atomic; several submits work on it at once.
 */
struct cbt_bitmap {
	unsigned long *words;
	u64 blocks;
};

u64 cbt_bitmap_bytes(u64 blocks);
u64 cbt_bitmap_memory(u64 blocks);
int cbt_bitmap_alloc(struct cbt_bitmap *map, u64 blocks);
void cbt_bitmap_free(struct cbt_bitmap *map);
void cbt_bitmap_zero(struct cbt_bitmap *map);
void cbt_bitmap_set(struct cbt_bitmap *map, u64 first, u64 end);
void cbt_bitmap_clear(struct cbt_bitmap *map, u64 first, u64 end);

/* ---- ring.c ---- */

struct file;
struct poll_table_struct;

int cbt_ring_set(u64 events);
void cbt_ring_free(void);
void cbt_ring_push(struct cbt_event *event);
void cbt_ring_info(struct cbt_info *info);
u64 cbt_ring_next_seq(u64 *time_ns);
ssize_t cbt_ring_read(struct file *file, char __user *buffer, size_t length);
__poll_t cbt_ring_poll(struct file *file, struct poll_table_struct *wait);

/* ---- event.c ---- */

bool cbt_event_from_bio(struct cbt_event *event, struct bio *bio);

/* ---- suspended.c ---- */

struct attribute;
struct kernfs_node;
struct kobject;

/**
 * struct cbt_suspended - where device-mapper tells whether a disk is suspended
 * @node: the folder "dm" of the disk in sysfs, held
 * @kobject: behind @node
 * @attribute: "suspended" in it
 * @page: its answer
 */
struct cbt_suspended {
	struct kernfs_node *node;
	struct kobject *kobject;
	struct attribute *attribute;
	char *page;
};

int cbt_suspended_open(struct cbt_suspended *state, struct gendisk *disk);
bool cbt_suspended_ask(struct cbt_suspended *state);
void cbt_suspended_close(struct cbt_suspended *state);

/* ---- remainder.c ---- */

#define CBT_REMAINDERS 64	/* a power of two */

/**
 * struct cbt_remainder - a bio that its driver submitted again, until it comes
 * @bio: NULL where the slot is free; claimed by cmpxchg
 * @task: in whose bio_list it waits
 * @epoch: of the hook when the bio was first seen
 */
struct cbt_remainder {
	struct bio *bio;
	struct task_struct *task;
	u64 epoch;
};

/**
 * struct cbt_remainders - all of a hook
 * @waiting: slots in use; zero lets an ordinary submit skip the search
 * @slots: a hash by the bio's address
 */
struct cbt_remainders {
	atomic_t waiting;
	struct cbt_remainder slots[CBT_REMAINDERS];
};

void cbt_remainders_note(struct cbt_remainders *all, struct gendisk *disk, u64 epoch);
bool cbt_remainders_take(struct cbt_remainders *all, struct bio *bio, u64 *epoch);

/* ---- hook.c ---- */

/**
 * struct cbt_hook - the alternate write handler of one disk
 * @node: in the table by disk; added and taken off under the tracker lock,
 *	searched under RCU
 * @retired: in the list of hooks that are no longer installed
 * @disk: held open by the trackers
 * @driver: the driver's own operations, put back at the end
 * @ops: the copy that the disk points to meanwhile
 * @trackers: of this disk; changes only while the queue is frozen
 * @epoch: counts attaches and switches on this disk; likewise
 * @remainders: bios that were split and will be seen again
 */
struct cbt_hook {
	struct hlist_node node;
	struct list_head retired;
	struct gendisk *disk;
	const struct block_device_operations *driver;
	struct block_device_operations ops;
	struct list_head trackers;
	u64 epoch;
	struct cbt_remainders remainders;
};

struct cbt_tracker;

int cbt_hook_add(struct cbt_tracker *tracker);
int cbt_hook_remove(struct cbt_tracker *tracker);
bool cbt_hook_in_place(struct cbt_hook *hook);
int cbt_hook_freeze(struct gendisk *disk);
void cbt_hook_thaw(struct gendisk *disk);
void cbt_hook_free_retired(void);

/* ---- tracker.c ---- */

/**
 * struct cbt_bits_pair - what is kept of one interval
 * @changed: blocks written in any way
 * @discarded: whole blocks whose last operation was a discard
 */
struct cbt_bits_pair {
	struct cbt_bitmap changed;
	struct cbt_bitmap discarded;
};

/**
 * struct cbt_tracker - one volume, followed
 * @id: as user space knows it
 * @all: in the list of all; tracker lock
 * @open: the volume, held open for reading
 * @hook: shared with the other trackers of its disk
 * @on_hook: in @hook->trackers; frozen queue
 * @generation: random, of this attachment
 * @name: of the volume
 * @role: CBT_ROLE_*
 * @shift: log2 of the granularity
 * @start: of the volume on its disk, bytes
 * @size: of the volume when attached, bytes
 * @partition: whether the volume is a part of its disk
 * @first_interval: as given at attach
 * @interval: current; frozen queue
 * @active: index into @bits of the current interval's; frozen queue
 * @since: @hook->epoch at attach or the last switch; frozen queue
 * @bits: the two intervals' bitmaps
 * @frozen: the other pair of @bits holds @interval - 1; tracker lock
 * @dirty: the other pair of @bits is not all zero; tracker lock
 * @switches: made; tracker lock
 * @states: CBT_S_*, sticky, atomic
 * @grown_to: see struct cbt_status
 * @events: operations recorded
 * @bytes: their lengths, remainders left out
 * @discards: of @events
 * @remainders: of @events
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
	u64 start;
	u64 size;
	bool partition;
	u32 first_interval;
	u32 interval;
	unsigned int active;
	u64 since;
	struct cbt_bits_pair bits[2];
	bool frozen;
	bool dirty;
	u64 switches;
	atomic_t states;
	atomic64_t grown_to;
	atomic64_t events;
	atomic64_t bytes;
	atomic64_t discards;
	atomic64_t remainders;
};

void cbt_tracker_record(struct cbt_tracker *tracker, const struct cbt_event *whole,
			bool again, u64 epoch);
int cbt_tracker_attach(struct cbt_attach *call, dev_t dev);
int cbt_tracker_detach(u32 id);
int cbt_tracker_bits(struct cbt_bits *call);
int cbt_tracker_status(struct cbt_status *status);
int cbt_tracker_info(struct cbt_info *info);
int cbt_tracker_ring(u64 events);

/* Within the tracker lock: for switch.c. */
extern struct mutex cbt_tracker_lock;
struct cbt_tracker *cbt_tracker_find(u32 id);
void cbt_tracker_look(struct cbt_tracker *tracker);

/* ---- switch.c ---- */

int cbt_tracker_switch(struct cbt_switch *call, const u32 *ids);
int cbt_tracker_clear(u32 id);

#endif /* CBT_MODULE_H */
