// SPDX-License-Identifier: GPL-2.0
/*
 * cbtctl: drives cbt.ko where there is no Python.  See usage() below; cbt.h
 * says what each call does and how it fails.
 *
 * Exit status: 0 done, 1 the module refused (its reason is in the kernel log),
 * 2 the call cannot be understood.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "cbt.h"

static int cbt;
static volatile sig_atomic_t stopped;

static void usage(void)
{
	fputs("usage: cbtctl attach DEVICE|MAJOR:MINOR physical|snapshot GRANULARITY [INTERVAL [LOG]]\n"
	      "              prints the tracker's id; LOG: where events will be saved\n"
	      "       cbtctl detach ID...\n"
	      "       cbtctl switch [--running] ID...       topmost volume first\n"
	      "       cbtctl clear ID...                    frozen bitmaps read and saved\n"
	      "       cbtctl bits ID active|frozen changed|discarded FILE\n"
	      "       cbtctl events FILE [--follow]         native stream; --follow: until SIGTERM\n"
	      "       cbtctl ring EVENTS                    room, and a new sequence\n"
	      "       cbtctl status                         one line for the module, one a tracker\n",
	      stderr);
	exit(2);
}

static void die(const char *what)
{
	fprintf(stderr, "cbtctl: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t number(const char *text, uint64_t max)
{
	char *end;
	uint64_t value;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || *end || end == text || *text == '-' || value > max) {
		fprintf(stderr, "cbtctl: %s: not a number up to %" PRIu64 "\n", text, max);
		exit(2);
	}
	return value;
}

static void call(unsigned long request, void *arg, const char *what)
{
	if (ioctl(cbt, request, arg) < 0)
		die(what);
}

static void write_all(int fd, const void *data, size_t length, const char *name)
{
	while (length) {
		ssize_t done = write(fd, data, length);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			die(name);
		data = (const char *)data + done;
		length -= done;
	}
}

/* ---- attach, detach, switch, clear, ring ---- */

static void do_attach(int argc, char **argv)
{
	struct cbt_attach attach = { .log_fd = -1 };
	char rest;

	if (argc < 3 || argc > 5)
		usage();
	if (sscanf(argv[0], "%u:%u%c", &attach.major, &attach.minor, &rest) != 2)
		attach.path = (uintptr_t)argv[0];
	if (!strcmp(argv[1], "physical"))
		attach.role = CBT_ROLE_PHYSICAL;
	else if (!strcmp(argv[1], "snapshot"))
		attach.role = CBT_ROLE_SNAPSHOT;
	else
		usage();
	attach.granularity = number(argv[2], UINT32_MAX);
	attach.interval = argc > 3 ? number(argv[3], UINT32_MAX) : 0;
	if (argc > 4) {
		attach.log_fd = open(argv[4], O_RDONLY | O_CREAT, 0600);
		if (attach.log_fd < 0)
			die(argv[4]);
	}
	call(CBT_IOC_ATTACH, &attach, argv[0]);
	printf("%u\n", attach.tracker);
}

static void for_ids(unsigned long request, int argc, char **argv)
{
	if (!argc)
		usage();
	for (; argc; argc--, argv++) {
		__u32 id = number(*argv, UINT32_MAX);

		call(request, &id, *argv);
	}
}

static void do_switch(int argc, char **argv)
{
	__u32 ids[CBT_TRACKERS_MAX];
	struct cbt_switch request = { .trackers = (uintptr_t)ids };

	if (argc && !strcmp(*argv, "--running")) {
		request.flags = CBT_SWITCH_RUNNING;
		argc--;
		argv++;
	}
	if (!argc || argc > CBT_TRACKERS_MAX)
		usage();
	for (; argc; argc--, argv++)
		ids[request.count++] = number(*argv, UINT32_MAX);
	call(CBT_IOC_SWITCH, &request, "switch");
	printf("time_ns=%llu seq=%llu frozen_ns=%llu suspended=%d\n",
	       request.time_ns, request.seq, request.frozen_ns,
	       !!(request.flags & CBT_SWITCH_SUSPENDED));
}

static void do_ring(int argc, char **argv)
{
	__u64 events;

	if (argc != 1)
		usage();
	events = number(*argv, UINT64_MAX);
	call(CBT_IOC_RING, &events, "ring");
}

/* ---- bits ---- */

static char bits_buffer[1 << 20];

