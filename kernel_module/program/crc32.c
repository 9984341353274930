// SPDX-License-Identifier: GPL-2.0
/*
 * CRC-32 as zlib has it: polynomial 0xedb88320, from all ones, inverted.
 */
#include "cbtctl.h"

static __u32 table[256];

static void fill_table(void)
{
	__u32 value;
	int i, bit;

	for (i = 0; i < 256; i++) {
		value = i;
		for (bit = 0; bit < 8; bit++)
			value = value & 1 ? value >> 1 ^ 0xedb88320 : value >> 1;
		table[i] = value;
	}
}

/* Goes on from @crc, which is 0 at the start. */
__u32 crc32_step(__u32 crc, const void *data, size_t length)
{
	const unsigned char *bytes = data;

	if (!table[1])
		fill_table();
	crc = ~crc;
	while (length--)
		crc = crc >> 8 ^ table[(crc ^ *bytes++) & 0xff];
	return ~crc;
}
