// SPDX-License-Identifier: GPL-2.0
/*
 * A fingerprint of a volume: what some of its places hold, to find out after a
 * restart whether it was written meanwhile without a tracker: the machine was
 * booted from another disk, or the folder with the state is an old copy.
 *
 * Its places are the first and the last MiB, a thousand blocks spread over the
 * volume, and what a file system changes when it is written (places.c).
 *
 * What it cannot see: a write that touches none of the places.  A mount for
 * writing always touches one on ext4 and XFS, and on btrfs as soon as anything
 * is committed.  vfat and NTFS tell a mount without writes by nothing that
 * lasts, and a file that is overwritten in place may change only its folder's
 * entry.  A database or a swap area that uses the volume without a file system
 * is seen by the thousand blocks alone: of n blocks written at random it
 * misses all with probability (1 - 1000 * 4096 / size) ^ n.  It is a net below
 * a rule, that between stop and start nobody writes, and not in its place.
 */
#include <string.h>
#include <time.h>

#include "cbtctl.h"

#define BLOCK 4096
#define SPREAD 1000

/* splitmix64: the next number of the sequence that @state stands for. */
static __u64 random_next(__u64 *state)
{
	__u64 z = (*state += 0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/*
 * Takes in the blocks that the range touches; what is past the end is left
 * out.  False if there is no more room or they cannot be read.
 */
bool fingerprint_add(struct fingerprint *print, struct volume *volume, __u64 offset,
		     __u64 length)
{
	__u64 end = offset + length;

	if (end > volume->size || end < offset)
		end = volume->size;
	for (offset -= offset % BLOCK; offset < end; offset += PIECE) {
		struct place *place = &print->places[print->count];
		__u64 part = (end - offset + BLOCK - 1) / BLOCK * BLOCK;

		if (print->count == PLACES_MAX)
			return false;
		place->offset = offset;
		place->length = volume_read(volume, offset, part < PIECE ? part : PIECE);
		place->crc = crc32_step(0, volume->buffer, place->length);
		if (!place->length)
			return false;
		print->count++;
	}
	return true;
}

/* One block from each of a thousand equal parts, in their order. */
static bool add_spread(struct fingerprint *print, struct volume *volume, __u64 seed)
{
	__u64 blocks = volume->size / BLOCK;
	__u64 parts = blocks < SPREAD ? blocks : SPREAD;
	__u64 i;

	for (i = 0; i < parts; i++) {
		__u64 first = blocks * i / parts;
		__u64 room = blocks * (i + 1) / parts - first;
		__u64 block = first + random_next(&seed) % room;

		if (!fingerprint_add(print, volume, block * BLOCK, BLOCK))
			return false;
	}
	return true;
}

/*
 * @seed: the tracker's generation.  With the time: two stops of one generation
 * look at different blocks.
 */
void fingerprint_take(struct fingerprint *print, struct volume *volume, const __u8 *seed)
{
	__u64 last = volume->size > PIECE ? volume->size - PIECE : 0;
	struct timespec now;
	__u64 mixed;

	memcpy(&mixed, seed, sizeof(mixed));
	clock_gettime(CLOCK_REALTIME, &now);
	mixed ^= now.tv_sec * 1000000000ULL + now.tv_nsec;
	print->count = 0;
	if (!fingerprint_add(print, volume, 0, PIECE) ||
	    !fingerprint_add(print, volume, last, volume->size - last) ||
	    !add_spread(print, volume, mixed))
		fail_errno(volume->name);
	places_of_file_system(print, volume);
}

/* The first place that holds something else now or cannot be read, or NULL. */
const struct place *fingerprint_differs(const struct fingerprint *print,
					struct volume *volume)
{
	__u32 i;

	for (i = 0; i < print->count; i++) {
		const struct place *place = &print->places[i];
		__u32 length = volume_read(volume, place->offset, place->length);

		if (length != place->length ||
		    crc32_step(0, volume->buffer, length) != place->crc)
			return place;
	}
	return NULL;
}
