// SPDX-License-Identifier: GPL-2.0
/*
 * The file DIR/state: a sealed tracker's bitmaps, its states, and the volume's
 * fingerprint.
 *
 * The file alone is worth nothing.  DIR/clean says that it is whole and that
 * the tracker saw no write after it was sealed: one line of text with the
 * file's CRC-32, its length, and the generation and interval in it.  It is
 * written last, when all else is on the disk, and removed before the volume is
 * tracked again; so whatever a crash leaves behind is either the truth or has
 * no mark.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cbtctl.h"

static_assert(sizeof(struct state_header) == 120, "as documented");
static_assert(sizeof(struct place) == 16, "as documented");

static void format_mark(char *mark, const struct state_header *header, __u32 crc, __u64 bytes)
{
	char generation[HEX_BYTES];

	hex(generation, header->generation);
	snprintf(mark, STATE_MARK_BYTES, "state crc32=%08x bytes=%llu generation=%s interval=%u\n",
		 crc, bytes, generation, header->interval);
}

/* ---- saving ---- */

/**
 * struct draft - the file that becomes DIR/state
 * @fd: open file
 * @crc: of what it holds
 * @bytes: how many
 * @name: with its folder
 */
struct draft {
	int fd;
	const char *name;
	__u32 crc;
	__u64 bytes;
};

static bool all_zero(const char *data, size_t length)
{
	return !length || (!data[0] && !memcmp(data, data + 1, length - 1));
}

/* A large volume's bitmaps are mostly zeros: those become a hole. */
static void draft_add(void *context, const void *data, size_t length)
{
	struct draft *draft = context;

	draft->crc = crc32_step(draft->crc, data, length);
	draft->bytes += length;
	if (!all_zero(data, length))
		write_all(draft->fd, data, length, draft->name);
	else if (lseek(draft->fd, length, SEEK_CUR) < 0)
		fail_errno(draft->name);
}

/*
 * An unclean start is past when an interval has ended since: the full backup
 * that it asks for could be made then, and from there on all bits are known.
 * (Whoever compares generations knows it anyway: it was a new one.)
 */
static __u32 lasting(const struct cbt_status *status)
{
	__u32 states = status->states & ~CBT_S_SEALED;

	return status->switches ? states & ~CBT_S_UNCLEAN : states;
}

static void fill_header(struct state_header *header, const struct cbt_status *status)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	memset(header, 0, sizeof(*header));
	memcpy(header->magic, STATE_MAGIC, sizeof(header->magic));
	header->version = STATE_VERSION;
	header->header_bytes = sizeof(*header);
	memcpy(header->generation, status->generation, CBT_ID_BYTES);
	memcpy(header->volume_name, status->name, CBT_NAME_BYTES);
	header->volume_size = status->volume_size;
	header->bitmap_bytes = status->bitmap_bytes;
	header->stopped_ns = now.tv_sec * 1000000000ULL + now.tv_nsec;
	header->granularity = status->granularity;
	header->interval = status->interval;
	header->states = lasting(status);
	header->bitmaps = status->frozen ? 4 : 2;
	header->role = status->role;
}

/* Writes DIR/state; @mark, of STATE_MARK_BYTES, is what DIR/clean must say of it. */
void state_save(const struct folder *folder, struct volume *volume,
		const struct cbt_status *status, char *mark)
{
	static struct fingerprint print;
	struct state_header header;
	struct draft draft = { 0 };
	__u32 i;

	fill_header(&header, status);
	fingerprint_take(&print, volume, status->generation);
	header.places = print.count;
	draft.fd = folder_create(folder, NAME_DRAFT);
	draft.name = folder_path(folder, NAME_DRAFT);
	draft_add(&draft, &header, sizeof(header));
	draft_add(&draft, print.places, print.count * sizeof(print.places[0]));
	for (i = 0; i < header.bitmaps; i++)
		bits_each(status->tracker, i / 2, i % 2, draft_add, &draft);
	if (ftruncate(draft.fd, draft.bytes))
		fail_errno(draft.name);
	folder_close(folder, draft.fd, NAME_DRAFT);
	folder_rename(folder, NAME_DRAFT, NAME_STATE);
	format_mark(mark, &header, draft.crc, draft.bytes);
}

/* ---- reading ---- */

static __u64 bitmap_offset(const struct state_header *header, __u32 bitmap)
{
	return header->header_bytes + header->places * sizeof(struct place) +
	       bitmap * header->bitmap_bytes;
}

static bool read_at(int fd, void *data, size_t length, __u64 offset)
{
	while (length) {
		ssize_t got = pread(fd, data, length, offset);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return false;
		data = (char *)data + got;
		length -= got;
		offset += got;
	}
	return true;
}

