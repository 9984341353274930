/* SPDX-License-Identifier: GPL-2.0 */
/* What a bio is, told as a write. */
#ifndef CBT_EVENT_H
#define CBT_EVENT_H

#include <linux/bio.h>
#include <linux/blk_types.h>
#include <linux/types.h>

#include "cbt_events.h"

/**
 * struct cbt_write - a bio that writes, until it has been recorded
 * @bio: itself
 * @offset: on its disk, bytes
 * @length: bytes
 * @inode: see struct cbt_event; like the rest filled only for events
 * @inode_offset: likewise
 * @flags: CBT_F_*
 * @op: CBT_OP_*
 * @known: CBT_K_*
 * @again: it is the remainder of one that came before
 * @epoch: of the hook when that came
 */
struct cbt_write {
	struct bio *bio;
	u64 offset;
	u64 length;
	u64 inode;
	u64 inode_offset;
	u32 flags;
	u8 op;
	u8 known;
	bool again;
	u64 epoch;
};

/*
 * The flags of a bio lie between REQ_SYNC and REQ_NOWAIT, in another order than
 * ours and from kernel to kernel: looked up at once.
 */
#define CBT_FLAGS_LOWEST __REQ_SYNC
#define CBT_FLAGS_BITS (__REQ_NOWAIT - __REQ_SYNC + 1)
extern u8 cbt_event_flags[1 << CBT_FLAGS_BITS];

void cbt_event_init(void);
void cbt_write_find_inode(struct cbt_write *write);

/* An operation that writes and has no name of its own counts as a write. */
static inline u8 cbt_op_of(struct bio *bio)
{
	switch (bio_op(bio)) {
	case REQ_OP_WRITE_ZEROES:
		return CBT_OP_WRITE_ZEROES;
	case REQ_OP_DISCARD:
		return CBT_OP_DISCARD;
	case REQ_OP_SECURE_ERASE:
		return CBT_OP_SECURE_ERASE;
	default:
		return CBT_OP_WRITE;
	}
}

/* False for what does not write: reads, and flushes without data. */
static inline bool cbt_write_from_bio(struct cbt_write *write, struct bio *bio)
{
	if (!op_is_write(bio_op(bio)) || !bio->bi_iter.bi_size)
		return false;
	write->bio = bio;
	write->offset = (u64)bio->bi_iter.bi_sector << SECTOR_SHIFT;
	write->length = bio->bi_iter.bi_size;
	write->op = cbt_op_of(bio);
	return true;
}

/* What only events tell.  Direct I/O (REQ_IDLE) has no file. */
static inline void cbt_write_describe(struct cbt_write *write)
{
	blk_opf_t opf = write->bio->bi_opf;

	write->flags = cbt_event_flags[((__force u32)opf >> CBT_FLAGS_LOWEST) &
				       ((1 << CBT_FLAGS_BITS) - 1)];
	write->known = CBT_K_TASK;
	write->inode = 0;
	write->inode_offset = 0;
	if (write->op == CBT_OP_WRITE && !(opf & REQ_IDLE))
		cbt_write_find_inode(write);
}

#endif /* CBT_EVENT_H */