static void do_bits(int argc, char **argv)
{
	struct cbt_bits bits = { .buffer = (uintptr_t)bits_buffer };
	bool first = true;
	__u32 interval = 0;
	int fd;

	if (argc != 4)
		usage();
	bits.tracker = number(argv[0], UINT32_MAX);
	if (!strcmp(argv[1], "frozen"))
		bits.which = CBT_BITS_FROZEN;
	else if (strcmp(argv[1], "active"))
		usage();
	if (!strcmp(argv[2], "discarded"))
		bits.kind = CBT_BITS_DISCARDED;
	else if (strcmp(argv[2], "changed"))
		usage();
	fd = open(argv[3], O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0)
		die(argv[3]);
	for (;;) {
		bits.length = sizeof(bits_buffer);
		call(CBT_IOC_BITS, &bits, argv[0]);
		if (first)
			interval = bits.interval;
		first = false;
		if (interval != bits.interval) {
			fputs("cbtctl: the interval was switched meanwhile\n", stderr);
			exit(1);
		}
		if (!bits.length)
			break;
		write_all(fd, bits_buffer, bits.length, argv[3]);
		bits.offset += bits.length;
	}
	if (close(fd))
		die(argv[3]);
	printf("interval=%u bytes=%llu\n", interval, bits.offset);
}

/* ---- status ---- */

static bool next_tracker(struct cbt_status *status)
{
	__u32 from = status->tracker + 1;

	memset(status, 0, sizeof(*status));
	status->tracker = from;
	status->flags = CBT_STATUS_NEXT;
	if (!ioctl(cbt, CBT_IOC_STATUS, status))
		return true;
	if (errno != ENOENT)
		die("status");
	return false;
}

static void print_hex(const char *name, const __u8 *bytes)
{
	int i;

	printf(" %s=", name);
	for (i = 0; i < CBT_ID_BYTES; i++)
		printf("%02x", bytes[i]);
}

static void do_status(void)
{
	struct cbt_status s = { 0 };
	struct cbt_info info;

	call(CBT_IOC_INFO, &info, "status");
	printf("module version=%u next_seq=%llu recorded=%llu dropped=%llu ring=%llu/%llu trackers=%u monotonic_ns=%llu realtime_ns=%llu",
	       info.version, info.next_seq, info.recorded, info.dropped,
	       info.ring_used, info.ring_events, info.trackers,
	       info.monotonic_ns, info.realtime_ns);
	print_hex("generation", info.generation);
	putchar('\n');
	while (next_tracker(&s)) {
		printf("tracker id=%u name=%s device=%u:%u role=%s granularity=%u interval=%u first_interval=%u frozen=%u switches=%llu size=%llu current_size=%llu grown_to=%llu events=%llu bytes=%llu discards=%llu remainders=%llu memory=%llu",
		       s.tracker, s.name, s.major, s.minor,
		       s.role == CBT_ROLE_PHYSICAL ? "physical" : "snapshot",
		       s.granularity, s.interval, s.first_interval, s.frozen,
		       s.switches, s.volume_size, s.current_size, s.grown_to,
		       s.events, s.bytes, s.discards, s.remainders, s.memory);
		printf(" states=%s%s%s%s%s",
		       s.states & CBT_S_GREW ? "grew," : "",
		       s.states & CBT_S_SHRANK ? "shrank," : "",
		       s.states & CBT_S_RUNNING ? "running-switch," : "",
		       s.states & CBT_S_UNHOOKED ? "unhooked," : "",
		       s.states & CBT_S_GONE ? "gone," : "");
		print_hex("generation", s.generation);
		putchar('\n');
	}
}

/* ---- events: the native stream ---- */

static uint32_t crc32_step(uint32_t crc, const unsigned char *data, size_t length)
{
	static uint32_t table[256];
	uint32_t value;
	int i, bit;

	if (!table[1]) {
		for (i = 0; i < 256; i++) {
			value = i;
			for (bit = 0; bit < 8; bit++)
				value = value & 1 ? value >> 1 ^ 0xedb88320 : value >> 1;
			table[i] = value;
		}
	}
	crc = ~crc;
	while (length--)
		crc = crc >> 8 ^ table[(crc ^ *data++) & 0xff];
	return ~crc;
}

