// SPDX-License-Identifier: GPL-2.0
/*
 * Identifiers of generations, none of which comes twice.
 *
 * Random bytes alone do come twice where a virtual machine is restored or
 * copied with the state of its generator; the time alone where a clock is set
 * back.  So: eight bytes of wall clock, which also rise within one boot, and
 * eight random ones.
 */
#include <linux/ktime.h>
#include <linux/minmax.h>
#include <linux/mutex.h>
#include <linux/random.h>

#include "module.h"

static DEFINE_MUTEX(lock);
static u64 last;

/* Waits until the kernel's generator is seeded.  ERESTARTSYS: a signal came. */
int cbt_generation_make(u8 *generation)
{
	int err = wait_for_random_bytes();

	if (err)
		return err;
	mutex_lock(&lock);
	last = max_t(u64, ktime_get_real_ns(), last + 1);
	put_unaligned_be64(last, generation);
	mutex_unlock(&lock);
	get_random_bytes(generation + 8, CBT_ID_BYTES - 8);
	return 0;
}