static bool header_valid(const struct state_header *header, __u64 file_bytes)
{
	return !memcmp(header->magic, STATE_MAGIC, sizeof(header->magic)) &&
	       header->version == STATE_VERSION && header->header_bytes == sizeof(*header) &&
	       (header->bitmaps == 2 || header->bitmaps == 4) && header->places <= PLACES_MAX &&
	       header->bitmap_bytes <= INT64_MAX / 8 &&
	       file_bytes == bitmap_offset(header, header->bitmaps);
}

static bool crc_of_file(int fd, __u64 bytes, __u32 *crc)
{
	static char buffer[PIECE];
	__u64 at;

	*crc = 0;
	for (at = 0; at < bytes; at += PIECE) {
		size_t part = bytes - at < PIECE ? bytes - at : PIECE;

		if (!read_at(fd, buffer, part, at))
			return false;
		*crc = crc32_step(*crc, buffer, part);
	}
	return true;
}

static bool places_valid(const struct fingerprint *print)
{
	__u32 i;

	for (i = 0; i < print->count; i++)
		if (print->places[i].length > PIECE)
			return false;
	return true;
}

/* Returns why the state cannot be gone on from, or NULL. */
const char *state_open(struct state *state, const struct folder *folder)
{
	char expected[STATE_MARK_BYTES] = { 0 }, found[STATE_MARK_BYTES] = { 0 };
	struct state_header *header = &state->header;
	struct stat stat;
	__u32 crc;

	if (!folder_has(folder, NAME_CLEAN))
		return "it was not stopped in order";
	state->fd = openat(folder->fd, NAME_STATE, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (state->fd < 0 || fstat(state->fd, &stat))
		return "the saved state is missing";
	if (!read_at(state->fd, header, sizeof(*header), 0) ||
	    !header_valid(header, stat.st_size) || !crc_of_file(state->fd, stat.st_size, &crc))
		return "the saved state is cut or altered";
	format_mark(expected, header, crc, stat.st_size);
	folder_read(folder, NAME_CLEAN, found, sizeof(found));
	if (memcmp(expected, found, sizeof(found)))
		return "the saved state is not the one that is marked clean";
	state->print.count = header->places;
	if (!read_at(state->fd, state->print.places,
		     header->places * sizeof(struct place), header->header_bytes) ||
	    !places_valid(&state->print))
		return "the saved state is cut or altered";
	return NULL;
}

/* Brings the active bitmaps back.  Returns why it could not, or NULL. */
const char *state_load(const struct state *state, __u32 id)
{
	static char buffer[PIECE];
	struct cbt_bits bits = { .buffer = (uintptr_t)buffer, .tracker = id };
	__u64 bytes = state->header.bitmap_bytes;
	int error;

	for (; bits.kind <= CBT_BITS_DISCARDED; bits.kind++) {
		__u64 start = bitmap_offset(&state->header, bits.kind);

		for (bits.offset = 0; bits.offset < bytes; bits.offset += bits.length) {
			bits.length = bytes - bits.offset < PIECE ? bytes - bits.offset : PIECE;
			if (!read_at(state->fd, buffer, bits.length, start + bits.offset))
				return "the saved state cannot be read";
			error = module_try(CBT_IOC_LOAD, &bits);
			if (error)
				return module_why(error);
			if (!bits.length)
				return "the module took no more bits";
		}
	}
	return NULL;
}

static void copy_bitmap(const struct state *state, __u32 bitmap,
			const struct folder *folder, const char *name)
{
	static char buffer[PIECE];
	__u64 bytes = state->header.bitmap_bytes;
	int fd = folder_create(folder, name);
	__u64 at;

	for (at = 0; at < bytes; at += PIECE) {
		size_t part = bytes - at < PIECE ? bytes - at : PIECE;

		if (!read_at(state->fd, buffer, part, bitmap_offset(&state->header, bitmap) + at))
			fail_errno(folder_path(folder, NAME_STATE));
		write_all(fd, buffer, part, folder_path(folder, name));
	}
	folder_close(folder, fd, name);
}

/*
 * Frozen bitmaps that had not been cleared become files of their own, in
 * the folder until somebody who has taken them removes them: an interval that
 * is not yet saved anywhere must not end with the module.
 */
void state_save_frozen(const struct state *state, const struct folder *folder)
{
	char generation[HEX_BYTES], name[96];
	static const char * const kinds[] = { "changed", "discarded" };
	__u32 i;

	hex(generation, state->header.generation);
	for (i = 2; i < state->header.bitmaps; i++) {
		snprintf(name, sizeof(name), "frozen-%s-%u.%s", generation,
			 state->header.interval - 1, kinds[i - 2]);
		copy_bitmap(state, i, folder, name);
	}
}
