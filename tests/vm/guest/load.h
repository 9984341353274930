/* SPDX-License-Identifier: Apache-2.0 */
/* What load.c and load_uring.c share: random numbers, and which errors a writer bears. */
#ifndef LOAD_H
#define LOAD_H

#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>

#define KIB 1024
#define MIB (1024 * 1024)
#define FILE_BYTES (4 * MIB)
#define PAGE 4096

/* A number from 0 to @below - 1. */
uint64_t pick(uint64_t below);

/*
 * Mostly 1 to 3, now and then up to @most: blocks that are written only once in
 * an interval are those of which a lost mark shows.
 */
size_t few(size_t most);

/* Random bytes, never the same twice. */
void fill(void *place, size_t length);

/* An aligned buffer of its own for direct I/O. */
void *aligned(size_t length);

/*
 * Ends the program unless @result is not negative, or the volume was full or
 * cannot do this kind of operation.  Returns whether it was done.
 */
int done(long result, const char *what);

/* Opens FOLDER/KIND-NAME and gives it @size bytes of written data. */
int open_file(const char *folder, const char *kind, int flags, size_t size);

void write_by_uring(const char *folder);

#endif
