// SPDX-License-Identifier: Apache-2.0
/*
 * truth: holds a bitmap against what a device really held before and now.
 *
 *	truth DEVICE COPY GRANULARITY [OFFSET LENGTH] < BITMAP
 *
 * DEVICE is read with O_DIRECT: a page cache may be stale.  COPY is a file with
 * the content as it was before; it becomes the content as it is.  Where it
 * does not exist it is made, and nothing is judged.  The answer is one line
 * of JSON: how many blocks changed, are marked, are missed (changed and not
 * marked: none must be), are surplus, and the numbers of the first missed.
 *
 * Exit status: 0 whatever the numbers, 1 the device cannot be read, 2 the call
 * or the bitmap does not fit the device.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PIECE (1024 * 1024)
#define SHOWN 8

static struct {
	uint64_t changed, marked, missed, surplus;
	uint64_t first[SHOWN];
} found;

static void fail(const char *what, int status)
{
	fprintf(stderr, "truth: %s: %s\n", what, errno ? strerror(errno) : "does not fit");
	exit(status);
}

static int is_set(const unsigned char *bits, uint64_t block)
{
	return bits[block / 8] >> block % 8 & 1;
}

static void judge_block(const unsigned char *bits, uint64_t block, int changed)
{
	int marked = is_set(bits, block);

	found.changed += changed;
	found.marked += marked;
	found.surplus += marked && !changed;
	if (changed && !marked && found.missed++ < SHOWN)
		found.first[found.missed - 1] = block;
}

static void judge_piece(const unsigned char *bits, uint64_t at, const char *before,
			const char *now, size_t length, size_t granularity)
{
	int same = !memcmp(before, now, length);
	size_t place;

	for (place = 0; place < length; place += granularity) {
		size_t part = length - place < granularity ? length - place : granularity;

		judge_block(bits, (at + place) / granularity,
			    !same && memcmp(before + place, now + place, part));
	}
}

static unsigned char *read_bits(uint64_t blocks)
{
	size_t size = (blocks + 7) / 8, have = 0;
	unsigned char *bits = malloc(size + 1);
	ssize_t got;

	while (bits && (got = read(0, bits + have, size + 1 - have)) > 0)
		have += got;
	errno = 0;
	if (!bits || have != size)
		fail("bitmap", 2);
	for (; blocks < 8 * size; blocks++)
		if (is_set(bits, blocks))
			fail("bitmap with a bit past its end", 2);
	return bits;
}

static char *map_copy(const char *name, size_t length, int *fresh)
{
	int fd = open(name, O_RDWR | O_CREAT, 0600);
	off_t size = lseek(fd, 0, SEEK_END);
	char *copy;

	*fresh = size == 0;
	if (fd < 0 || (*fresh && ftruncate(fd, length)))
		fail(name, 1);
	errno = 0;
	if (!*fresh && (size_t)size != length)
		fail(name, 2);
	copy = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (copy == MAP_FAILED)
		fail(name, 1);
	return copy;
}

static void answer(uint64_t blocks)
{
	uint64_t i;

	printf("{\"blocks\": %lu, \"changed\": %lu, \"marked\": %lu, \"missed\": %lu, "
	       "\"surplus\": %lu, \"first_missed\": [", blocks, found.changed, found.marked,
	       found.missed, found.surplus);
	for (i = 0; i < found.missed && i < SHOWN; i++)
		printf("%s%lu", i ? ", " : "", found.first[i]);
	puts("]}");
}

int main(int argc, char **argv)
{
	uint64_t granularity, offset = 0, length, at;
	unsigned char *bits = NULL;
	char *copy, *now;
	int device, fresh;

	if (argc != 4 && argc != 6) {
		fputs("usage: truth DEVICE COPY GRANULARITY [OFFSET LENGTH] < BITMAP\n", stderr);
		return 2;
	}
	device = open(argv[1], O_RDONLY | O_DIRECT);
	if (device < 0)
		fail(argv[1], 1);
	length = lseek(device, 0, SEEK_END);
	granularity = strtoull(argv[3], NULL, 10);
	if (argc == 6) {
		offset = strtoull(argv[4], NULL, 10);
		length = strtoull(argv[5], NULL, 10);
	}
	if (!length || !granularity || PIECE % granularity)
		fail("granularity", 2);
	copy = map_copy(argv[2], length, &fresh);
	if (!fresh)
		bits = read_bits((length + granularity - 1) / granularity);
	now = mmap(NULL, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (at = 0; at < length; at += PIECE) {
		size_t part = length - at < PIECE ? length - at : PIECE;

		if (pread(device, now, part, offset + at) != (ssize_t)part)
			fail(argv[1], 1);
		if (!fresh)
			judge_piece(bits, at, copy + at, now, part, granularity);
		memcpy(copy + at, now, part);
	}
	answer((length + granularity - 1) / granularity);
	return 0;
}
