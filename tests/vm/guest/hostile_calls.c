// SPDX-License-Identifier: GPL-2.0
/*
 * The ioctls of the hostile program: plausible ones, broken ones and random ones.
 *
 * A table tells each call's fields by offset, size and what belongs there; the
 * numbers and the structures are those of cbt.h.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "cbt.h"
#include "hostile.h"

#define FIELDS 12
#define CALL_BYTES 1024		/* more than any structure has */
#define TRACKERS_KEPT 24	/* attached at most: what is over goes again */

enum content {
	ID, LOADING, PATH, MAJOR, MINOR, GRANULARITY, INTERVAL, LOG, ROLE, ATTACH_FLAGS,
	IDS_POINTER, COUNT, SWITCH_FLAGS, WAIT, BUFFER, OFFSET, LENGTH, TWO, STATUS_FLAGS, ROOM,
};

struct field {
	uint16_t offset;
	uint8_t size;
	uint8_t content;
};

#define FIELD(type, member, content) \
	{ offsetof(struct type, member), sizeof(((struct type *)0)->member), content }

static const struct call {
	const char *name;
	unsigned long request;
	unsigned int weight;
	struct field fields[FIELDS];
} calls[] = {
	{ "attach", CBT_IOC_ATTACH, 10, {
		FIELD(cbt_attach, path, PATH), FIELD(cbt_attach, major, MAJOR),
		FIELD(cbt_attach, minor, MINOR), FIELD(cbt_attach, granularity, GRANULARITY),
		FIELD(cbt_attach, interval, INTERVAL), FIELD(cbt_attach, log_fd, LOG),
		FIELD(cbt_attach, role, ROLE),
		FIELD(cbt_attach, flags, ATTACH_FLAGS),
	} },
	{ "detach", CBT_IOC_DETACH, 6, { { 0, 4, ID } } },
	{ "switch", CBT_IOC_SWITCH, 10, {
		FIELD(cbt_switch, trackers, IDS_POINTER), FIELD(cbt_switch, count, COUNT),
		FIELD(cbt_switch, flags, SWITCH_FLAGS),
		FIELD(cbt_switch, wait_ms, WAIT),
	} },
	{ "clear", CBT_IOC_CLEAR, 10, { { 0, 4, ID } } },
	{ "bits", CBT_IOC_BITS, 20, {
		FIELD(cbt_bits, buffer, BUFFER), FIELD(cbt_bits, offset, OFFSET),
		FIELD(cbt_bits, length, LENGTH), FIELD(cbt_bits, tracker, ID),
		FIELD(cbt_bits, which, TWO), FIELD(cbt_bits, kind, TWO),
	} },
	{ "seal", CBT_IOC_SEAL, 1, { { 0, 4, ID } } },
	{ "load", CBT_IOC_LOAD, 20, {
		FIELD(cbt_bits, buffer, BUFFER), FIELD(cbt_bits, offset, OFFSET),
		FIELD(cbt_bits, length, LENGTH), FIELD(cbt_bits, tracker, LOADING),
		FIELD(cbt_bits, kind, TWO),
	} },
	{ "why", CBT_IOC_WHY, 10, { { 0 } } },
	{ "info", CBT_IOC_INFO, 10, { { 0 } } },
	{ "ring", CBT_IOC_RING, 3, { { 0, 8, ROOM } } },
	{ "status", CBT_IOC_STATUS, 15, {
		FIELD(cbt_status, tracker, ID), FIELD(cbt_status, flags, STATUS_FLAGS),
	} },
};

#define CALLS (sizeof(calls) / sizeof(calls[0]))

/* Of a tracker that was sealed or attached, so that another can go on where it ended. */
static uint8_t generations[IDS][16];

static uint32_t any_id(void)
{
	uint32_t id = 0;
	int tries;

	if (chance(5))
		return below(100);
	for (tries = 0; tries < 8 && !id; tries++)
		id = shared->ids[below(IDS)];
	return id;
}

static struct stat any_volume(void)
{
	struct stat found = { 0 };