static void write_header(int fd, const char *name)
{
	struct cbt_stream_header header = {
		.version = CBT_STREAM_VERSION,
		.record_bytes = sizeof(struct cbt_event),
	};
	struct cbt_stream_tracker *list = NULL;
	struct cbt_status status = { 0 };
	struct cbt_info info;

	call(CBT_IOC_INFO, &info, "info");
	while (next_tracker(&status)) {
		struct cbt_stream_tracker *one;

		list = realloc(list, (header.trackers + 1) * sizeof(*list));
		if (!list)
			die(name);
		one = &list[header.trackers++];
		memset(one, 0, sizeof(*one));
		one->id = status.tracker;
		one->role = status.role;
		one->granularity = status.granularity;
		one->interval = status.first_interval;
		one->volume_size = status.volume_size;
		memcpy(one->name, status.name, CBT_NAME_BYTES);
	}
	memcpy(header.magic, CBT_STREAM_MAGIC, sizeof(header.magic));
	header.header_bytes = sizeof(header) + header.trackers * sizeof(*list);
	header.anchor_monotonic_ns = info.monotonic_ns;
	header.anchor_realtime_ns = info.realtime_ns;
	write_all(fd, &header, sizeof(header), name);
	write_all(fd, list, header.trackers * sizeof(*list), name);
	free(list);
}

static void stop(int sig)
{
	(void)sig;
	stopped = 1;
}

static struct cbt_event events_buffer[4096];

/* Moves up to @max events from the ring to the stream; returns how many. */
static size_t move_events(int fd, const char *name, size_t max, struct cbt_event *end)
{
	size_t room = sizeof(events_buffer) / sizeof(events_buffer[0]);
	ssize_t got;

	if (max > room)
		max = room;
	errno = 0;
	got = read(cbt, events_buffer, max * sizeof(events_buffer[0]));
	if (got < 0 && (errno == EINTR || errno == EAGAIN))
		return 0;
	if (got < 0)
		die(CBT_DEVICE);
	end->inode = crc32_step(end->inode, (unsigned char *)events_buffer, got);
	write_all(fd, events_buffer, got, name);
	got /= sizeof(events_buffer[0]);
	end->length += got;
	return got;
}

static void follow_events(int fd, const char *name, struct cbt_event *end)
{
	struct pollfd waiting = { .fd = cbt, .events = POLLIN };
	struct sigaction action = { .sa_handler = stop };

	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	/* poll has a limit: a signal may fall just before the call. */
	while (!stopped)
		if (!move_events(fd, name, SIZE_MAX, end))
			poll(&waiting, 1, 200);
}

/*
 * Trackers that are attached while the stream is written get no descriptor:
 * attach all, then start.  The stream ends with what the ring holds at one
 * moment, so that its end record is exact while writes go on.
 */
static void do_events(int argc, char **argv)
{
	bool follow = argc == 2 && !strcmp(argv[1], "--follow");
	struct cbt_event end = { .op = CBT_OP_END };
	struct cbt_info info;
	int fd;

	if (argc != 1 + follow)
		usage();
	fd = open(argv[0], O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0)
		die(argv[0]);
	write_header(fd, argv[0]);
	if (follow)
		follow_events(fd, argv[0], &end);
	call(CBT_IOC_INFO, &info, "info");
	while (info.ring_used) {
		size_t moved = move_events(fd, argv[0], info.ring_used, &end);

		if (!moved && errno == EINTR)
			continue;
		if (!moved) {
			fputs("cbtctl: somebody else reads the events too\n", stderr);
			exit(1);
		}
		info.ring_used -= moved;
	}
	end.seq = info.next_seq;
	end.offset = info.dropped;
	write_all(fd, &end, sizeof(end), argv[0]);
	if (fsync(fd) && errno != EINVAL)
		die(argv[0]);
	if (close(fd))
		die(argv[0]);
	printf("events=%llu next_seq=%llu dropped=%llu\n",
	       end.length, end.seq, end.offset);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (argc < 2)
		usage();
	cbt = open(CBT_DEVICE, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (cbt < 0)
		die(CBT_DEVICE);
	argc -= 2;
	argv += 2;
	if (!strcmp(what, "attach"))
		do_attach(argc, argv);
	else if (!strcmp(what, "detach"))
		for_ids(CBT_IOC_DETACH, argc, argv);
	else if (!strcmp(what, "switch"))
		do_switch(argc, argv);
	else if (!strcmp(what, "clear"))
		for_ids(CBT_IOC_CLEAR, argc, argv);
	else if (!strcmp(what, "bits"))
		do_bits(argc, argv);
	else if (!strcmp(what, "events"))
		do_events(argc, argv);
	else if (!strcmp(what, "ring"))
		do_ring(argc, argv);
	else if (!strcmp(what, "status") && !argc)
		do_status();
	else
		usage();
	return 0;
}
