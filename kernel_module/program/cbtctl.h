/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the objects of cbtctl share.  From top to bottom: main.c takes the
 * words; trackers.c, bits.c, status.c and stream.c are the commands that ask
 * the module for one thing each; stop.c and start.c carry a tracker over a
 * restart, with started.c, state.c, folder.c, volume.c, fingerprint.c and
 * places.c below them; rings.c, output.c, beneath.c, module.c and crc32.c are
 * what all rest on.
 *
 * Every function that cannot do its work ends the program with one line, but
 * for those that say that they return.
 */
#ifndef CBTCTL_H
#define CBTCTL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdnoreturn.h>
#include <sys/types.h>

#include "cbt.h"

/* In two steps: checkpatch asks for the kernel's own __printf(), which is not here. */
#define LIKE __format__
#define PRINTS __attribute__((LIKE(__printf__, 1, 2)))
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#define CBTCTL_VERSION "0.2.0"	/* as in dkms.conf */
#define CBT_TRACKER_IDS 65536
#define HEX_BYTES (2 * CBT_ID_BYTES + 1)

/* What is read, written and compared at once. */
#define PIECE (1024 * 1024)

/* ---- module.c: the open module, and how the program ends ---- */

#define EXIT_REFUSED 1
#define EXIT_MISUNDERSTOOD 2

PRINTS void warn(const char *format, ...);
PRINTS void advise(const char *format, ...);
noreturn PRINTS void misunderstood(const char *format, ...);
noreturn PRINTS void fail(const char *format, ...);
noreturn void fail_errno(const char *what);
noreturn void refused(const char *what, int error);

extern int module_fd;
void module_open(void);
int module_try(unsigned long request, void *arg);
void module_call(unsigned long request, void *arg, const char *what);
noreturn void tracker_refused(int error, __u32 id);
void tracker_call(unsigned long request, void *arg, __u32 id);
const char *module_why(int error);

__u64 parse_number(const char *text, __u64 max);
__u32 parse_id(const char *text);
const char *file_name(const char *text);
void hex(char *text, const __u8 *bytes);
void write_all(int fd, const void *data, size_t length, const char *name);

/* ---- trackers.c ---- */

void do_attach(int argc, char **argv);
void do_detach(int argc, char **argv);
void do_seal(int argc, char **argv);
void do_switch(int argc, char **argv);
void do_clear(int argc, char **argv);
void do_ring(int argc, char **argv);

void parse_attach(struct cbt_attach *attach, int argc, char **argv);
bool parse_device(struct cbt_attach *attach, const char *text);
void log_not_on(const struct cbt_attach *attach, dev_t volume, const char *name);

/* ---- bits.c ---- */

typedef void bits_sink(void *context, const void *data, size_t length);

__u32 bits_each(__u32 id, int which, int kind, bits_sink *sink, void *context);
void do_bits(int argc, char **argv);

/* ---- status.c ---- */

void status_of(__u32 id, struct cbt_status *status);
bool status_next(struct cbt_status *status);
void states_text(char *text, size_t room, __u32 states);
void do_status(int argc, char **argv);

/* ---- rings.c ---- */

void rings_open(void);
size_t rings_take(struct cbt_event *events, size_t room, __u64 below, __u64 *reached);
void rings_taken(void);
__u64 rings_next_seq(void);
__u64 rings_first_seq(void);
__u64 rings_all_taken(void);

/* ---- stream.c ---- */

void do_events(int argc, char **argv);

/* ---- crc32.c ---- */

__u32 crc32_step(__u32 crc, const void *data, size_t length);

/* ---- output.c: a file that comes into being whole ---- */

/**
 * struct output - being written
 * @fd: open file
 * @name: of what it becomes
 */
struct output {
	int fd;
	const char *name;
};

void output_open(struct output *output, const char *name);
void output_close(struct output *output);

/* ---- beneath.c: what lies beneath a file or a volume ---- */

bool suspended(dev_t dev);
bool lies_on(int fd, dev_t volume);
int place_open(const char *name);

/* ---- volume.c: a volume that nobody else uses ---- */

/**
 * struct volume - open exclusively, so that it cannot be mounted meanwhile
 * @name: as the caller named it
 * @fd: O_DIRECT: the page cache may be stale
 * @dev: its number
 * @size: bytes
 * @buffer: what volume_read() read last, PIECE bytes
 */
struct volume {
	const char *name;
	int fd;
	dev_t dev;
	__u64 size;
	unsigned char *buffer;
};

