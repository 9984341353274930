// SPDX-License-Identifier: GPL-2.0
/*
 * attach, detach, seal, switch, clear, ring: one call of the module each.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "cbtctl.h"

/* True, and the numbers are set, if @text is MAJOR:MINOR; else it is a path. */
bool parse_device(struct cbt_attach *attach, const char *text)
{
	char rest;

	if (sscanf(text, "%u:%u%c", &attach->major, &attach->minor, &rest) == 2)
		return true;
	attach->path = (uintptr_t)text;
	return false;
}

static void open_log(struct cbt_attach *attach, const char *name)
{
	attach->log_fd = open(name, O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
	if (attach->log_fd < 0)
		fail_errno(name);
}

static const struct {
	const char *name;
	__u32 flag;
} attach_options[] = {
	{ "--no-events", CBT_ATTACH_NO_EVENTS },
	{ "--single", CBT_ATTACH_SINGLE },
	{ "--tables", CBT_ATTACH_TABLES },
	{ "--unclean", CBT_ATTACH_UNCLEAN },
};

static void parse_option(struct cbt_attach *attach, const char *option)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(attach_options); i++) {
		if (!strcmp(option, attach_options[i].name)) {
			attach->flags |= attach_options[i].flag;
			return;
		}
	}
	misunderstood("%s: is no option", option);
}

/* DEVICE ROLE GRANULARITY [OPTION]...; the module judges the granularity. */
void parse_attach(struct cbt_attach *attach, int argc, char **argv)
{
	int i;

	memset(attach, 0, sizeof(*attach));
	attach->log_fd = -1;
	parse_device(attach, argv[0]);
	if (!strcmp(argv[1], "physical"))
		attach->role = CBT_ROLE_PHYSICAL;
	else if (!strcmp(argv[1], "snapshot"))
		attach->role = CBT_ROLE_SNAPSHOT;
	else
		misunderstood("%s: the role is physical or snapshot", argv[1]);
	attach->granularity = parse_number(argv[2], 0xffffffff);
	for (i = 3; i < argc; i++) {
		bool value = !strcmp(argv[i], "--interval") || !strcmp(argv[i], "--log");

		if (value && i + 1 == argc)
			misunderstood("%s: needs a value", argv[i]);
		if (!strcmp(argv[i], "--interval"))
			attach->interval = parse_number(argv[++i], 0xffffffff);
		else if (!strcmp(argv[i], "--log"))
			open_log(attach, argv[++i]);
		else
			parse_option(attach, argv[i]);
	}
}

void do_attach(int argc, char **argv)
{
	struct cbt_attach attach;

	parse_attach(&attach, argc, argv);
	module_open();
	module_call(CBT_IOC_ATTACH, &attach, argv[0]);
	printf("%u\n", attach.tracker);
}

static void for_ids(unsigned long request, int argc, char **argv)
{
	__u32 ids[CBT_TRACKERS_MAX];
	int i;

	for (i = 0; i < argc; i++)
		ids[i] = parse_id(argv[i]);
	module_open();
	for (i = 0; i < argc; i++)
		tracker_call(request, &ids[i], ids[i]);
}

void do_detach(int argc, char **argv)
{
	for_ids(CBT_IOC_DETACH, argc, argv);
}

void do_seal(int argc, char **argv)
{
	for_ids(CBT_IOC_SEAL, argc, argv);
}

void do_clear(int argc, char **argv)
{
	for_ids(CBT_IOC_CLEAR, argc, argv);
}

void do_switch(int argc, char **argv)
{
	__u32 ids[CBT_TRACKERS_MAX];
	struct cbt_switch request = { .trackers = (uintptr_t)ids };
	int i;

	for (i = 0; i < argc; i++) {
		if (!strcmp(argv[i], "--running")) {
			request.flags = CBT_SWITCH_RUNNING;
		} else if (!strcmp(argv[i], "--wait")) {
			if (++i == argc)
				misunderstood("--wait: needs milliseconds");
			request.wait_ms = parse_number(argv[i], 0xffffffff);
		} else if (request.count == CBT_TRACKERS_MAX) {
			misunderstood("switch: at most %d trackers at once", CBT_TRACKERS_MAX);
		} else {
			ids[request.count++] = parse_id(argv[i]);
		}
	}
	if (!request.count)
		misunderstood("switch: which trackers?");
	module_open();
	module_call(CBT_IOC_SWITCH, &request, "switch");
	printf("time_ns=%llu seq=%llu frozen_ns=%llu suspended=%d\n",
	       request.time_ns, request.seq, request.frozen_ns,
	       !!(request.flags & CBT_SWITCH_SUSPENDED));
}

void do_ring(int argc, char **argv)
{
	__u64 events = parse_number(argv[argc - 1], UINT64_MAX);

	module_open();
	module_call(CBT_IOC_RING, &events, "ring");
}
