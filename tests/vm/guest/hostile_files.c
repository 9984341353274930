// SPDX-License-Identifier: GPL-2.0
/*
 * What the hostile program does with the open file beside ioctls: opens, closes
 * and polls it, and maps it in every way, right or wrong, and into the garbage.
 *
 * All mappings lie in slots of a range of addresses that nothing else uses, so
 * that what one thread takes away under the other's hands is never its own
 * memory.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cbt.h"
#include "hostile.h"

#define PAGE 4096
#define SLOTS 8
#define SLOT_BYTES (1ULL << 30)
#define SLOT(n) ((char *)0x100000000000 + (n) * SLOT_BYTES)

/* How much was mapped in each slot; what is there now may be less. */
static size_t lengths[SLOTS];
static int rights[SLOTS];

void *good_buffer(void)
{
	static __thread char buffer[ARENA];

	return buffer;
}

void *mapped_pointer(void)
{
	unsigned int slot = below(SLOTS);

	return lengths[slot] ? SLOT(slot) + below(lengths[slot]) : NULL;
}

void *any_pointer(size_t length)
{
	static char *guarded;

	if (!guarded) {
		char *made = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		mprotect(made + PAGE, PAGE, PROT_NONE);
		guarded = made;
	}
	switch (below(7)) {
	case 0:
		return NULL;
	case 1:
		return guarded + PAGE - below(length + 1) % PAGE;	/* its end is missing */
	case 2:
		return guarded + PAGE - length % PAGE - 1;	/* the last byte is, or unaligned */
	case 3:
		return (void *)(0xffff888000000000 + (below(1 << 20) << 12));
	case 4:
		return mapped_pointer();
	case 5:
		return (char *)"text that cannot be written";
	default:
		return (void *)(0xffffffff00000000 | any());
	}
}

static void reopen(void)
{
	static const int modes[] = { O_RDONLY, O_WRONLY, O_RDWR, O_RDWR, O_RDWR };
	int slot = below(FILES);
	int flags = modes[below(5)] | (chance(80) ? O_NONBLOCK : 0) | (chance(5) ? O_APPEND : 0);
	int file;

	count("close", close(files[slot]));
	file = open(CBT_DEVICE, flags | (chance(3) ? O_PATH : 0));
	count("open", file);
	files[slot] = file;
}

static void wait_for_events(int file)
{
	struct pollfd one = { .fd = file, .events = any() & 0x7fff };
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	int set;

	if (chance(70)) {
		count("poll", poll(&one, 1, below(2)));
		return;
	}
	set = epoll_create1(0);
	if (set < 0)
		return;
	count("epoll", epoll_ctl(set, EPOLL_CTL_ADD, file, &event));
	if (chance(20))
		reopen();
	epoll_wait(set, &event, 1, 0);
	close(set);
}

static void read_or_write(int file)
{
	struct iovec parts[2] = { { good_buffer(), below(400) }, { any_pointer(96), below(200) } };
	size_t length = chance(50) ? 96 * below(40) : nasty() & 0x7fffffff;
	void *place = length <= ARENA ? good_buffer() : any_pointer(96);

	switch (below(6)) {
	case 0:
	case 1:
		count("read", read(file, place, length));
		break;
	case 2:
		count("pread", pread(file, place, length, nasty()));
		break;
	case 3:
		count("readv", readv(file, parts, 2));
		break;
	case 4:
		count("write", write(file, good_buffer(), below(ARENA)));
		break;
	default:
		count("sendfile", sendfile(any_file(), file, NULL, below(ARENA)));
	}
}

void use_file(void)
{
	int file = any_file();

	switch (below(10)) {
	case 0:
	case 1:
	case 2:
		reopen();
		break;
	case 3:
	case 4:
		wait_for_events(file);
		break;
	case 5:
		count("fcntl", fcntl(file, F_SETFL, any() & (O_NONBLOCK | O_ASYNC | O_APPEND)));
		break;
	case 6:
		count("seek", lseek(file, nasty(), below(5)));
		break;
	case 7:
		count("control", chance(50) ? ftruncate(file, nasty() >> 1) : fsync(file));
		break;
	default:
		read_or_write(file);
	}
}

