// SPDX-License-Identifier: Apache-2.0
/*
 * load: one writer that never rests, of a kind that somebody's program is.
 *
 *	load KIND FOLDER NAME	on a mounted file system
 *	load raw DEVICE NAME	on a block device without one
 *
 * It goes on until it is killed, and ends by itself only on an error that
 * neither a full volume nor a missing feature explains.  A volume's tracker
 * must see every block that it changes, whatever the way to the disk.
 */
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static uint64_t state;
static const char *own_name;

uint64_t pick(uint64_t below)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return (state * 0x2545f4914f6cdd1dull >> 11) % below;
}

size_t few(size_t most)
{
	return 1 + pick(pick(16) ? 3 : most);
}

void fill(void *place, size_t length)
{
	unsigned char *at = place;
	uint64_t word;
	size_t part;

	for (; length; at += part, length -= part) {
		state ^= state >> 12;
		state ^= state << 25;
		state ^= state >> 27;
		word = state * 0x2545f4914f6cdd1dull;
		part = length < sizeof(word) ? length : sizeof(word);
		memcpy(at, &word, part);
	}
}

static void fail(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

void *aligned(size_t length)
{
	void *buffer = mmap(NULL, length, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (buffer == MAP_FAILED)
		fail("memory");
	return buffer;
}

int done(long result, const char *what)
{
	if (result >= 0)
		return 1;
	if (errno != ENOSPC && errno != EOPNOTSUPP && errno != EINVAL && errno != ENOTTY)
		fail(what);
	return 0;
}

int open_file(const char *folder, const char *kind, int flags, size_t size)
{
	char name[4096], buffer[64 * KIB];
	size_t at;
	int fd;

	snprintf(name, sizeof(name), "%s/%s-%s", folder, kind, own_name);
	fd = open(name, O_RDWR | O_CREAT, 0644);
	if (fd < 0)
		fail(name);
	for (at = 0; at < size; at += sizeof(buffer)) {
		fill(buffer, sizeof(buffer));
		done(pwrite(fd, buffer, sizeof(buffer), at), name);
	}
	done(fsync(fd), name);
	close(fd);
	fd = open(name, O_RDWR | flags);
	if (fd < 0)
		fail(name);
	return fd;
}

/* Through the page cache, left to write-back or synced in the ways there are. */
static void buffered(const char *folder)
{
	char data[20000];
	struct iovec part = { .iov_base = data };
	int fd = open_file(folder, "buffered", 0, FILE_BYTES);
	int rounds;

	for (;;) {
		for (rounds = 1 + pick(16); rounds; rounds--) {
			size_t length = 1 + pick(2000 * few(10));

			fill(data, length);
			done(pwrite(fd, data, length, pick(FILE_BYTES - length)), "pwrite");
		}
		part.iov_len = 1 + pick(8000);
		switch (pick(5)) {
		case 0:
			done(fsync(fd), "fsync");
			break;
		case 1:
			done(fdatasync(fd), "fdatasync");
			break;
		case 2:
			done(sync_file_range(fd, pick(FILE_BYTES), 256 * KIB,
					     SYNC_FILE_RANGE_WRITE), "sync_file_range");
			break;
		case 3:
			done(pwritev2(fd, &part, 1, pick(FILE_BYTES - 8000), RWF_DSYNC),
			     "pwritev2");
			break;
		}
	}
}

/* Past the page cache; a write of half a block is one that some file systems refuse. */
static void direct(const char *folder)
{
	char *data = aligned(64 * KIB);
	int fd = open_file(folder, "direct", O_DIRECT, FILE_BYTES);

	for (;;) {
		size_t unit = pick(8) ? PAGE : 512;
		size_t length = unit * few(16);

		fill(data, length);
		done(pwrite(fd, data, length, unit * pick((FILE_BYTES - length) / unit)),
		     "direct pwrite");
	}
}

static void mapped(const char *folder)
{
	int fd = open_file(folder, "mapped", 0, FILE_BYTES);
	char *file = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	int rounds;

	if (file == MAP_FAILED)
		fail("mmap");
	for (;;) {
		for (rounds = 1 + pick(30); rounds; rounds--) {
			size_t length = 1 + pick(3000);

			fill(file + pick(FILE_BYTES - length), length);
		}
		done(msync(file + PAGE * pick(512), FILE_BYTES / 2,
			   pick(3) ? MS_SYNC : MS_ASYNC), "msync");
	}
}

/* Blocks given, taken, zeroed and moved in a file, with data between. */
static void allocate(const char *folder)
{
	static const int modes[] = {
		0,
		FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_ZERO_RANGE,
		FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_COLLAPSE_RANGE,
		FALLOC_FL_INSERT_RANGE,
	};
	char data[100000];
	int fd = open_file(folder, "allocated", 0, FILE_BYTES / 2);

	for (;;) {
		int mode = modes[pick(sizeof(modes) / sizeof(*modes))];
		off_t place = 64 * KIB * pick(32);
		off_t length = 64 * KIB * (1 + pick(4));
		size_t written = 1 + pick(sizeof(data));

		if (mode & FALLOC_FL_PUNCH_HOLE && pick(2))
			place += pick(PAGE); /* parts of blocks are zeroed, not freed */
		done(fallocate(fd, mode, place, length), "fallocate");
		fill(data, written);
		done(pwrite(fd, data, written, pick(FILE_BYTES / 2)), "pwrite");
		if (lseek(fd, 0, SEEK_END) > FILE_BYTES)
			done(ftruncate(fd, FILE_BYTES / 2), "ftruncate");
		if (!pick(3))
			done(fdatasync(fd), "fdatasync");
	}
}

/* Files made, appended to, renamed, cut and deleted; write-back is the kernel's. */
static void names(const char *folder)
{
	char name[4096], other[4096], data[100000];
	int fd;

	for (;;) {
		size_t length = 1 + pick(sizeof(data));

		snprintf(name, sizeof(name), "%s/file-%s-%d", folder, own_name, (int)pick(30));
		snprintf(other, sizeof(other), "%s/named-%s-%d", folder, own_name, (int)pick(8));
		fd = open(name, O_WRONLY | O_CREAT | (pick(3) ? O_TRUNC : O_APPEND), 0644);
		if (!done(fd, name)) {
			unlink(other);
			continue;
		}
		fill(data, length);
		done(write(fd, data, length), "write");
		if (lseek(fd, 0, SEEK_END) > 400000)
			done(ftruncate(fd, pick(400000)), "ftruncate");
		close(fd);
		if (!pick(3))
			done(rename(name, other), "rename");
		else if (!pick(3))
			done(unlink(name), "unlink");
	}
}

/* Deletes, and discards what the file system does not use. */
static void trim(const char *folder)
{
	int top = open(folder, O_RDONLY | O_DIRECTORY);

	if (top < 0)
		fail(folder);
	for (;;) {
		struct fstrim_range range = { .start = MIB * pick(64), .len = 32 * MIB };
		int fd = open_file(folder, "trimmed", 0, 256 * KIB * (1 + pick(4)));

		done(ftruncate(fd, 64 * KIB), "ftruncate");
		fsync(fd);
		close(fd);
		if (!done(ioctl(top, FITRIM, &range), "FITRIM"))
			usleep(50000);
	}
}

/* A block device under a program that needs no file system. */
static void raw(const char *device)
{
	char *data = aligned(64 * KIB);
	int cached = open(device, O_RDWR), fd = open(device, O_RDWR | O_DIRECT);
	off_t size = lseek(fd, 0, SEEK_END);

	if (cached < 0 || fd < 0 || size < MIB)
		fail(device);
	for (;;) {
		uint64_t length = 512 * few(128);
		uint64_t place = 512 * pick((size - length) / 512);
		uint64_t range[2] = { place / PAGE * PAGE, PAGE * (1 + pick(64)) };

		if (range[0] + range[1] > (uint64_t)size)
			continue;
		fill(data, length);
		switch (pick(8)) {
		case 0:
			done(ioctl(fd, BLKDISCARD, range), "BLKDISCARD");
			break;
		case 1:
			done(ioctl(fd, BLKZEROOUT, range), "BLKZEROOUT");
			break;
		case 2:
			done(pwrite(cached, data, length, place), "pwrite");
			/* EIO: a direct write has met a page that was just cached. */
			if (!pick(4) && fdatasync(cached) && errno != EIO)
				fail("fdatasync");
			break;
		default:
			done(pwrite(fd, data, length, place), "direct pwrite");
		}
	}
}

static const struct {
	const char *name;
	void (*run)(const char *place);
} kinds[] = {
	{ "buffered", buffered }, { "direct", direct },	  { "mapped", mapped },
	{ "allocate", allocate }, { "names", names },	  { "trim", trim },
	{ "uring", write_by_uring }, { "raw", raw },
};

int main(int argc, char **argv)
{
	size_t i;

	for (i = 0; argc == 4 && i < sizeof(kinds) / sizeof(*kinds); i++) {
		if (strcmp(argv[1], kinds[i].name))
			continue;
		own_name = argv[3];
		/* Never twice the same: what is written again must differ. */
		if (getrandom(&state, sizeof(state), 0) != sizeof(state))
			fail("getrandom");
		state |= 1;
		/* Events tell the kind by the task's name. */
		prctl(PR_SET_NAME, kinds[i].name);
		/* The one who records and judges must not wait for its writers. */
		if (nice(19) < 0)
			fail("nice");
		kinds[i].run(argv[2]);
	}
	fputs("usage: load KIND FOLDER|DEVICE NAME\n", stderr);
	return 2;
}
