/* SPDX-License-Identifier: GPL-2.0 */
/* What the parts of the hostile program share; hostile.c says what it is. */
#ifndef HOSTILE_H
#define HOSTILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FILES 6
#define IDS 16
#define KINDS 64
#define ARENA (1 << 20)

/* Counted in memory that all processes share; a literal has one address in all of them. */
struct kind {
	const char *name;
	uint64_t made, succeeded;
};

struct shared {
	struct kind kinds[KINDS];
	uint32_t ids[IDS];	/* of trackers that were attached lately */
	uint32_t loading;	/* one that goes on where another was sealed */
	uint64_t left;		/* calls still to be made, by all processes */
};

extern struct shared *shared;
extern int files[FILES];	/* of this process and its threads, open or closed by now */
extern char **volumes;
extern int volume_count;

/* Random numbers: one state a thread, from the seed, so that a run can be repeated. */
uint64_t any(void);
uint64_t below(uint64_t limit);
bool chance(unsigned int percent);
uint64_t nasty(void);	/* a number at some border */
void scramble(void *place, size_t length);

/* Count a call; the result is that of the call, negative when refused. */
void count(const char *name, long result);

int any_file(void);

/* Memory for the calls: a good buffer of ARENA bytes, and pointers of all kinds. */
void *good_buffer(void);
void *any_pointer(size_t length);
void *mapped_pointer(void);	/* into a mapping of the device, or NULL */

void call_by_structure(void);
void call_at_random(void);
void detach_all(int file);

void use_file(void);
void use_mapping(void);

#endif
