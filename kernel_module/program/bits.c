// SPDX-License-Identifier: GPL-2.0
/*
 * A bitmap, copied out of the module in pieces.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "cbtctl.h"

/* Gives the whole bitmap to @sink, from front to back; returns its interval. */
__u32 bits_each(__u32 id, int which, int kind, bits_sink *sink, void *context)
{
	static char buffer[PIECE];
	struct cbt_bits bits = {
		.buffer = (uintptr_t)buffer,
		.tracker = id,
		.which = which,
		.kind = kind,
	};
	__u32 interval = 0;
	int error;

	for (;;) {
		bits.length = sizeof(buffer);
		error = module_try(CBT_IOC_BITS, &bits);
		if (error == ENODATA)
			fail("tracker %u: no frozen bitmap: never switched, or cleared", id);
		if (error)
			tracker_refused(error, id);
		if (!bits.offset)
			interval = bits.interval;
		if (interval != bits.interval)
			fail("tracker %u: its interval was switched meanwhile", id);
		if (!bits.length)
			return interval;
		sink(context, buffer, bits.length);
		bits.offset += bits.length;
	}
}

/**
 * struct saving - a bitmap on its way into a file
 * @output: open from the first piece on
 * @name: of the file
 * @bytes: so far
 */
struct saving {
	struct output output;
	const char *name;
	__u64 bytes;
};

/* Opened only when there is something: a refusal leaves what was there. */
static void save(void *context, const void *data, size_t length)
{
	struct saving *saving = context;

	if (!saving->bytes)
		output_open(&saving->output, saving->name);
	write_all(saving->output.fd, data, length, saving->name);
	saving->bytes += length;
}

void do_bits(int argc, char **argv)
{
	struct saving saving = { .name = file_name(argv[argc - 1]) };
	int which = CBT_BITS_ACTIVE;
	int kind = CBT_BITS_CHANGED;
	__u32 interval;
	__u32 id;

	id = parse_id(argv[0]);
	if (!strcmp(argv[1], "frozen"))
		which = CBT_BITS_FROZEN;
	else if (strcmp(argv[1], "active"))
		misunderstood("%s: the bitmap is active or frozen", argv[1]);
	if (!strcmp(argv[2], "discarded"))
		kind = CBT_BITS_DISCARDED;
	else if (strcmp(argv[2], "changed"))
		misunderstood("%s: the bitmap is changed or discarded", argv[2]);
	module_open();
	interval = bits_each(id, which, kind, save, &saving);
	output_close(&saving.output);
	printf("interval=%u bytes=%llu\n", interval, saving.bytes);
}
