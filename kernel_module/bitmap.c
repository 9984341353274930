// SPDX-License-Identifier: GPL-2.0
/*
 * One bit a block.  Setting comes from many submits at once and must be cheap
 * for a block that is set already, which is the usual case: a word is read
 * before it is written, so that a busy one stays shared between the CPUs.
 */
#include <linux/bitops.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/vmalloc.h>

#include "module.h"

/* As user space sees it: whole bytes. */
u64 cbt_bitmap_bytes(u64 blocks)
{
	return DIV_ROUND_UP_ULL(blocks, BITS_PER_BYTE);
}

/* As it is in memory: whole pages. */
u64 cbt_bitmap_memory(u64 blocks)
{
	return PAGE_ALIGN(cbt_bitmap_bytes(blocks));
}

int cbt_bitmap_alloc(struct cbt_bitmap *map, u64 blocks)
{
	map->words = __vmalloc(cbt_bitmap_memory(blocks),
			       GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN);
	if (!map->words)
		return -ENOMEM;
	map->blocks = blocks;
	return 0;
}

void cbt_bitmap_free(struct cbt_bitmap *map)
{
	vfree(map->words);
	map->words = NULL;
}

/* Only for a bitmap that no submit sees. */
void cbt_bitmap_zero(struct cbt_bitmap *map)
{
	u64 left = cbt_bitmap_memory(map->blocks);
	char *at = (char *)map->words;

	while (left) {
		size_t part = min_t(u64, left, 1 << 20);

		memset(at, 0, part);
		at += part;
		left -= part;
		cond_resched();
	}
}

static void set_in_word(unsigned long *word, unsigned long mask)
{
	if ((READ_ONCE(*word) & mask) == mask)
		return;
	if (mask == ~0UL)
		WRITE_ONCE(*word, mask);
	else
		atomic_long_or(mask, (atomic_long_t *)word);
}

static void clear_in_word(unsigned long *word, unsigned long mask)
{
	if (!(READ_ONCE(*word) & mask))
		return;
	if (mask == ~0UL)
		WRITE_ONCE(*word, 0);
	else
		atomic_long_andnot(mask, (atomic_long_t *)word);
}

/*
 * A whole word is stored and not or-ed: this operation covers all its blocks,
 * so whichever of two concurrent stores comes last is a possible order.
 */
static void for_words(struct cbt_bitmap *map, u64 first, u64 end,
		      void (*apply)(unsigned long *word, unsigned long mask))
{
	unsigned long *word = map->words + first / BITS_PER_LONG;
	unsigned long *last = map->words + (end - 1) / BITS_PER_LONG;
	unsigned long mask = BITMAP_FIRST_WORD_MASK(first);

	while (word < last) {
		apply(word++, mask);
		mask = ~0UL;
	}
	apply(word, mask & BITMAP_LAST_WORD_MASK(end));
}

/* Blocks @first to @end - 1; none if @end <= @first, none past the end. */
void cbt_bitmap_set(struct cbt_bitmap *map, u64 first, u64 end)
{
	end = min(end, map->blocks);
	if (first < end)
		for_words(map, first, end, set_in_word);
}

void cbt_bitmap_clear(struct cbt_bitmap *map, u64 first, u64 end)
{
	end = min(end, map->blocks);
	if (first < end)
		for_words(map, first, end, clear_in_word);
}