void volume_open(struct volume *volume, const char *path);
void volume_open_number(struct volume *volume, dev_t dev);
void volume_flush(struct volume *volume);
__u32 volume_read(struct volume *volume, __u64 offset, __u32 length);

/* ---- fingerprint.c ---- */

/**
 * struct place - some bytes of a volume
 * @offset: bytes
 * @length: bytes, at most PIECE
 * @crc: CRC-32 of what they were
 */
struct place {
	__u64 offset;
	__u32 length;
	__u32 crc;
};

#define PLACES_MAX 2048

struct fingerprint {
	__u32 count;
	struct place places[PLACES_MAX];
};

void fingerprint_take(struct fingerprint *print, struct volume *volume, const __u8 *seed);
bool fingerprint_add(struct fingerprint *print, struct volume *volume, __u64 offset,
		     __u64 length);
const struct place *fingerprint_differs(const struct fingerprint *print,
					struct volume *volume);

/* ---- places.c ---- */

void places_of_file_system(struct fingerprint *print, struct volume *volume);

/* ---- folder.c: files in DIR that are on disk when the call returns ---- */

/**
 * struct folder - DIR, locked against another stop or start
 * @fd: the folder
 * @name: as the caller named it
 */
struct folder {
	int fd;
	const char *name;
};

void folder_open(struct folder *folder, const char *name);
const char *folder_path(const struct folder *folder, const char *name);
void folder_not_on(const struct folder *folder, dev_t dev, const char *volume);
bool folder_has(const struct folder *folder, const char *name);
size_t folder_read(const struct folder *folder, const char *name, void *data, size_t room);
int folder_create(const struct folder *folder, const char *name);
void folder_close(const struct folder *folder, int fd, const char *name);
void folder_rename(const struct folder *folder, const char *from, const char *to);
void folder_remove(const struct folder *folder, const char *name);
void folder_write(const struct folder *folder, const char *name, const char *text);

/* ---- state.c: the file DIR/state ---- */

/* Names in DIR. */
#define NAME_STATE "state"
#define NAME_DRAFT "state.new"
#define NAME_CLEAN "clean"
#define NAME_STARTED "started"

#define STATE_MAGIC "CBTSTATE"
#define STATE_VERSION 1
#define STATE_MARK_BYTES 128

/**
 * struct state_header - how DIR/state begins; little-endian, no padding
 * @magic: STATE_MAGIC
 * @version: STATE_VERSION
 * @header_bytes: of this structure
 * @generation: of the tracker
 * @volume_name: of the disk or partition when it was stopped; only told
 * @volume_size: bytes
 * @bitmap_bytes: of each bitmap in the file
 * @stopped_ns: CLOCK_REALTIME of the stop; only told
 * @granularity: bytes a bit
 * @interval: of the active bitmaps
 * @states: CBT_S_* that were true of the tracker, without CBT_S_SEALED
 * @bitmaps: 2: active changed and discarded; 4: and frozen ones, of
 *	@interval - 1
 * @places: in the fingerprint
 * @role: CBT_ROLE_*
 * @reserved: zero
 *
 * Then @places of struct place, then the bitmaps.
 */
struct state_header {
	char magic[8];
	__u32 version;
	__u32 header_bytes;
	__u8 generation[CBT_ID_BYTES];
	char volume_name[CBT_NAME_BYTES];
	__u64 volume_size;
	__u64 bitmap_bytes;
	__u64 stopped_ns;
	__u32 granularity;
	__u32 interval;
	__u32 states;
	__u32 bitmaps;
	__u32 places;
	__u8 role;
	__u8 reserved[3];
};

/**
 * struct state - DIR/state, checked
 * @fd: open file
 * @header: of the file
 * @print: its fingerprint
 */
struct state {
	int fd;
	struct state_header header;
	struct fingerprint print;
};

void state_save(const struct folder *folder, struct volume *volume,
		const struct cbt_status *status, char *mark);
const char *state_open(struct state *state, const struct folder *folder);
const char *state_load(const struct state *state, __u32 id);
void state_save_frozen(const struct state *state, const struct folder *folder);

/* ---- started.c: the file DIR/started ---- */

void started_write(const struct folder *folder, const struct cbt_attach *attach);
void started_tracker(const struct folder *folder, struct cbt_status *status);
void started_is(const struct folder *folder, __u32 id, struct cbt_status *status);

/* ---- stop.c, start.c ---- */

void do_stop(int argc, char **argv);
void do_start(int argc, char **argv);

#endif /* CBTCTL_H */
