// SPDX-License-Identifier: GPL-2.0
/*
 * stop: the orderly end of a tracker, before the machine goes down.  To be
 * called when the volume is unmounted.
 *
 * Which tracker, DIR/started says; an id is only compared with it.
 *
 * The order, of which each step is on the disk before the next:
 *
 *	the volume is opened exclusively: nobody can mount it any more
 *	DIR/clean of an earlier stop is removed
 *	seal: not a bit changes any more, and the module watches for writes
 *	DIR/state: bitmaps, states, fingerprint
 *	detach; if the module saw a write since the seal, it says so, and all
 *	that was saved is worth nothing
 *	DIR/clean
 *
 * When it fails after the seal the tracker stays sealed: the same call can be
 * made again.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "cbtctl.h"

/* Returns why what was saved is worth nothing, or NULL. */
static const char *detach(const struct cbt_status *sealed)
{
	__u32 id = sealed->tracker;
	struct cbt_status now;
	bool same;
	int error;

	status_of(id, &now);
	same = now.states == sealed->states;
	error = module_try(CBT_IOC_DETACH, &id);
	if (error == ESTALE) {
		tracker_call(CBT_IOC_DETACH, &id, id);
		return "it was written after it was sealed";
	}
	if (error)
		refused(sealed->name, error);
	return same ? NULL : "something happened to it after it was sealed";
}

void do_stop(int argc, char **argv)
{
	__u32 id = argc == 2 ? parse_id(argv[1]) : 0;
	char generation[HEX_BYTES], mark[STATE_MARK_BYTES], states[256];
	struct cbt_status status;
	struct folder folder;
	struct volume volume;
	const char *reason;
	dev_t dev;

	module_open();
	folder_open(&folder, argv[0]);
	if (argc == 2)
		started_is(&folder, id, &status);
	else
		started_tracker(&folder, &status);
	id = status.tracker;
	dev = makedev(status.major, status.minor);
	folder_not_on(&folder, dev, status.name);
	volume_open_number(&volume, dev);
	folder_remove(&folder, NAME_CLEAN);
	/* What waits in its page cache is still recorded. */
	volume_flush(&volume);
	tracker_call(CBT_IOC_SEAL, &id, id);
	advise("tracker %u stays sealed; mend that and stop again before anything writes to %s", id,
	       volume.name);
	status_of(id, &status);
	state_save(&folder, &volume, &status, mark);
	/* What somebody left there since shows itself now, and not after the detach. */
	volume_flush(&volume);
	reason = detach(&status);
	advise("the next start will be unclean");
	if (reason)
		fail("%s: %s", volume.name, reason);
	folder_write(&folder, NAME_CLEAN, mark);
	hex(generation, status.generation);
	states_text(states, sizeof(states), status.states & ~CBT_S_SEALED);
	printf("saved generation=%s interval=%u states=%s\n", generation, status.interval, states);
}
