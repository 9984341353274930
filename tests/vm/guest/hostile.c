// SPDX-License-Identifier: GPL-2.0
/*
 * hostile: throws a great many calls at /dev/cbt from several processes at once.
 *
 * usage: hostile SEED CALLS PROCESSES VOLUME...
 *
 * Half of the ioctls are plausible structures, most with one field broken; the
 * other half are random.  Between them files are opened, closed under a call,
 * polled, read, mapped with every protection, and what can be written through
 * a mapping is filled with garbage.  Each process has two threads on the same
 * files and forks now and then.  At the end all trackers are detached, and the
 * calls are told: "KIND MADE SUCCEEDED" a line.  Status 1: a process was
 * killed by something, or a tracker could not be detached.
 *
 * What the calls do to the kernel is for the kernel to say.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cbt.h"
#include "hostile.h"

#define THREADS 2
#define FORKED_CALLS 20

struct shared *shared;
int files[FILES];
char **volumes;
int volume_count;

static __thread uint64_t state;
static __thread sigjmp_buf *volatile landing;
static uint64_t seed;

/* ---- random numbers ------------------------------------------------------ */

/* splitmix64: every state gives a good number, also small seeds. */
uint64_t any(void)
{
	uint64_t z = state += 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

uint64_t below(uint64_t limit)
{
	return any() % limit;
}

bool chance(unsigned int percent)
{
	return below(100) < percent;
}

uint64_t nasty(void)
{
	switch (below(6)) {
	case 0:
		return below(4);
	case 1:
		return (uint64_t)-1 - below(4);
	case 2:
		return (1ULL << below(64)) - below(3);
	case 3:
		return 4096 * below(1024);
	case 4:
		return any() & 0xffffffff;
	default:
		return any();
	}
}

void scramble(void *place, size_t length)
{
	unsigned char *bytes = place;
	size_t at;

	for (at = 0; at < length; at++)
		bytes[at] = any();
}

/* ---- tally --------------------------------------------------------------- */

void count(const char *name, long result)
{
	struct kind *kind;

	for (kind = shared->kinds; kind < shared->kinds + KINDS; kind++) {
		const char *there = NULL;

		if (__atomic_compare_exchange_n(&kind->name, &there, name, false,
						__ATOMIC_RELAXED, __ATOMIC_RELAXED) ||
		    there == name) {
			__atomic_add_fetch(&kind->made, 1, __ATOMIC_RELAXED);
			if (result >= 0)
				__atomic_add_fetch(&kind->succeeded, 1, __ATOMIC_RELAXED);
			return;
		}
	}
}

static bool take_one(void)
{
	uint64_t left = __atomic_load_n(&shared->left, __ATOMIC_RELAXED);

	while (left)
		if (__atomic_compare_exchange_n(&shared->left, &left, left - 1, true,
						__ATOMIC_RELAXED, __ATOMIC_RELAXED))
			return true;
	return false;
}

/* ---- the life of a process --------------------------------------------------- */

int any_file(void)
{
	return files[below(FILES)];
}

/* A mapping was taken away under our hands: give up this step. */
static void fell(int number)
{
	if (!landing)
		_exit(100 + number);
	siglongjmp(*landing, 1);
}

/* Interrupts what waits, without restarting it. */
static void woken(int number)
{
	(void)number;
}

static void catch(int number, void (*handler)(int))
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_NODEFER };

	sigaction(number, &action, NULL);
}

/* This thread's own: a signal to the process would reach one thread only. */
static void wake_often(void)
{
	static const struct itimerspec often = { { 0, 20000000 }, { 0, 20000000 } };
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM };
	timer_t timer;

	event._sigev_un._tid = gettid();
	if (!timer_create(CLOCK_MONOTONIC, &event, &timer))
		timer_settime(timer, 0, &often, NULL);
}

static void step(void);

static void forked(void)
{
	pid_t child = fork();
	int left;

	count("fork", child);
	if (!child) {
		state ^= (uint64_t)getpid() << 32;
		wake_often();
		for (left = FORKED_CALLS; left && take_one(); left--)
			step();
		_exit(0);
	}
	if (child > 0)
		while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
			;
}

static void choose(void)
{
	uint64_t what = below(1000);

	if (what < 400)
		call_by_structure();
	else if (what < 700)
		call_at_random();
	else if (what < 840)
		use_file();
	else if (what < 998)
		use_mapping();
	else
		forked();
}

static void step(void)
{
	sigjmp_buf here;

	if (!sigsetjmp(here, 1)) {
		landing = &here;
		choose();
	}
	landing = NULL;
}

static void *work(void *number)
{
	state = seed * 1000003 + (uintptr_t)number;
	wake_often();
	while (take_one())
		step();
	return NULL;
}

static int process(int number)
{
	pthread_t threads[THREADS];
	int i;

	catch(SIGSEGV, fell);
	catch(SIGBUS, fell);
	catch(SIGALRM, woken);
	signal(SIGIO, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	for (i = 0; i < FILES; i++)
		files[i] = open(CBT_DEVICE, O_RDWR | O_NONBLOCK);
	for (i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, work,
				   (void *)(uintptr_t)(number * THREADS + i)))
			return 1;
	for (i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	return 0;
}

static int tell(int failed)
{
	int file = open(CBT_DEVICE, O_RDWR);
	struct cbt_info info;
	struct kind *kind;

	detach_all(file);
	if (file < 0 || ioctl(file, CBT_IOC_INFO, &info) || info.trackers) {
		fprintf(stderr, "hostile: a tracker is left\n");
		failed = 1;
	}
	close(file);
	for (kind = shared->kinds; kind < shared->kinds + KINDS && kind->name; kind++)
		printf("%s %llu %llu\n", kind->name, (unsigned long long)kind->made,
		       (unsigned long long)kind->succeeded);
	return failed;
}

int main(int argc, char **argv)
{
	int processes, status, failed = 0, i;

	if (argc < 5) {
		fprintf(stderr, "usage: hostile SEED CALLS PROCESSES VOLUME...\n");
		return 2;
	}
	seed = strtoull(argv[1], NULL, 0);
	processes = atoi(argv[3]);
	volumes = argv + 4;
	volume_count = argc - 4;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (shared == MAP_FAILED)
		return 1;
	shared->left = strtoull(argv[2], NULL, 0);
	for (i = 0; i < processes; i++)
		if (!fork())
			_exit(process(i));
	while (wait(&status) > 0)
		if (status) {
			fprintf(stderr, "hostile: a process ended with %#x\n", status);
			failed = 1;
		}
	return tell(failed);
}
