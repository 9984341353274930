// SPDX-License-Identifier: GPL-2.0
/*
 * What the module tells of itself and of each tracker, and what a tracker's
 * states mean for the next backup.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cbtctl.h"

/* What the next backup must be, the later the worse. */
static const char * const backups[] = { "incremental", "full", "full-anew", "none" };

enum {
	INCREMENTAL,
	FULL,
	/*
	 * On a tracker that is attached beside this one: at its first switch
	 * the full backup is made, and then this one is detached.
	 */
	FULL_ANEW,
	NONE,
};

static const struct {
	__u32 state;
	int next;
	const char *name;
	const char *meaning;
} states[] = {
	{ CBT_S_GREW, FULL_ANEW, "grew",
	  "it is larger than it was when it was attached, or was written there" },
	{ CBT_S_SHRANK, FULL_ANEW, "shrank",
	  "it became smaller than it was when it was attached, if only for a while" },
	{ CBT_S_RUNNING, FULL_ANEW, "running-switch",
	  "an interval was switched while it was not suspended" },
	{ CBT_S_UNHOOKED, FULL_ANEW, "unhooked",
	  "another module replaced the write handler" },
	{ CBT_S_GONE, NONE, "gone", "its device was removed" },
	{ CBT_S_TABLE, FULL_ANEW, "table",
	  "its device-mapper table was exchanged, and its content unseen" },
	{ CBT_S_UNCLEAN, FULL, "unclean",
	  "it was tracked before, and those bitmaps were lost" },
	{ CBT_S_LOADING, FULL, "loading", "its earlier bitmaps were not loaded to the end" },
	{ CBT_S_MISSED, FULL_ANEW, "missed", "it was written after its tracker was sealed" },
	{ CBT_S_SEALED, INCREMENTAL, "sealed", "its tracker records no more" },
};

/*
 * At the first switch the full backup that an unclean start asks for can be
 * made; when its bitmaps are cleared it has been.
 */
static bool unclean_is_past(const struct cbt_status *status)
{
	return status->switches > 1 || (status->switches == 1 && !status->frozen);
}

void status_of(__u32 id, struct cbt_status *status)
{
	memset(status, 0, sizeof(*status));
	status->tracker = id;
	tracker_call(CBT_IOC_STATUS, status, id);
}

/* Goes on to the next tracker; false after the last.  Starts from all zeros. */
bool status_next(struct cbt_status *status)
{
	__u32 from = status->tracker + 1;
	int error;

	memset(status, 0, sizeof(*status));
	status->tracker = from;
	status->flags = CBT_STATUS_NEXT;
	error = module_try(CBT_IOC_STATUS, status);
	if (error && error != ENOENT)
		refused("status", error);
	return !error;
}

/* Names with commas between; those that we do not know as a number. */
void states_text(char *text, size_t room, __u32 bits)
{
	size_t used = 0;
	size_t i;

	*text = 0;
	for (i = 0; i < ARRAY_SIZE(states); i++) {
		if (bits & states[i].state)
			used += snprintf(text + used, room - used, "%s%s", used ? "," : "",
					 states[i].name);
		bits &= ~states[i].state;
	}
	if (bits)
		snprintf(text + used, room - used, "%s%#x", used ? "," : "", bits);
}

static void print_info(const struct cbt_info *info)
{
	char generation[HEX_BYTES];

	hex(generation, info->generation);
	printf("module version=%u next_seq=%llu recorded=%llu dropped=%llu", info->version,
	       info->next_seq, info->recorded, info->dropped);
	printf(" first_dropped=%llu last_dropped=%llu", info->first_dropped, info->last_dropped);
	printf(" rings=%u ring_room=%u ring_used=%llu trackers=%u tables_seen=%s", info->rings,
	       info->ring_room, info->ring_used, info->trackers,
	       info->flags & CBT_I_NO_TABLES ? "no" : "yes");
	printf(" monotonic_ns=%llu realtime_ns=%llu generation=%s\n", info->monotonic_ns,
	       info->realtime_ns, generation);
}

static int next_backup(const struct cbt_status *status, size_t state)
{
	if (!(status->states & states[state].state))
		return INCREMENTAL;
	if (states[state].state == CBT_S_UNCLEAN && unclean_is_past(status))
		return INCREMENTAL;
	return states[state].next;
}

static const char *worst_backup(const struct cbt_status *status)
{
	int worst = INCREMENTAL;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(states); i++)
		if (next_backup(status, i) > worst)
			worst = next_backup(status, i);
	return backups[worst];
}

static void print_states(const struct cbt_status *status)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(states); i++) {
		if (status->states & states[i].state)
			printf("state id=%u name=%s next_backup=%s meaning=\"%s\"\n",
			       status->tracker, states[i].name,
			       backups[next_backup(status, i)], states[i].meaning);
	}
}

static const struct {
	__u32 flag;
	const char *name;
} attach_names[] = {
	{ CBT_ATTACH_CONTINUE, "continue" },
	{ CBT_ATTACH_UNCLEAN, "unclean" },
	{ CBT_ATTACH_NO_EVENTS, "no-events" },
	{ CBT_ATTACH_SINGLE, "single" },
	{ CBT_ATTACH_TABLES, "tables" },
};

static void print_attach(__u32 flags)
{
	const char *comma = "";
	size_t i;

	printf(" attach=");
	for (i = 0; i < ARRAY_SIZE(attach_names); i++) {
		if (!(flags & attach_names[i].flag))
			continue;
		printf("%s%s", comma, attach_names[i].name);
		comma = ",";
	}
}

static void print_tracker(const struct cbt_status *s)
{
	char generation[HEX_BYTES];
	char names[256];

	hex(generation, s->generation);
	states_text(names, sizeof(names), s->states);
	printf("tracker id=%u name=%s device=%u:%u role=%s granularity=%u", s->tracker, s->name,
	       s->major, s->minor, s->role == CBT_ROLE_PHYSICAL ? "physical" : "snapshot",
	       s->granularity);
	printf(" interval=%u first_interval=%u frozen=%u switches=%llu", s->interval,
	       s->first_interval, s->frozen, s->switches);
	printf(" size=%llu current_size=%llu grown_to=%llu", s->volume_size, s->current_size,
	       s->grown_to);
	printf(" events=%llu bytes=%llu discards=%llu remainders=%llu tables=%llu", s->events,
	       s->bytes, s->discards, s->remainders, s->tables);
	printf(" bitmap_bytes=%llu memory=%llu", s->bitmap_bytes, s->memory);
	print_attach(s->attach_flags);
	printf(" next_backup=%s states=%s generation=%s\n", worst_backup(s), names, generation);
	print_states(s);
}

void do_status(int argc, char **argv)
{
	struct cbt_status status = { 0 };
	struct cbt_info info;

	(void)argc;
	(void)argv;
	module_open();
	module_call(CBT_IOC_INFO, &info, "status");
	print_info(&info);
	while (status_next(&status))
		print_tracker(&status);
}
