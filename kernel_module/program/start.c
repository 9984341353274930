// SPDX-License-Identifier: GPL-2.0
/*
 * start: a tracker goes on where stop ended.  To be called before the volume
 * is mounted, or written in any way.
 *
 * The mark that the saved state is clean is removed, on the disk, before the
 * volume can be tracked: what a crash leaves from then on has no mark.  The
 * fingerprint is compared when the tracker is at work, so that no write falls
 * between the comparison and the recording.
 *
 * When the state cannot be gone on from, the volume is tracked all the same,
 * under a new generation, and the next backup is a full one:
 *
 *	state=clean	same generation and interval, all bits are back
 *	state=unclean	the reason says why
 *	state=new	nothing was ever tracked with this folder
 */
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "cbtctl.h"

static struct state state;	/* large: its fingerprint */

static const char *role_name(int role)
{
	return role == CBT_ROLE_PHYSICAL ? "physical" : "snapshot";
}

/* Returns why the state is not for this volume and this call, or NULL. */
static const char *misfit(const struct cbt_attach *attach, const struct volume *volume)
{
	const struct state_header *header = &state.header;
	static char reason[320];
	char names[256];

	if (header->states == CBT_S_UNCLEAN)
		return "no interval has ended since the start before, which was unclean";
	if (header->states) {
		states_text(names, sizeof(names), header->states);
		snprintf(reason, sizeof(reason), "before the stop its states were %s", names);
		return reason;
	}
	if (header->volume_size != volume->size)
		snprintf(reason, sizeof(reason), "the volume had %llu bytes and has %llu",
			 header->volume_size, volume->size);
	else if (header->granularity != attach->granularity)
		snprintf(reason, sizeof(reason), "the granularity was %u", header->granularity);
	else if (header->role != attach->role)
		snprintf(reason, sizeof(reason), "the role was %s", role_name(header->role));
	else
		return NULL;
	return reason;
}

/* Returns why the volume is not the one that was stopped, or NULL. */
static const char *written_meanwhile(struct volume *volume)
{
	const struct place *place = fingerprint_differs(&state.print, volume);
	static char reason[96];

	if (!place)
		return NULL;
	snprintf(reason, sizeof(reason), "the volume was written without a tracker, near byte %llu",
		 place->offset);
	return reason;
}

/*
 * Attaches with the old generation and brings the bits back.  Returns why that
 * could not be; then nothing is attached.
 */
static const char *go_on(struct cbt_attach *attach, struct volume *volume)
{
	struct cbt_attach again = *attach;
	const char *reason;
	int error;

	again.flags |= CBT_ATTACH_CONTINUE;
	again.interval = state.header.interval;
	memcpy(again.generation, state.header.generation, CBT_ID_BYTES);
	error = module_try(CBT_IOC_ATTACH, &again);
	if (error)
		return module_why(error);
	if (again.volume_size == state.header.volume_size &&
	    again.bitmap_bytes == state.header.bitmap_bytes)
		reason = state_load(&state, again.tracker);
	else
		reason = "the volume's size has changed";
	if (!reason)
		reason = written_meanwhile(volume);
	if (reason)
		module_call(CBT_IOC_DETACH, &again.tracker, volume->name);
	else
		*attach = again;
	return reason;
}

static void report(const struct cbt_attach *attach, const char *outcome, const char *reason)
{
	char generation[HEX_BYTES];

	hex(generation, attach->generation);
	printf("id=%u state=%s generation=%s interval=%u memory=%llu", attach->tracker, outcome,
	       generation, attach->interval, attach->memory);
	if (attach->flags & CBT_ATTACH_CONTINUE && state.header.bitmaps > 2)
		printf(" frozen=%u", attach->interval - 1);
	printf(" reason=\"%s\"\n", reason);
}

static void open_volume(struct volume *volume, struct cbt_attach *attach, const char *name)
{
	if (attach->path)
		volume_open(volume, name);
	else
		volume_open_number(volume, makedev(attach->major, attach->minor));
	/* The very device that is held open, whatever its node is by now. */
	attach->path = 0;
	attach->major = major(volume->dev);
	attach->minor = minor(volume->dev);
}

static bool never_used(const struct folder *folder)
{
	return !folder_has(folder, NAME_STATE) && !folder_has(folder, NAME_CLEAN) &&
	       !folder_has(folder, NAME_STARTED);
}

/* Attaches, and returns the outcome in a word; @reason says why. */
static const char *start(const struct folder *folder, struct volume *volume,
			 struct cbt_attach *attach, const char **reason)
{
	bool first = never_used(folder);

	*reason = attach->flags & CBT_ATTACH_UNCLEAN ? "it was asked for" :
						       state_open(&state, folder);
	if (!*reason)
		*reason = misfit(attach, volume);
	if (!*reason)
		state_save_frozen(&state, folder);
	if (first)
		folder_write(folder, NAME_STARTED, "");
	folder_remove(folder, NAME_CLEAN);
	if (!*reason)
		*reason = go_on(attach, volume);
	if (!*reason) {
		*reason = "it was stopped in order";
		return "clean";
	}
	if (!first)
		attach->flags |= CBT_ATTACH_UNCLEAN;
	else if (!(attach->flags & CBT_ATTACH_UNCLEAN))
		*reason = "nothing was tracked with this folder before";
	module_call(CBT_IOC_ATTACH, attach, volume->name);
	return attach->flags & CBT_ATTACH_UNCLEAN ? "unclean" : "new";
}

void do_start(int argc, char **argv)
{
	struct cbt_attach attach;
	struct folder folder;
	struct volume volume;
	const char *outcome;
	const char *reason;

	parse_attach(&attach, argc - 1, argv + 1);
	module_open();
	folder_open(&folder, argv[0]);
	open_volume(&volume, &attach, argv[1]);
	folder_not_on(&folder, volume.dev, argv[1]);
	if (attach.log_fd < 0)
		attach.log_fd = folder.fd;
	else
		log_not_on(&attach, volume.dev, argv[1]);
	outcome = start(&folder, &volume, &attach, &reason);
	advise("tracker %u is attached, but %s does not name it: detach it, and start again",
	       attach.tracker, folder.name);
	started_write(&folder, &attach);
	report(&attach, outcome, reason);
}
