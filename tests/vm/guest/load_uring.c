// SPDX-License-Identifier: Apache-2.0
/*
 * The writer that uses io_uring, by the system calls themselves: buffered
 * writes, direct writes from registered buffers, fsync and holes, as many in
 * flight as there are slots.  The layout of the rings is that of
 * include/uapi/linux/io_uring.h.
 */
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define SLOTS 16
#define SLOT_BYTES (64 * KIB)

struct ring {
	int fd;
	unsigned int *sq_tail, *sq_mask, *sq_array;
	unsigned int *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
};

static void *map(int fd, size_t length, off_t which)
{
	void *place = mmap(NULL, length, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_POPULATE, fd, which);

	if (place == MAP_FAILED) {
		perror("load: io_uring");
		exit(1);
	}
	return place;
}

static void set_up(struct ring *ring)
{
	struct io_uring_params about = { 0 };
	char *sq, *cq;

	ring->fd = syscall(SYS_io_uring_setup, SLOTS, &about);
	if (ring->fd < 0) {
		perror("load: io_uring_setup");
		exit(1);
	}
	sq = map(ring->fd, about.sq_off.array + about.sq_entries * sizeof(unsigned int),
		 IORING_OFF_SQ_RING);
	cq = map(ring->fd, about.cq_off.cqes + about.cq_entries * sizeof(struct io_uring_cqe),
		 IORING_OFF_CQ_RING);
	ring->sqes = map(ring->fd, about.sq_entries * sizeof(struct io_uring_sqe),
			 IORING_OFF_SQES);
	ring->sq_tail = (void *)(sq + about.sq_off.tail);
	ring->sq_mask = (void *)(sq + about.sq_off.ring_mask);
	ring->sq_array = (void *)(sq + about.sq_off.array);
	ring->cq_head = (void *)(cq + about.cq_off.head);
	ring->cq_tail = (void *)(cq + about.cq_off.tail);
	ring->cq_mask = (void *)(cq + about.cq_off.ring_mask);
	ring->cqes = (void *)(cq + about.cq_off.cqes);
}

/* One operation of a random kind from the buffer of @slot, which is at rest. */
static void submit(struct ring *ring, unsigned int slot, char *buffer, int direct, int cached)
{
	unsigned int tail = *ring->sq_tail, at = tail & *ring->sq_mask;
	struct io_uring_sqe *sqe = &ring->sqes[at];
	size_t length = PAGE * few(SLOT_BYTES / PAGE);

	memset(sqe, 0, sizeof(*sqe));
	sqe->user_data = slot;
	sqe->fd = cached;
	switch (pick(12)) {
	case 0:
		sqe->opcode = IORING_OP_FSYNC;
		sqe->fd = pick(2) ? direct : cached;
		sqe->fsync_flags = pick(2) ? IORING_FSYNC_DATASYNC : 0;
		break;
	case 1:
		sqe->opcode = IORING_OP_FALLOCATE;
		sqe->len = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
		sqe->off = PAGE * pick(900);
		sqe->addr = PAGE * (1 + pick(16)); /* the length, for this one */
		break;
	case 2 ... 4:
		sqe->opcode = IORING_OP_WRITE;
		sqe->addr = (uintptr_t)buffer;
		sqe->len = 1 + pick(length);
		sqe->off = pick(FILE_BYTES - length);
		fill(buffer, sqe->len);
		break;
	default:
		sqe->opcode = IORING_OP_WRITE_FIXED;
		sqe->fd = direct;
		sqe->buf_index = slot;
		sqe->addr = (uintptr_t)buffer;
		sqe->len = length;
		sqe->off = PAGE * pick((FILE_BYTES - length) / PAGE);
		fill(buffer, length);
	}
	ring->sq_array[at] = at;
	__atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
}

void write_by_uring(const char *folder)
{
	char *buffers = aligned(SLOTS * SLOT_BYTES);
	int direct = open_file(folder, "uring-direct", O_DIRECT, FILE_BYTES);
	int cached = open_file(folder, "uring", 0, FILE_BYTES);
	struct iovec slots[SLOTS];
	struct ring ring;
	unsigned int i, fresh;

	set_up(&ring);
	for (i = 0; i < SLOTS; i++) {
		slots[i].iov_base = buffers + i * SLOT_BYTES;
		slots[i].iov_len = SLOT_BYTES;
	}
	done(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, slots, SLOTS),
	     "registered buffers");
	for (i = 0; i < SLOTS; i++)
		submit(&ring, i, slots[i].iov_base, direct, cached);
	for (fresh = SLOTS;;) {
		unsigned int head = *ring.cq_head, tail;
		long entered = syscall(SYS_io_uring_enter, ring.fd, fresh, 1,
				       IORING_ENTER_GETEVENTS, NULL, 0);

		if (entered < 0 && errno == EINTR)
			continue;
		done(entered, "io_uring_enter");
		fresh -= entered > 0 ? entered : 0;
		tail = __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE);
		for (; head != tail; head++) {
			struct io_uring_cqe *cqe = &ring.cqes[head & *ring.cq_mask];
			unsigned int slot = cqe->user_data;

			errno = -cqe->res;
			done(cqe->res < 0 ? -1 : 0, "io_uring");
			submit(&ring, slot, slots[slot].iov_base, direct, cached);
			fresh++;
		}
		__atomic_store_n(ring.cq_head, head, __ATOMIC_RELEASE);
	}
}