	stat(volumes[below(volume_count)], &found);
	return found;
}

static uint64_t any_path(void)
{
	static __thread char text[5000];
	static const char *const others[] = {
		"/dev/cbt", "/dev/null", "/", "/proc", "", "/dev/lab/results", "relative",
		"/dev/ram0", "/dev/loop0",
	};

	switch (below(10)) {
	case 0:
		return (uintptr_t)others[below(sizeof(others) / sizeof(others[0]))];
	case 1:
		snprintf(text, sizeof(text), "/proc/self/fd/%d", (int)below(40));
		return (uintptr_t)text;
	case 2:
		memset(text, 'x', sizeof(text));
		text[below(sizeof(text))] = '/';
		return (uintptr_t)text;	/* has no end */
	case 3:
		return 0;		/* by number */
	default:
		return (uintptr_t)volumes[below(volume_count)];
	}
}

static uint64_t id_list(void)
{
	static __thread uint32_t list[CBT_TRACKERS_MAX + 1];
	unsigned int start = below(IDS), i;

	list[0] = any_id();
	for (i = 1; i < CBT_TRACKERS_MAX + 1; i++)
		list[i] = shared->ids[(start + i) % IDS];
	return (uintptr_t)list;
}

static uint64_t bits_pointer(void)
{
	return (uintptr_t)(chance(80) ? good_buffer() : any_pointer(ARENA));
}

static uint64_t plausible(enum content content)
{
	switch (content) {
	case ID:
		return any_id();
	case LOADING:
		return chance(70) ? shared->loading : any_id();
	case PATH:
		return any_path();
	case MAJOR:
		return major(any_volume().st_rdev);
	case MINOR:
		return minor(any_volume().st_rdev);
	case GRANULARITY:
		return 512U << below(12);
	case INTERVAL:
		return chance(90) ? below(100) : nasty();
	case LOG:
		return chance(70) ? (uint64_t)-1 : below(20);
	case ROLE:
		return 1 + below(2);
	case ATTACH_FLAGS:
		return chance(50) ? 0 : 2 << below(5);
	case IDS_POINTER:
		return id_list();
	case COUNT:
		return chance(70) ? 1 : 1 + below(4);
	case SWITCH_FLAGS:
		return chance(70) ? CBT_SWITCH_RUNNING : 0;
	case WAIT:
		return chance(80) ? 0 : below(200);
	case BUFFER:
		return bits_pointer();
	case OFFSET:
		return chance(60) ? 0 : below(8192);
	case LENGTH:	/* of a whole bitmap in many cases */
		return chance(30) ? ARENA : chance(30) ? below(8192) : 32U << below(8);
	case STATUS_FLAGS:
		return below(2);
	case ROOM:
		return 16ULL << below(12);
	default:
		return below(2);
	}
}

static void put(void *argument, const struct field *field, uint64_t value)
{
	memcpy((char *)argument + field->offset, &value, field->size < 8 ? field->size : 8);
}

static const struct call *any_call(void)
{
	unsigned int total = 0, at, i;

	for (i = 0; i < CALLS; i++)
		total += calls[i].weight;
	at = below(total);
	for (i = 0; at >= calls[i].weight; i++)
		at -= calls[i].weight;
	return &calls[i];
}

static void fill(const struct call *call, void *argument)
{
	const struct field *field;

	memset(argument, 0, CALL_BYTES);
	for (field = call->fields; field->size; field++)
		put(argument, field, plausible(field->content));
	if (call->request == CBT_IOC_ATTACH && chance(30)) {
		struct cbt_attach *attach = argument;
		int tries;

		attach->flags = CBT_ATTACH_CONTINUE;
		/* A generation begins with a time: one that is zero was never given. */
		for (tries = 0; tries < 8 && !attach->generation[0]; tries++)
			memcpy(attach->generation, generations[below(IDS)], 16);
		if (chance(50))	/* that of a tracker that may be there still: it is to go */
			attach->generation[15] ^= 1;
	}
}

