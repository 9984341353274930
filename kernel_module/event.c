// SPDX-License-Identifier: GPL-2.0
/*
 * What a bio is, told as an event: the operation, its range on the disk, how
 * and by whom it was submitted, and the file whose page it writes.
 */
#include <linux/bio.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/string.h>

#include "module.h"

static const struct {
	blk_opf_t req;
	u32 flag;
} flag_names[] = {
	{ REQ_SYNC, CBT_F_SYNC },
	{ REQ_FUA, CBT_F_FUA },
	{ REQ_PREFLUSH, CBT_F_PREFLUSH },
	{ REQ_META, CBT_F_META },
	{ REQ_PRIO, CBT_F_PRIO },
	{ REQ_RAHEAD, CBT_F_RAHEAD },
	{ REQ_NOWAIT, CBT_F_NOWAIT },
	{ REQ_IDLE, CBT_F_IDLE },
};

/* An operation that writes and has no name of its own counts as a write. */
static u8 op_of(struct bio *bio)
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

/*
 * Only a page under write-back of a file system that lies on this very volume
 * tells the file: direct I/O (REQ_IDLE) may bring pages of any other file, and
 * above a stack the inode number would be another volume's.  The page's own
 * reference keeps neither mapping nor inode, RCU keeps the memory.
 */
static void find_inode(struct cbt_event *event, struct bio *bio)
{
	struct address_space *mapping;
	struct bio_vec first;
	struct inode *inode;
	struct folio *folio;

	if (bio_op(bio) != REQ_OP_WRITE || !bio_has_data(bio) ||
	    (bio->bi_opf & REQ_IDLE))
		return;
	first = bio_iter_iovec(bio, bio->bi_iter);
	folio = page_folio(first.bv_page);
	if (folio_test_anon(folio) || !folio_test_writeback(folio))
		return;
	rcu_read_lock();
	mapping = folio_mapping(folio);
	inode = mapping ? READ_ONCE(mapping->host) : NULL;
	if (inode && S_ISREG(inode->i_mode) &&
	    inode->i_sb->s_bdev == bio->bi_bdev) {
		event->inode = inode->i_ino;
		event->inode_offset = folio_pos(folio) + first.bv_offset +
			folio_page_idx(folio, first.bv_page) * PAGE_SIZE;
		event->known |= CBT_K_INODE | CBT_K_INODE_OFFSET;
	}
	rcu_read_unlock();
}

/* False for what does not write: reads, and flushes without data. */
bool cbt_event_from_bio(struct cbt_event *event, struct bio *bio)
{
	size_t i;

	if (!op_is_write(bio_op(bio)) || !bio->bi_iter.bi_size)
		return false;
	memset(event, 0, sizeof(*event));
	event->offset = (u64)bio->bi_iter.bi_sector << SECTOR_SHIFT;
	event->length = bio->bi_iter.bi_size;
	event->op = op_of(bio);
	for (i = 0; i < ARRAY_SIZE(flag_names); i++)
		if (bio->bi_opf & flag_names[i].req)
			event->flags |= flag_names[i].flag;
	event->pid = current->pid;
	strscpy_pad(event->comm, current->comm, sizeof(event->comm));
	event->known = CBT_K_TASK;
	find_inode(event, bio);
	return true;
}
