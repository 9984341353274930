// SPDX-License-Identifier: GPL-2.0
/*
 * events: saves the recorded events as a native stream (cbt_events.h).  Its
 * numbers rise from the first event to the last.
 *
 * What is attached at the start is described in the header, what comes later
 * between the events, when its first one is met.  A tracker that is detached by
 * then cannot be described any more: its events are saved, and that is said.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "cbtctl.h"

/* Few events at once cost more than they are worth: let some more come. */
#define GATHER_US 20000
#define FEW 1024

static struct cbt_event events[CBT_STREAM_BATCH];
static bool met[CBT_TRACKER_IDS];	/* described, or known to be gone */

/**
 * struct stream - being written
 * @fd: open file
 * @name: of it
 * @place: open file or its folder: where it lies
 * @first: the lowest number that it can hold
 * @saved: events in it
 * @own: a tracker that records this stream, or 0
 * @end: closes it; counts and CRC so far
 */
struct stream {
	int fd;
	const char *name;
	int place;
	__u64 first;
	__u64 saved;
	__u32 own;
	struct cbt_event end;
};

static void describe(struct cbt_stream_tracker *one, const struct cbt_status *status)
{
	memset(one, 0, sizeof(*one));
	one->id = status->tracker;
	one->role = status->role;
	one->granularity = status->granularity;
	one->interval = status->first_interval;
	one->volume_size = status->volume_size;
	memcpy(one->name, status->name, CBT_NAME_BYTES);
}

static bool records_itself(const struct stream *stream, const struct cbt_status *status)
{
	return lies_on(stream->place, makedev(status->major, status->minor));
}

/* Before anything is made: a stream on a tracked volume would never end. */
static void refuse_own_volume(const struct stream *stream)
{
	struct cbt_status status = { 0 };

	while (status_next(&status))
		if (records_itself(stream, &status))
			fail("%s: lies on %s, whose writes it would record; save it elsewhere",
			     stream->name, status.name);
}

static void write_header(struct stream *stream)
{
	struct cbt_stream_header header = {
		.version = CBT_STREAM_VERSION,
		.record_bytes = sizeof(struct cbt_event),
	};
	struct cbt_stream_tracker *list = NULL;
	struct cbt_status status = { 0 };
	struct cbt_info info;

	module_call(CBT_IOC_INFO, &info, "info");
	while (status_next(&status)) {
		list = realloc(list, (header.trackers + 1) * sizeof(*list));
		if (!list)
			fail_errno(stream->name);
		describe(&list[header.trackers++], &status);
		met[status.tracker] = true;
	}
	memcpy(header.magic, CBT_STREAM_MAGIC, sizeof(header.magic));
	header.header_bytes = sizeof(header) + header.trackers * sizeof(*list);
	header.anchor_monotonic_ns = info.monotonic_ns;
	header.anchor_realtime_ns = info.realtime_ns;
	stream->first = rings_first_seq();
	header.first_seq = stream->first;
	write_all(stream->fd, &header, sizeof(header), stream->name);
	write_all(stream->fd, list, header.trackers * sizeof(*list), stream->name);
	free(list);
}

static void append(struct stream *stream, const struct cbt_event *records, size_t count)
{
	size_t bytes = count * sizeof(*records);

	stream->end.inode = crc32_step(stream->end.inode, records, bytes);
	stream->end.length += count;
	write_all(stream->fd, records, bytes, stream->name);
}

/* Describes the tracker of an event that is the first of its. */
static void meet(struct stream *stream, const struct cbt_event *event)
{
	struct cbt_status status = { .tracker = event->tracker };
	struct cbt_event told = {
		.op = CBT_OP_TRACKER,
		.seq = event->seq,
		.tracker = event->tracker,
	};

	met[event->tracker] = true;
	if (module_try(CBT_IOC_STATUS, &status)) {
		warn("%s: does not tell the volume of tracker %u, which was detached before",
		     stream->name, event->tracker);
		return;
	}
	told.length = status.volume_size;
	told.inode = status.granularity;
	told.interval = status.first_interval;
	told.flags = status.role;
	memcpy(told.comm, status.name, sizeof(told.comm));
	append(stream, &told, 1);
	if (records_itself(stream, &status))
		stream->own = event->tracker;
}

/* Moves a batch of events below @below; returns how many. */
static size_t move_events(struct stream *stream, __u64 below, __u64 *reached)
{
	size_t count = rings_take(events, ARRAY_SIZE(events), below, reached);
	size_t i;

	for (i = 0; i < count; i++)
		if (!met[events[i].tracker])
			meet(stream, &events[i]);
	append(stream, events, count);
	/* Only now: what could not be saved is there for the next reader. */
	rings_taken();
	stream->saved += count;
	return count;
}

/* Takes what asks for an end as something to be read. */
static int open_signals(void)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_CLOEXEC);
	if (fd < 0)
		fail_errno("signalfd");
	return fd;
}

static void follow(struct stream *stream, int signals)
{
	struct pollfd waiting[] = {
		{ .fd = signals, .events = POLLIN },
		{ .fd = module_fd, .events = POLLIN },
	};
	__u64 reached;

	while (!waiting[0].revents && !stream->own) {
		size_t moved = move_events(stream, UINT64_MAX, &reached);

		if (moved < FEW)
			usleep(GATHER_US);
		if (poll(waiting, ARRAY_SIZE(waiting), moved < FEW ? -1 : 0) < 0)
			fail_errno(CBT_DEVICE);
	}
}

/*
 * All events up to the moment of the call: its number is in the end record,
 * which so is exact while writes go on.
 */
static void finish(struct stream *stream)
{
	__u64 below = rings_next_seq();
	__u64 reached = 0;

	while (reached < below) {
		/* Another CPU is about to put one in. */
		if (!move_events(stream, below, &reached) && reached < below)
			usleep(1000);
	}
	stream->end.op = CBT_OP_END;
	stream->end.seq = below;
	stream->end.offset = below - 1 - rings_all_taken();
	write_all(stream->fd, &stream->end, sizeof(stream->end), stream->name);
	if (fsync(stream->fd) && errno != EINVAL)
		fail_errno(stream->name);
	if (close(stream->fd))
		fail_errno(stream->name);
}

void do_events(int argc, char **argv)
{
	struct stream stream = { .name = file_name(argv[0]) };
	bool following = argc == 2;

	if (following && strcmp(argv[1], "--follow"))
		misunderstood("%s: is no option", argv[1]);
	module_open();
	rings_open();
	stream.place = place_open(stream.name);
	refuse_own_volume(&stream);
	stream.fd = open(stream.name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (stream.fd < 0)
		fail_errno(stream.name);
	advise("the stream is cut; what is not in it waits in the rings");
	write_header(&stream);
	if (following)
		follow(&stream, open_signals());
	finish(&stream);
	advise("the stream was ended");
	if (stream.own)
		fail("%s: lies on the volume of tracker %u, whose writes it would record",
		     stream.name, stream.own);
	printf("events=%llu first_seq=%llu next_seq=%llu lost=%llu\n", stream.saved, stream.first,
	       stream.end.seq, stream.end.seq - stream.first - stream.saved);
}
