// SPDX-License-Identifier: GPL-2.0
/*
 * A file that comes into being whole, on the disk, or not at all: what was
 * there before stays until then.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cbtctl.h"

static char draft[PATH_MAX];	/* what is to be removed at the end, or "" */

static void remove_draft(void)
{
	if (*draft)
		unlink(draft);
}

static bool is_file(const char *name)
{
	struct stat about;

	return stat(name, &about) || S_ISREG(about.st_mode);
}

/* One at a time.  What is no file (/dev/stdout) is written as it is. */
void output_open(struct output *output, const char *name)
{
	static char target[PATH_MAX];

	output->name = name;
	if (is_file(name)) {
		/* Behind a link: that is to stay one. */
		output->name = realpath(name, target) ? target : name;
		if (snprintf(draft, sizeof(draft), "%s.new", output->name) >= (int)sizeof(draft))
			fail("%s: its name is too long", name);
		atexit(remove_draft);
	}
	output->fd = open(*draft ? draft : name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (output->fd < 0)
		fail_errno(name);
}

void output_close(struct output *output)
{
	if ((*draft && fsync(output->fd)) || close(output->fd) ||
	    (*draft && rename(draft, output->name)))
		fail_errno(output->name);
	*draft = 0;
}
