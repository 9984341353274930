// SPDX-License-Identifier: Apache-2.0
/*
 * How many instructions a 4 KiB write takes, all that runs meanwhile included:
 *
 *	writes DEVICE HOW THREADS COUNT REPEATS SPAN REST
 *
 * HOW is pwrite (one after the other) or uring (32 in flight).  Each thread is
 * pinned to a CPU of its own and writes COUNT random blocks of the first SPAN
 * with O_DIRECT; before, the first blocks are written once (WARM_UP).  What is
 * done within REST milliseconds after the writes counts too.  The answer is one
 * line with a number for each repeat.
 *
 * To be run in a QEMU whose clock counts instructions (-icount shift=0): there
 * the time stamp counter is the number of instructions that all CPUs together
 * have executed.  While a CPU waits for the disk that clock would go on; so
 * each CPU has a spinner besides, of the idle class, that counts its own
 * rounds, and these are subtracted.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BLOCK 4096
#define IN_FLIGHT 32
#define CPUS_MAX 8
#define WARM_UP 512
/* For check_clock(); instructions. */
#define TRIES 20
#define CHECKED 100000

struct uring {
	int fd;
	unsigned int *sq_tail, *sq_mask, *sq_array;
	unsigned int *cq_head, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
};

struct instant {
	uint64_t executed;		/* instructions, by all CPUs */
	uint64_t spun;			/* of them by spinners */
};

struct thread {
	pthread_t id;
	int cpu;
	uint64_t random;
	struct instant begin, end;	/* of the last repeat */
	struct uring uring;
};

static const char *device;
static int by_uring;
static int threads;
static long count;
static int repeats;
static useconds_t rest_us;
static uint64_t blocks;
static pthread_barrier_t together;
static volatile uint64_t rounds[CPUS_MAX];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("writes: sched_setaffinity");
}

static void *spin(void *cpu)
{
	struct sched_param none = { 0 };
	volatile uint64_t *mine = &rounds[(intptr_t)cpu];

	pin((intptr_t)cpu);
	if (sched_setscheduler(0, SCHED_IDLE, &none))
		fail("writes: sched_setscheduler");
	/*
	 * A round is three instructions, and two more each 64th time: without a
	 * pause QEMU would let the other CPU wait for the next tick.
	 */
	__asm__ volatile("1: incq (%0); testb $63, (%0); jnz 1b; pause; jmp 1b"
			 : : "r"(mine) : "memory");
	return NULL;
}

static uint64_t spun_so_far(void)
{
	uint64_t sum = 0;
	int cpu;

	for (cpu = 0; cpu < threads; cpu++)
		sum += rounds[cpu] * 3 + rounds[cpu] / 64 * 2;
	return sum;
}

/* Both numbers of one moment: no other CPU's spinner ran in between. */
static struct instant now(void)
{
	uint32_t low, high;
	uint64_t before;

	do {
		before = spun_so_far();
		__asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	} while (spun_so_far() != before);
	return (struct instant){ (uint64_t)high << 32 | low, before };
}

/* A loop of known length: is it instructions that the clock counts?  Of all CPUs. */
static void check_clock(void)
{
	uint64_t least = UINT64_MAX;
	int i;

	for (i = 0; i < TRIES; i++) {
		long left = CHECKED / 2;
		uint64_t begin = now().executed, took;

		__asm__ volatile("1: dec %0; jnz 1b" : "+r"(left));
		took = now().executed - begin;
		if (took < least)
			least = took;
	}
	if (least < CHECKED || least > CHECKED + CHECKED / 50) {
		fprintf(stderr, "writes: the clock does not count instructions: %llu for %d\n",
			(unsigned long long)least, CHECKED);
		exit(1);
	}
}

static off_t some_block(struct thread *me)
{
	me->random ^= me->random << 13;
	me->random ^= me->random >> 7;
	me->random ^= me->random << 17;
	return me->random % blocks * BLOCK;
}

static void *map(int fd, size_t length, off_t which)
{
	void *place = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			   fd, which);

	if (place == MAP_FAILED)
		fail("writes: io_uring");
	return place;
}

static void set_up(struct uring *uring)
{
	struct io_uring_params about = { 0 };
	char *sq, *cq;

	uring->fd = syscall(SYS_io_uring_setup, IN_FLIGHT, &about);
	if (uring->fd < 0)
		fail("writes: io_uring_setup");
	sq = map(uring->fd, about.sq_off.array + about.sq_entries * sizeof(unsigned int),
		 IORING_OFF_SQ_RING);
	cq = map(uring->fd, about.cq_off.cqes + about.cq_entries * sizeof(struct io_uring_cqe),
		 IORING_OFF_CQ_RING);
	uring->sqes = map(uring->fd, about.sq_entries * sizeof(struct io_uring_sqe),
			  IORING_OFF_SQES);
	uring->sq_tail = (void *)(sq + about.sq_off.tail);
	uring->sq_mask = (void *)(sq + about.sq_off.ring_mask);
	uring->sq_array = (void *)(sq + about.sq_off.array);
	uring->cq_head = (void *)(cq + about.cq_off.head);
	uring->cq_mask = (void *)(cq + about.cq_off.ring_mask);
	uring->cqes = (void *)(cq + about.cq_off.cqes);
}

