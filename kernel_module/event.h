/* SPDX-License-Identifier: GPL-2.0 */
/* What a bio is: whether it writes, how, and with which flags. */
#ifndef CBT_EVENT_H
#define CBT_EVENT_H

#include <linux/bio.h>
#include <linux/blk_types.h>
#include <linux/types.h>

#include "cbt_events.h"

/*
 * The flags of a bio lie between REQ_SYNC and REQ_NOWAIT, in another order than
 * ours and from kernel to kernel: looked up at once.
 */
#define CBT_FLAGS_LOWEST __REQ_SYNC
#define CBT_FLAGS_BITS (__REQ_NOWAIT - __REQ_SYNC + 1)
extern u8 cbt_event_flags[1 << CBT_FLAGS_BITS];

void cbt_event_init(void);
void cbt_event_find_inode(struct cbt_event *event, struct bio *bio, u64 skipped);

/* An operation that writes and has no name of its own counts as a write. */
static __always_inline u8 cbt_op_of(struct bio *bio)
{
	if (likely(bio_op(bio) == REQ_OP_WRITE))
		return CBT_OP_WRITE;
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
static inline bool cbt_bio_writes(struct bio *bio)
{
	return op_is_write(bio_op(bio)) && bio->bi_iter.bi_size;
}

static inline u32 cbt_flags_of(struct bio *bio)
{
	return cbt_event_flags[((__force u32)bio->bi_opf >> CBT_FLAGS_LOWEST) &
			       ((1 << CBT_FLAGS_BITS) - 1)];
}

#endif /* CBT_EVENT_H */
