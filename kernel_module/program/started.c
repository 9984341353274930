// SPDX-License-Identifier: GPL-2.0
/*
 * The file DIR/started: which tracker start has attached with the folder, by
 * its id and its generation, so that no other is stopped into it.  It is empty
 * while the first one is being attached.
 */
#include <stdio.h>
#include <string.h>

#include "cbtctl.h"

#define NAME_NEW "started.new"
#define LINE_BYTES 128

void started_write(const struct folder *folder, const struct cbt_attach *attach)
{
	char generation[HEX_BYTES], line[LINE_BYTES];

	hex(generation, attach->generation);
	snprintf(line, sizeof(line), "tracker id=%u generation=%s\n", attach->tracker, generation);
	folder_write(folder, NAME_NEW, line);
	folder_rename(folder, NAME_NEW, NAME_STARTED);
}

/* The generation in it, as text of HEX_BYTES. */
static void started_read(const struct folder *folder, char *generation)
{
	char line[LINE_BYTES] = { 0 };
	unsigned int id;

	if (!folder_has(folder, NAME_STARTED))
		fail("%s: no tracker was started with this folder", folder->name);
	folder_read(folder, NAME_STARTED, line, sizeof(line) - 1);
	if (sscanf(line, "tracker id=%u generation=%32[0-9a-f]", &id, generation) != 2)
		fail("%s: does not say which tracker was started; detach it, and start anew",
		     folder_path(folder, NAME_STARTED));
}

static bool is_of(const struct cbt_status *status, const char *generation)
{
	char own[HEX_BYTES];

	hex(own, status->generation);
	return !strcmp(own, generation);
}

/* The tracker that was started with the folder. */
void started_tracker(const struct folder *folder, struct cbt_status *status)
{
	char generation[HEX_BYTES] = { 0 };

	started_read(folder, generation);
	memset(status, 0, sizeof(*status));
	while (status_next(status))
		if (is_of(status, generation))
			return;
	if (folder_has(folder, NAME_CLEAN))
		fail("%s: its tracker was stopped already", folder->name);
	fail("%s: the tracker that was started with it is not attached any more", folder->name);
}

/* Tracker @id, if it is the one that was started with the folder. */
void started_is(const struct folder *folder, __u32 id, struct cbt_status *status)
{
	char generation[HEX_BYTES] = { 0 };

	status_of(id, status);
	started_read(folder, generation);
	if (!is_of(status, generation))
		fail("tracker %u is not the one that was started with %s; stop DIR alone finds it",
		     id, folder->name);
}
