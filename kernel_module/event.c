// SPDX-License-Identifier: GPL-2.0
/*
 * What a bio is: how it was submitted, and the file whose pages it writes.
 */
#include <linux/bio.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/rcupdate.h>

#include "module.h"

u8 cbt_event_flags[1 << CBT_FLAGS_BITS];

static const struct {
	blk_opf_t req;
	u8 flag;
} names[] = {
	{ REQ_SYNC, CBT_F_SYNC },
	{ REQ_FUA, CBT_F_FUA },
	{ REQ_PREFLUSH, CBT_F_PREFLUSH },
	{ REQ_META, CBT_F_META },
	{ REQ_PRIO, CBT_F_PRIO },
	{ REQ_RAHEAD, CBT_F_RAHEAD },
	{ REQ_NOWAIT, CBT_F_NOWAIT },
	{ REQ_IDLE, CBT_F_IDLE },
};

/* Before the first event. */
void cbt_event_init(void)
{
	u32 value, i;

	for (value = 0; value < ARRAY_SIZE(cbt_event_flags); value++)
		for (i = 0; i < ARRAY_SIZE(names); i++)
			if (((__force u32)names[i].req >> CBT_FLAGS_LOWEST) & value)
				cbt_event_flags[value] |= names[i].flag;
}

/*
 * The mapping that a page under write-back belongs to, or NULL.  The page's own
 * reference keeps neither mapping nor inode; RCU, which the caller holds, keeps
 * the memory.
 */
static struct address_space *mapping_of(struct folio *folio)
{
	if (folio_test_anon(folio) || !folio_test_writeback(folio))
		return NULL;
	return folio_mapping(folio);
}

static u64 place_of(struct folio *folio, const struct bio_vec *part)
{
	return folio_pos(folio) + part->bv_offset +
	       (u64)folio_page_idx(folio, part->bv_page) * PAGE_SIZE;
}

/*
 * Only pages under write-back of a file system that lies on this very volume
 * tell the file: direct I/O (REQ_IDLE) may bring pages of any other file, and
 * above a stack the inode number would be another volume's.  Some file systems
 * (f2fs) write several files by one bio, and extents that are neighbours on
 * the disk need not be in the file: what is not one is not told.
 */
static void find_inode(struct cbt_event *event, struct bio *bio, u64 skipped)
{
	struct address_space *mapping = NULL;
	struct bvec_iter iter;
	struct bio_vec part;
	bool in_order = true;
	u64 first = 0, done = 0;
	struct inode *inode;

	bio_for_each_segment(part, bio, iter) {
		struct folio *folio = page_folio(part.bv_page);
		struct address_space *its = mapping_of(folio);

		if (!its || (mapping && its != mapping))
			return;
		if (!mapping)
			first = place_of(folio, &part);
		else if (place_of(folio, &part) != first + done)
			in_order = false;
		mapping = its;
		done += part.bv_len;
	}
	inode = mapping ? READ_ONCE(mapping->host) : NULL;
	if (!inode || !S_ISREG(inode->i_mode) || inode->i_sb->s_bdev != bio->bi_bdev)
		return;
	event->inode = inode->i_ino;
	event->known |= CBT_K_INODE;
	if (!in_order)
		return;
	event->inode_offset = first + skipped;
	event->known |= CBT_K_INODE_OFFSET;
}

/* @skipped: bytes of the bio before those that the event is about. */
void cbt_event_find_inode(struct cbt_event *event, struct bio *bio, u64 skipped)
{
	if (!bio_has_data(bio))
		return;
	rcu_read_lock();
	find_inode(event, bio, skipped);
	rcu_read_unlock();
}
