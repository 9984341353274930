// SPDX-License-Identifier: GPL-2.0
/*
 * A bitmap, copied out of the module in pieces.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

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

	for (;;) {
		bits.length = sizeof(buffer);
		tracker_call(CBT_IOC_BITS, &bits, id);
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

struct output {
	int fd;
	const char *name;
	__u64 bytes;
};

static void save(void *context, const void *data, size_t length)
{
	struct output *output = context;

	write_all(output->fd, data, length, output->name);
	output->bytes += length;
}

void do_bits(int argc, char **argv)
{
	struct output output = { .name = argv[argc - 1] };
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
	output.fd = open(output.name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (output.fd < 0)
		fail_errno(output.name);
	interval = bits_each(id, which, kind, save, &output);
	if (close(output.fd))
		fail_errno(output.name);
	printf("interval=%u bytes=%llu\n", interval, output.bytes);
}
