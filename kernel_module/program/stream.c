// SPDX-License-Identifier: GPL-2.0
/*
 * events: saves the recorded events as a native stream (cbt_events.h).  Its
 * numbers rise from the first event to the last.
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
#include <unistd.h>

#include "cbtctl.h"

/* Few events at once cost more than they are worth: let some more come. */
#define GATHER_US 20000
#define FEW 1024

static struct cbt_event events[CBT_STREAM_BATCH];

/**
 * struct stream - being written
 * @fd: open file
 * @name: of it
 * @end: closes it; counts and CRC so far
 */
struct stream {
	int fd;
	const char *name;
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

static void write_header(const struct stream *stream)
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
	}
	memcpy(header.magic, CBT_STREAM_MAGIC, sizeof(header.magic));
	header.header_bytes = sizeof(header) + header.trackers * sizeof(*list);
	header.anchor_monotonic_ns = info.monotonic_ns;
	header.anchor_realtime_ns = info.realtime_ns;
	write_all(stream->fd, &header, sizeof(header), stream->name);
	write_all(stream->fd, list, header.trackers * sizeof(*list), stream->name);
	free(list);
}

/* Moves a batch of events below @below; returns how many. */
static size_t move_events(struct stream *stream, __u64 below, __u64 *reached)
{
	size_t count = rings_take(events, ARRAY_SIZE(events), below, reached);
	size_t bytes = count * sizeof(events[0]);

	stream->end.inode = crc32_step(stream->end.inode, events, bytes);
	stream->end.length += count;
	write_all(stream->fd, events, bytes, stream->name);
	return count;
}

/* Takes SIGTERM and SIGINT as something to be read. */
static int open_signals(void)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
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

	while (!waiting[0].revents) {
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
	stream->end.offset = below - 1 - rings_taken();
	write_all(stream->fd, &stream->end, sizeof(stream->end), stream->name);
	if (fsync(stream->fd) && errno != EINVAL)
		fail_errno(stream->name);
	if (close(stream->fd))
		fail_errno(stream->name);
}

/*
 * Trackers that are attached while the stream is written get no descriptor:
 * attach all, then start.
 */
void do_events(int argc, char **argv)
{
	struct stream stream = { .name = argv[0] };
	bool following = argc == 2;

	if (following && strcmp(argv[1], "--follow"))
		misunderstood("%s: is no option", argv[1]);
	module_open();
	rings_open();
	stream.fd = open(stream.name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (stream.fd < 0)
		fail_errno(stream.name);
	write_header(&stream);
	if (following)
		follow(&stream, open_signals());
	finish(&stream);
	printf("events=%llu next_seq=%llu dropped=%llu\n", stream.end.length, stream.end.seq,
	       stream.end.offset);
}
