// SPDX-License-Identifier: GPL-2.0
/*
 * One bit a block: memory, and what spans many words.
 */
#include <linux/bitmap.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/string.h>
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
	/* Rather a no than somebody's end for want of memory. */
	map->words = __vmalloc(cbt_bitmap_memory(blocks),
			       GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN | __GFP_RETRY_MAYFAIL);
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

void cbt_bitmap_set_words(struct cbt_bitmap *map, u64 first, u64 end)
{
	end = min(end, map->blocks);
	if (first < end)
		for_words(map, first, end, cbt_bitmap_set_in);
}

void cbt_bitmap_clear_words(struct cbt_bitmap *map, u64 first, u64 end)
{
	end = min(end, map->blocks);
	if (first < end)
		for_words(map, first, end, cbt_bitmap_clear_in);
}

/*
 * Adds the bits of @bytes, of which the first is byte @offset of the bitmap, a
 * multiple of a word.  EINVAL: bits past the end.
 */
int cbt_bitmap_add(struct cbt_bitmap *map, u64 offset, const u8 *bytes, u64 length)
{
	unsigned long *word = map->words + offset / sizeof(long);
	unsigned int spare = -map->blocks % BITS_PER_BYTE;

	if (spare && offset + length == cbt_bitmap_bytes(map->blocks) &&
	    bytes[length - 1] >> (BITS_PER_BYTE - spare))
		return -EINVAL;
	while (length) {
		size_t part = min_t(u64, length, sizeof(long));
		unsigned long mask = 0;

		memcpy(&mask, bytes, part);
		if (mask)
			cbt_bitmap_set_in(word, mask);
		word++;
		bytes += part;
		length -= part;
	}
	return 0;
}
