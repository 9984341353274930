// SPDX-License-Identifier: GPL-2.0
/*
 * attach, detach, seal, switch, clear, ring: one call of the module each.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

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

/* The module knows a file that lies directly on @volume; here all beneath is looked at. */
void log_not_on(const struct cbt_attach *attach, dev_t volume, const char *name)
{
	if (attach->log_fd >= 0 && lies_on(attach->log_fd, volume))
		fail("%s: the log lies on it, and would record itself; save it elsewhere", name);
}

static dev_t device_of(const struct cbt_attach *attach)
{
	struct stat about;

	if (!attach->path)
		return makedev(attach->major, attach->minor);
	return stat((const char *)(uintptr_t)attach->path, &about) ? 0 : about.st_rdev;
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
			attach->log_fd = place_open(argv[++i]);
		else
			parse_option(attach, argv[i]);
	}
}

void do_attach(int argc, char **argv)
{
	struct cbt_attach attach;

	parse_attach(&attach, argc, argv);
	module_open();
	log_not_on(&attach, device_of(&attach), argv[0]);
	module_call(CBT_IOC_ATTACH, &attach, argv[0]);
	/* Apart from the id, which scripts take. */
	warn("tracker %u takes %llu bytes of memory", attach.tracker, attach.memory);
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

/* True if the parent waits inside ioctl(2). */
static bool parent_waits(void)
{
	char path[64];
	FILE *file;
	long call = -1;

	snprintf(path, sizeof(path), "/proc/%d/syscall", getppid());
	file = fopen(path, "re");
	if (!file)
		return true;	/* it cannot be known */
	if (fscanf(file, "%ld", &call) != 1)
		call = -1;	/* "running" */
	fclose(file);
	return call == SYS_ioctl;
}

/*
 * Prints "waiting" when the call that follows has begun to wait: only then may
 * the volumes be suspended.  A child looks, since the call does not return.
 */
static pid_t tell_waiting(void)
{
	pid_t parent = getpid();
	pid_t child;

	fflush(stdout);
	child = fork();
	if (child < 0)
		fail_errno("switch");
	if (child)
		return child;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (getppid() == parent && !parent_waits())
		usleep(1000);
	if (getppid() == parent && write(STDOUT_FILENO, "waiting\n", 8) < 0)
		_exit(1);
	_exit(0);
}

/* Returns the errno of the refusal, or 0. */
static int switch_waiting(struct cbt_switch *request)
{
	pid_t child = tell_waiting();
	int error = module_try(CBT_IOC_SWITCH, request);

	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return error;
}

void do_switch(int argc, char **argv)
{
	__u32 ids[CBT_TRACKERS_MAX];
	struct cbt_switch request = { .trackers = (uintptr_t)ids };
	int error;
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
	if (request.flags && request.wait_ms)
		misunderstood("--wait: waits for a suspend, which --running does without");
	module_open();
	error = request.wait_ms ? switch_waiting(&request) : module_try(CBT_IOC_SWITCH, &request);
	if (error)
		refused("switch", error);
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
