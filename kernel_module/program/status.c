// SPDX-License-Identifier: GPL-2.0
/*
 * What the module tells of itself and of each tracker, and what a tracker's
 * states mean for the next backup.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cbtctl.h"

static const struct {
	__u32 state;
	const char *name;
	const char *next;
	const char *meaning;
} states[] = {
	{ CBT_S_GREW, "grew", "full, or all from size on as changed",
	  "is larger than it was when it was attached, or was written there" },
	{ CBT_S_SHRANK, "shrank", "full, on a new tracker",
	  "became smaller than it was when it was attached, if only for a while" },
	{ CBT_S_RUNNING, "running-switch", "full",
	  "an interval was switched while it was not suspended" },
	{ CBT_S_UNHOOKED, "unhooked", "full, on a new tracker",
	  "our write handler was replaced: writes may have gone unseen" },
	{ CBT_S_GONE, "gone", "none", "its device was removed" },
	{ CBT_S_TABLE, "table", "full",
	  "its device-mapper table was exchanged: content may have changed unseen" },
	{ CBT_S_UNCLEAN, "unclean", "full",
	  "attached after a crash: what was written before is not known" },
	{ CBT_S_LOADING, "loading", "full, until all bits are loaded",
	  "the bits from before the restart are not all back" },
	{ CBT_S_MISSED, "missed", "full, on a new tracker",
	  "was written after it was sealed" },
	{ CBT_S_SEALED, "sealed", "as the bitmaps say",
	  "records no more: its bitmaps wait to be saved" },
};

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

/* Names, with a comma after each; those that we do not know as a number. */
void states_text(char *text, size_t room, __u32 bits)
{
	size_t used = 0;
	size_t i;

	*text = 0;
	for (i = 0; i < ARRAY_SIZE(states); i++) {
		if (bits & states[i].state)
			used += snprintf(text + used, room - used, "%s,", states[i].name);
		bits &= ~states[i].state;
	}
	if (bits)
		snprintf(text + used, room - used, "%#x,", bits);
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

static void print_states(const struct cbt_status *status)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(states); i++) {
		if (status->states & states[i].state)
			printf("state id=%u name=%s next_backup=\"%s\" meaning=\"%s\"\n",
			       status->tracker, states[i].name, states[i].next,
			       states[i].meaning);
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
	printf(" bitmap_bytes=%llu memory=%llu attach=%s%s%s%s%s", s->bitmap_bytes, s->memory,
	       s->attach_flags & CBT_ATTACH_CONTINUE ? "continue," : "",
	       s->attach_flags & CBT_ATTACH_UNCLEAN ? "unclean," : "",
	       s->attach_flags & CBT_ATTACH_NO_EVENTS ? "no-events," : "",
	       s->attach_flags & CBT_ATTACH_SINGLE ? "single," : "",
	       s->attach_flags & CBT_ATTACH_TABLES ? "tables," : "");
	printf(" states=%s generation=%s\n", names, generation);
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