/* Submits @number writes at once and waits for all of them. */
static void write_batch(struct thread *me, int fd, char *buffer, unsigned int number)
{
	struct uring *uring = &me->uring;
	unsigned int tail = *uring->sq_tail, head = *uring->cq_head, i;

	for (i = 0; i < number; i++, tail++) {
		unsigned int at = tail & *uring->sq_mask;
		struct io_uring_sqe *sqe = &uring->sqes[at];

		memset(sqe, 0, sizeof(*sqe));
		sqe->opcode = IORING_OP_WRITE;
		sqe->fd = fd;
		sqe->addr = (uintptr_t)buffer;
		sqe->len = BLOCK;
		sqe->off = some_block(me);
		uring->sq_array[at] = at;
	}
	__atomic_store_n(uring->sq_tail, tail, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, uring->fd, number, number, IORING_ENTER_GETEVENTS,
		    NULL, 0) != (long)number)
		fail("writes: io_uring_enter");
	for (i = 0; i < number; i++, head++) {
		if (uring->cqes[head & *uring->cq_mask].res != BLOCK) {
			fprintf(stderr, "writes: a write failed\n");
			exit(1);
		}
	}
	__atomic_store_n(uring->cq_head, head, __ATOMIC_RELEASE);
}

static void write_blocks(struct thread *me, int fd, char *buffer, long number)
{
	if (by_uring) {
		for (; number > 0; number -= IN_FLIGHT)
			write_batch(me, fd, buffer, number < IN_FLIGHT ? number : IN_FLIGHT);
		return;
	}
	while (number--)
		if (pwrite(fd, buffer, BLOCK, some_block(me)) != BLOCK)
			fail("writes: pwrite");
}

static struct thread all[CPUS_MAX];

/* From the first begin to the last end; a CPU that has ended early spins. */
static void tell(void)
{
	struct instant begin = all[0].begin, end = all[0].end;
	uint64_t executed;
	int i;

	for (i = 1; i < threads; i++) {
		if (all[i].begin.executed < begin.executed)
			begin = all[i].begin;
		if (all[i].end.executed > end.executed)
			end = all[i].end;
	}
	executed = end.executed - begin.executed - (end.spun - begin.spun);
	printf(" %.1f", (double)executed / ((double)count * threads));
}

static void *work(void *arg)
{
	struct thread *me = arg;
	char *buffer = aligned_alloc(BLOCK, BLOCK);
	int fd, i;

	pin(me->cpu);
	fd = open(device, O_WRONLY | O_DIRECT);
	if (fd < 0 || !buffer)
		fail(device);
	memset(buffer, me->cpu + 1, BLOCK);
	if (by_uring)
		set_up(&me->uring);
	for (i = 0; i < WARM_UP; i++)
		if (pwrite(fd, buffer, BLOCK, (off_t)i * BLOCK) != BLOCK)
			fail("writes: pwrite");
	write_blocks(me, fd, buffer, IN_FLIGHT);
	for (i = 0; i < repeats; i++) {
		pthread_barrier_wait(&together);
		me->begin = now();
		write_blocks(me, fd, buffer, count);
		if (rest_us)
			usleep(rest_us);
		me->end = now();
		pthread_barrier_wait(&together);
		if (!me->cpu)
			tell();
	}
	return NULL;
}

static void start(pthread_t *thread, void *(*run)(void *), void *arg)
{
	if (pthread_create(thread, NULL, run, arg))
		fail("writes: thread");
}

int main(int argc, char **argv)
{
	pthread_t spinner;
	int i;

	if (argc != 8)
		return 2;
	device = argv[1];
	by_uring = !strcmp(argv[2], "uring");
	threads = atoi(argv[3]);
	count = atol(argv[4]);
	repeats = atoi(argv[5]);
	blocks = atol(argv[6]);
	rest_us = 1000 * atoi(argv[7]);
	pin(0);
	check_clock();
	pthread_barrier_init(&together, NULL, threads);
	for (i = 0; i < threads; i++)
		start(&spinner, spin, (void *)(intptr_t)i);
	for (i = 0; i < threads; i++) {
		all[i].cpu = i;
		all[i].random = 88172645463325252ULL + i * 7919;
		start(&all[i].id, work, &all[i]);
	}
	for (i = 0; i < threads; i++)
		pthread_join(all[i].id, NULL);
	printf("\n");
	return 0;
}
