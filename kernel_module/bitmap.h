/* SPDX-License-Identifier: GPL-2.0 */
/*
 * One bit a block.  Setting comes from many submits at once and must be cheap
 * for a block that is set already, which is the usual case: a word is read
 * before it is written, so that a busy one stays shared between the CPUs.
 */
#ifndef CBT_BITMAP_H
#define CBT_BITMAP_H

#include <linux/atomic.h>
#include <linux/bitops.h>
#include <linux/bits.h>
#include <linux/types.h>

/**
 * struct cbt_bitmap - one bit a block, in virtually contiguous memory
 * @words: of which the last may have pad bits, always zero; NULL: none
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
int cbt_bitmap_add(struct cbt_bitmap *map, u64 offset, const u8 *bytes, u64 length);
void cbt_bitmap_set_words(struct cbt_bitmap *map, u64 first, u64 end);
void cbt_bitmap_clear_words(struct cbt_bitmap *map, u64 first, u64 end);

/*
 * A whole word is stored and not or-ed: this operation covers all its blocks,
 * so whichever of two concurrent stores comes last is a possible order.
 */
static inline void cbt_bitmap_set_in(unsigned long *word, unsigned long mask)
{
	if ((READ_ONCE(*word) & mask) == mask)
		return;
	if (mask == ~0UL)
		WRITE_ONCE(*word, mask);
	else
		atomic_long_or(mask, (atomic_long_t *)word);
}

static inline void cbt_bitmap_clear_in(unsigned long *word, unsigned long mask)
{
	if (!(READ_ONCE(*word) & mask))
		return;
	if (mask == ~0UL)
		WRITE_ONCE(*word, 0);
	else
		atomic_long_andnot(mask, (atomic_long_t *)word);
}

/* Blocks @first to @end - 1; none if @end <= @first.  @end: at most the blocks. */
static inline void cbt_bitmap_set(struct cbt_bitmap *map, u64 first, u64 end)
{
	if (likely(end - first == 1))
		cbt_bitmap_set_in(map->words + first / BITS_PER_LONG, BIT_MASK(first));
	else
		cbt_bitmap_set_words(map, first, end);
}

static inline void cbt_bitmap_clear(struct cbt_bitmap *map, u64 first, u64 end)
{
	if (likely(end - first == 1))
		cbt_bitmap_clear_in(map->words + first / BITS_PER_LONG, BIT_MASK(first));
	else
		cbt_bitmap_clear_words(map, first, end);
}

#endif /* CBT_BITMAP_H */