/* The size and the place that the device asks for, or ones that are near. */
static size_t map_length(int file, off_t *offset)
{
	size_t length = PAGE * (1 + below(64));
	bool tails = chance(50);
	struct cbt_info info;

	*offset = tails ? CBT_MAP_TAILS : CBT_MAP_RINGS;
	if (!ioctl(file, CBT_IOC_INFO, &info))
		length = tails ? info.tails_bytes : info.rings_bytes;
	if (chance(8))
		*offset += PAGE * (1 + below(16));
	else if (chance(8))
		*offset = nasty() & ~4095ULL;
	if (chance(15))
		length = PAGE * below(256) + below(2);
	return length < SLOT_BYTES ? length : SLOT_BYTES;
}

static void map(unsigned int slot)
{
	static const int protections[] = {
		PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_WRITE, PROT_NONE,
		PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC,
	};
	int flags = chance(85) ? MAP_SHARED : chance(50) ? MAP_PRIVATE : MAP_SHARED_VALIDATE;
	int file = any_file(), protection = protections[below(7)];
	off_t offset;
	size_t length = map_length(file, &offset);
	void *place;

	if (chance(20))
		flags |= chance(50) ? MAP_POPULATE : MAP_LOCKED;
	place = mmap(SLOT(slot), length, protection, flags | MAP_FIXED, file, offset);
	count("mmap", place == MAP_FAILED ? -1 : 0);
	if (place != MAP_FAILED) {
		lengths[slot] = length;
		rights[slot] = protection;
	}
}

/* Read all of it; a part that is gone ends the step by a signal. */
static void look(unsigned int slot)
{
	volatile const char *place = SLOT(slot);
	size_t at;

	count("look", lengths[slot] && rights[slot] & PROT_READ ? 0 : -1);
	for (at = 0; at < lengths[slot]; at += 512)
		(void)place[at];
}

static void write_garbage(unsigned int slot)
{
	uint64_t *place = (uint64_t *)SLOT(slot);
	size_t words = lengths[slot] / 8, at;
	int times = 1 + below(100);

	if (!words)
		return;
	count("garbage", rights[slot] & PROT_WRITE ? 0 : -1);
	while (times--) {
		at = chance(70) ? 8 * below(words / 8 + 1) : below(words);
		if (at < words)
			place[at] = chance(50) ? nasty() : place[at] + below(1000) - 500;
	}
}

static void change(unsigned int slot)
{
	size_t pages = lengths[slot] / PAGE, from = pages ? below(pages) : 0;
	size_t length = PAGE * (1 + below(pages - from + 1));
	char *place = SLOT(slot) + from * PAGE;
	static const int advice[] = {
		MADV_DONTNEED, MADV_WILLNEED, MADV_DONTFORK, MADV_DOFORK, MADV_REMOVE, MADV_FREE,
		MADV_COLD, MADV_PAGEOUT, MADV_MERGEABLE, MADV_HUGEPAGE, MADV_POPULATE_READ,
		MADV_POPULATE_WRITE, MADV_DONTDUMP, MADV_WIPEONFORK,
	};
	unsigned int other = below(SLOTS);

	switch (below(6)) {
	case 0:
		count("munmap", munmap(place, length));
		break;
	case 1:
		count("mprotect", mprotect(place, length, below(8)));
		break;
	case 2:
		count("madvise", madvise(place, length, advice[below(14)]));
		break;
	case 3:
		count("mremap", mremap(place, length, PAGE * (1 + below(64)),
				       MREMAP_MAYMOVE | MREMAP_FIXED, SLOT(other)) ==
				       MAP_FAILED ? -1 : 0);
		break;
	case 4:
		count("mremap", mremap(place, length, PAGE * below(64), 0) == MAP_FAILED ? -1 : 0);
		break;
	default:
		count("msync", msync(place, length, 1 + below(7)));
	}
}

void use_mapping(void)
{
	unsigned int slot = below(SLOTS);

	switch (below(8)) {
	case 0:
		munmap(SLOT(slot), SLOT_BYTES);
		map(slot);
		break;
	case 1:
		count("munmap", munmap(SLOT(slot), SLOT_BYTES));
		lengths[slot] = 0;
		break;
	case 2:
	case 3:
		change(slot);
		break;
	case 4:
		look(slot);
		break;
	default:
		write_garbage(slot);
	}
}