/* One field, or one byte anywhere, reserved ones too. */
static void spoil(const struct call *call, char *argument)
{
	unsigned int number = 0;

	while (call->fields[number].size)
		number++;
	if (number && chance(70))
		put(argument, &call->fields[below(number)], nasty());
	else
		argument[below(_IOC_SIZE(call->request))] ^= 1 << below(8);
}

/* A tracker that is gone is asked for less often: its place goes to another one. */
static void forget(uint32_t id)
{
	unsigned int slot;

	for (slot = 0; slot < IDS; slot++)
		if (shared->ids[slot] == id && chance(90))
			shared->ids[slot] = shared->ids[below(IDS)];
}

/* The first part of the bits of a tracker that goes on; the rest is left to chance. */
static void load_first(int file, const struct cbt_attach *attached)
{
	static const uint8_t none[8];
	struct cbt_bits bits = {
		.buffer = (uintptr_t)none,
		.length = attached->bitmap_bytes < 8 ? attached->bitmap_bytes : 8,
		.tracker = attached->tracker,
	};

	count("load", ioctl(file, CBT_IOC_LOAD, &bits));
}

/* What an attach gave belongs to those that come after; and not too many may stay. */
static void keep_attached(int file, const struct cbt_attach *attached)
{
	uint32_t slot = below(IDS), before = shared->ids[slot];
	struct cbt_info info;

	shared->ids[slot] = attached->tracker;
	if (attached->flags & CBT_ATTACH_CONTINUE) {
		shared->loading = attached->tracker;
		if (chance(70))
			load_first(file, attached);
	}
	memcpy(generations[slot], attached->generation, 16);
	if (!ioctl(file, CBT_IOC_INFO, &info) && info.trackers > TRACKERS_KEPT)
		count("detach", ioctl(file, CBT_IOC_DETACH, &before));
	if (info.trackers > 2 * TRACKERS_KEPT)
		detach_all(file);
}

void call_by_structure(void)
{
	static __thread char argument[CALL_BYTES] __attribute__((aligned(8)));
	const struct call *call = any_call();
	int file = any_file();
	void *pointer = argument;
	long result;

	fill(call, argument);
	if (chance(50))
		spoil(call, argument);
	if (chance(5))
		pointer = any_pointer(_IOC_SIZE(call->request));
	if (call->request == CBT_IOC_RING && chance(5))
		detach_all(file);	/* or it is always busy */
	result = ioctl(file, call->request, pointer);
	count(call->name, result);
	if (result || pointer != argument)
		return;
	if (call->request == CBT_IOC_ATTACH)
		keep_attached(file, (void *)argument);
	else if (call->request == CBT_IOC_DETACH)
		forget(*(uint32_t *)(void *)argument);
}

/* The calls' own numbers with random content, and random numbers. */
void call_at_random(void)
{
	static __thread char argument[1 << 14] __attribute__((aligned(8)));
	const struct call *call = &calls[below(CALLS)];
	unsigned long request = call->request;
	size_t size = _IOC_SIZE(request), at;

	scramble(argument, size);
	for (at = 0; at + 8 <= size; at += 8) {
		uint64_t value = nasty();

		if (chance(60))
			memcpy(argument + at, &value, 8);
	}
	if (chance(20)) {
		request = chance(50) ? _IOC(below(4), 'C', below(256), below(1 << 14)) : any();
		count("unknown", ioctl(any_file(), request, argument));
		return;
	}
	count("random", ioctl(any_file(), request, chance(90) ? argument : any_pointer(size)));
}

/* Detach all, twice where the first time says that it was sealed and written since. */
void detach_all(int file)
{
	struct cbt_status status = { .flags = CBT_STATUS_NEXT };

	memset(shared->ids, 0, sizeof(shared->ids));
	while (!ioctl(file, CBT_IOC_STATUS, &status)) {
		uint32_t id = status.tracker;
		int tries = 0;

		while (ioctl(file, CBT_IOC_DETACH, &id) && ++tries < 50)
			usleep(2000);
		memset(&status, 0, sizeof(status));
		status.flags = CBT_STATUS_NEXT;
		status.tracker = id + 1;
	}
}
