/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a write leaves in a tracker: its bits, its counts, its event.  Every
 * write to a tracked disk passes here, with the queue held, so it is inline;
 * the ordinary ones, within a whole disk, go by constants and registers.
 */
#ifndef CBT_RECORD_H
#define CBT_RECORD_H

#include <linux/build_bug.h>
#include <linux/string.h>

#include "module.h"

static noinline void note_growth(struct cbt_tracker *tracker, u64 end)
{
	s64 old = atomic64_read(&tracker->grown_to);

	while (end > (u64)old && !atomic64_try_cmpxchg(&tracker->grown_to, &old, end))
		;
	cbt_tracker_set_state(tracker, CBT_S_GREW);
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
	if (likely(op != CBT_OP_DISCARD && op != CBT_OP_SECURE_ERASE)) {
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

static __always_inline void count(struct cbt_tracker *tracker, u8 op, u64 length,
				  bool remainder)
{
	this_cpu_inc(tracker->counts->events);
	if (unlikely(remainder))
		this_cpu_inc(tracker->counts->remainders);
	else
		this_cpu_add(tracker->counts->bytes, length);
	if (unlikely(op == CBT_OP_DISCARD || op == CBT_OP_SECURE_ERASE))
		this_cpu_inc(tracker->counts->discards);
}

/* @skipped: bytes of the write before @offset that are not this volume's. */
static __always_inline void put_event(struct cbt_tracker *tracker, struct bio *bio,
				      u8 op, u64 offset, u64 length, u64 skipped,
				      bool remainder)
{
	struct task_struct *task = current;
	struct cbt_event *event;
	struct cbt_ring *ring;

	event = cbt_ring_begin(&ring);
	if (unlikely(!event))
		return;
	event->offset = offset;
	event->length = length;
	event->inode = 0;
	event->inode_offset = 0;
	event->interval = tracker->interval;
	event->pid = task->pid;
	event->flags = cbt_flags_of(bio);
	if (unlikely(remainder))
		event->flags |= CBT_F_REMAINDER;
	event->tracker = tracker->id;
	event->op = op;
	event->known = CBT_K_TASK;
	/* The kernel keeps the name padded with zeros. */
	BUILD_BUG_ON(sizeof(event->comm) != sizeof(task->comm));
	memcpy(event->comm, task->comm, sizeof(event->comm));
	/* Direct I/O (REQ_IDLE) has no file. */
	if (unlikely(op == CBT_OP_WRITE && !(bio->bi_opf & REQ_IDLE)))
		cbt_event_find_inode(event, bio, skipped);
	cbt_ring_commit(ring);
}

/* @from and @to: on the volume, within its size. */
static __always_inline void record_ordinary(struct cbt_tracker *tracker, struct bio *bio,
					    u64 from, u64 to)
{
	mark(tracker, CBT_OP_WRITE, from, to);
	count(tracker, CBT_OP_WRITE, to - from, false);
	if (!(tracker->flags & CBT_ATTACH_NO_EVENTS))
		put_event(tracker, bio, CBT_OP_WRITE, from, to - from, 0, false);
}

/* Anything else: a partition, sealed, grown, a remainder, no ordinary write. */
static noinline void record_rare(struct cbt_tracker *tracker, struct bio *bio, u64 epoch)
{
	u64 offset = (u64)bio->bi_iter.bi_sector << SECTOR_SHIFT;
	u64 from = offset, to = offset + bio->bi_iter.bi_size;
	bool remainder = epoch >= tracker->since;
	u8 op = cbt_op_of(bio);

	if (tracker->partition) {
		from = max(from, tracker->start);
		to = min(to, tracker->start + bdev_nr_bytes(tracker->open.bdev));
		if (from >= to)
			return;
	}
	if (tracker->sealed) {
		cbt_tracker_set_state(tracker, CBT_S_MISSED);
		return;
	}
	from -= tracker->start;
	to -= tracker->start;
	if (to > tracker->size)
		note_growth(tracker, to);
	if (from < tracker->size)
		mark(tracker, op, from, min(to, tracker->size));
	count(tracker, op, to - from, remainder);
	if (!(tracker->flags & CBT_ATTACH_NO_EVENTS))
		put_event(tracker, bio, op, from, to - from, from + tracker->start - offset,
			  remainder);
}

/* @epoch: of the hook when the bio of which this is the remainder came, or 0. */
static __always_inline void cbt_tracker_record(struct cbt_tracker *tracker, struct bio *bio,
					       u64 epoch)
{
	u64 from = (u64)bio->bi_iter.bi_sector << SECTOR_SHIFT;
	u64 to = from + bio->bi_iter.bi_size;

	if (unlikely(tracker->partition || tracker->sealed || epoch ||
		     bio_op(bio) != REQ_OP_WRITE || to > tracker->size))
		record_rare(tracker, bio, epoch);
	else
		record_ordinary(tracker, bio, from, to);
}

#endif /* CBT_RECORD_H */
