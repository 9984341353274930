// SPDX-License-Identifier: GPL-2.0
/*
 * cbtctl: drives cbt.ko where there is no Python.  cbt.h says what each call
 * does and how it fails.
 *
 * Exit status: 0 done, 1 refused (the message has the module's sentence), 2
 * the call cannot be understood.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cbtctl.h"

static const char usage[] =
	"usage: cbtctl attach DEVICE|MAJOR:MINOR physical|snapshot GRANULARITY [OPTION]...\n"
	"              prints the tracker's id\n"
	"         --interval N   the interval that begins (0)\n"
	"         --log FILE     where the events will be saved: not on this volume\n"
	"         --no-events    only bitmaps\n"
	"         --single       one interval, half the memory: cannot be switched\n"
	"         --tables       exchanges of its table leave the content as it is (LVM)\n"
	"         --unclean      what was tracked before is lost\n"
	"       cbtctl detach ID...\n"
	"       cbtctl seal ID...                     records no more; see cbt.h\n"
	"       cbtctl switch [--running] [--wait MS] ID...\n"
	"              while suspended, or with --wait before; topmost volume first\n"
	"       cbtctl clear ID...                    frozen bitmaps read and saved\n"
	"       cbtctl bits ID active|frozen changed|discarded FILE\n"
	"       cbtctl events FILE [--follow]         native stream; --follow: until SIGTERM\n"
	"       cbtctl ring EVENTS                    room, and a new sequence\n"
	"       cbtctl status                         a line for the module and each tracker,\n"
	"              one for each of its states\n"
	"       cbtctl stop DIR ID                    after the unmount: saves the bitmaps in DIR\n"
	"       cbtctl start DIR DEVICE|MAJOR:MINOR physical|snapshot GRANULARITY [OPTION]...\n"
	"              before the mount: goes on where stop ended, or says why it cannot\n";

static const struct command {
	const char *name;
	void (*run)(int argc, char **argv);
	int least;
	int most;
} commands[] = {
	{ "attach", do_attach, 3, 16 },
	{ "detach", do_detach, 1, CBT_TRACKERS_MAX },
	{ "seal", do_seal, 1, CBT_TRACKERS_MAX },
	{ "switch", do_switch, 1, CBT_TRACKERS_MAX + 3 },
	{ "clear", do_clear, 1, CBT_TRACKERS_MAX },
	{ "bits", do_bits, 4, 4 },
	{ "events", do_events, 1, 2 },
	{ "ring", do_ring, 1, 1 },
	{ "status", do_status, 0, 0 },
	{ "stop", do_stop, 2, 2 },
	{ "start", do_start, 4, 17 },
};

int main(int argc, char **argv)
{
	size_t i;

	if (argc == 2 && !strcmp(argv[1], "--help")) {
		fputs(usage, stdout);
		return 0;
	}
	for (i = 0; argc > 1 && i < ARRAY_SIZE(commands); i++) {
		const struct command *command = &commands[i];

		if (strcmp(argv[1], command->name))
			continue;
		if (argc - 2 < command->least || argc - 2 > command->most)
			break;
		command->run(argc - 2, argv + 2);
		if (fflush(stdout) || ferror(stdout))
			fail_errno("stdout");
		return 0;
	}
	fputs(usage, stderr);
	return EXIT_MISUNDERSTOOD;
}
