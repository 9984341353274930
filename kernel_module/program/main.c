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

#define ATTACH_OPTIONS \
	"       --interval N   the interval that begins (0)\n" \
	"       --log FILE     where the events will be saved: not on this volume\n" \
	"       --no-events    only bitmaps\n" \
	"       --single       one interval, half the memory: cannot be switched\n" \
	"       --tables       exchanges of its table leave the content as it is (LVM)\n" \
	"       --unclean      what was tracked before is lost\n"

static const struct command {
	const char *name;
	void (*run)(int argc, char **argv);
	int least;
	int most;
	const char *usage;
} commands[] = {
	{ "attach", do_attach, 3, 16,
	  "DEVICE|MAJOR:MINOR physical|snapshot GRANULARITY [OPTION]...\n"
	  "       prints the tracker's id\n" ATTACH_OPTIONS },
	{ "detach", do_detach, 1, CBT_TRACKERS_MAX, "ID...\n" },
	{ "seal", do_seal, 1, CBT_TRACKERS_MAX,
	  "ID...\n       records no more; see cbt.h\n" },
	{ "switch", do_switch, 1, CBT_TRACKERS_MAX + 3,
	  "[--running | --wait MS] ID...\n"
	  "       while suspended, topmost volume first; or, with --wait, before:\n"
	  "       suspend when it has printed \"waiting\"\n" },
	{ "clear", do_clear, 1, CBT_TRACKERS_MAX,
	  "ID...\n       the frozen bitmaps are read and saved\n" },
	{ "bits", do_bits, 4, 4, "ID active|frozen changed|discarded FILE\n" },
	{ "events", do_events, 1, 2,
	  "FILE [--follow]\n"
	  "       a native stream; --follow: until SIGTERM, SIGINT or SIGHUP\n" },
	{ "ring", do_ring, 1, 1, "EVENTS\n       room for events, and a new sequence\n" },
	{ "status", do_status, 0, 0,
	  "\n       a line for the module and each tracker, one for each of its states\n" },
	{ "stop", do_stop, 1, 2,
	  "DIR [ID]\n"
	  "       after the unmount: saves the bitmaps of what was started with DIR\n" },
	{ "start", do_start, 4, 17,
	  "DIR DEVICE|MAJOR:MINOR physical|snapshot GRANULARITY [OPTION]...\n"
	  "       before the mount: goes on where stop ended, or says why it cannot\n"
	  ATTACH_OPTIONS },
};

static void print_usage(FILE *out, const struct command *command)
{
	fprintf(out, "cbtctl %s %s", command->name, command->usage);
}

static const struct command *find(const char *name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(commands); i++)
		if (!strcmp(name, commands[i].name))
			return &commands[i];
	misunderstood("%s: is no command; cbtctl --help lists them", name);
}

static bool asks_for(const char *word, const char *what)
{
	return !strcmp(word, what) || (!strncmp(word, "--", 2) && !strcmp(word + 2, what));
}

static void help(void)
{
	size_t i;

	printf("usage: cbtctl COMMAND ...; ends with 0 done, 1 refused, 2 not understood\n\n");
	for (i = 0; i < ARRAY_SIZE(commands); i++)
		print_usage(stdout, &commands[i]);
}

static void run(const struct command *command, int argc, char **argv)
{
	int i;

	for (i = 0; i < argc; i++) {
		if (!strcmp(argv[i], "--help")) {
			print_usage(stdout, command);
			return;
		}
	}
	if (argc < command->least || argc > command->most) {
		print_usage(stderr, command);
		misunderstood("%s: too %s words", command->name,
			      argc < command->least ? "few" : "many");
	}
	command->run(argc, argv);
}

int main(int argc, char **argv)
{
	if (argc < 2)
		misunderstood("which command? cbtctl --help lists them");
	if (asks_for(argv[1], "help"))
		help();
	else if (asks_for(argv[1], "version"))
		printf("cbtctl %s, for version %d of the module's interface\n", CBTCTL_VERSION,
		       CBT_VERSION);
	else
		run(find(argv[1]), argc - 2, argv + 2);
	if (fflush(stdout) || ferror(stdout))
		fail_errno("stdout");
	return 0;
}
