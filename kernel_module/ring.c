// SPDX-License-Identifier: GPL-2.0
/*
 * The events of all trackers, in one sequence, until they are read.
 *
 * A bounded ring.  Numbers and times are given under the ring lock, so they
 * rise together, and an event that finds no room uses up its number: a gap in
 * the numbers is a loss, and the count of drops is exact.  The bitmaps do not
 * depend on any of this.
 *
 * head and tail count events and are never reduced to the ring's room; both
 * change under the ring lock.  A slot between them belongs to the reader, who
 * copies it without the lock: tail moves only afterwards.
 */
#include <linux/fs.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/random.h>
#include <linux/spinlock.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <linux/wait.h>

#include "module.h"

#define RING_MIN 16
#define RING_MAX 0x1000000

static struct {
	spinlock_t lock;	/* everything below but slots and room */
	struct mutex reader;	/* one read at a time; the room changes under it */
	wait_queue_head_t wait;
	struct cbt_event *slots;
	u64 room;
	u64 head;
	u64 tail;
	u64 next_seq;
	u64 dropped;
	u64 monotonic_ns;
	u64 realtime_ns;
	u8 generation[CBT_ID_BYTES];
} ring = {
	.lock = __SPIN_LOCK_UNLOCKED(ring.lock),
	.reader = __MUTEX_INITIALIZER(ring.reader),
	.wait = __WAIT_QUEUE_HEAD_INITIALIZER(ring.wait),
};

/* Begins a new sequence.  Only while no tracker is attached. */
int cbt_ring_set(u64 events)
{
	struct cbt_event *slots, *old;
	u8 generation[CBT_ID_BYTES];

	if (events < RING_MIN || events > RING_MAX)
		return -EINVAL;
	if (events * sizeof(*slots) > (u64)si_mem_available() << PAGE_SHIFT)
		return -ENOMEM;
	slots = __vmalloc(events * sizeof(*slots),
			  GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN);
	if (!slots)
		return -ENOMEM;
	get_random_bytes(generation, sizeof(generation));
	mutex_lock(&ring.reader);
	spin_lock_irq(&ring.lock);
	memcpy(ring.generation, generation, sizeof(generation));
	old = ring.slots;
	ring.slots = slots;
	ring.room = events;
	ring.head = 0;
	ring.tail = 0;
	ring.next_seq = 1;
	ring.dropped = 0;
	ring.monotonic_ns = ktime_get_ns();
	ring.realtime_ns = ktime_get_real_ns();
	spin_unlock_irq(&ring.lock);
	mutex_unlock(&ring.reader);
	vfree(old);
	return 0;
}

void cbt_ring_free(void)
{
	vfree(ring.slots);
}

/*
 * Gives @event its number and time, and keeps it if there is room.  A reader
 * is woken when the ring was empty: it goes on until it is empty again.
 */
void cbt_ring_push(struct cbt_event *event)
{
	unsigned long flags;
	bool wake = false;

	spin_lock_irqsave(&ring.lock, flags);
	event->seq = ring.next_seq++;
	event->time_ns = ktime_get_ns();
	if (ring.head - ring.tail < ring.room) {
		ring.slots[ring.head % ring.room] = *event;
		wake = ring.head == ring.tail;
		WRITE_ONCE(ring.head, ring.head + 1);
	} else {
		ring.dropped++;
	}
	spin_unlock_irqrestore(&ring.lock, flags);
	if (wake)
		wake_up_interruptible(&ring.wait);
}

/* The instant of a switch, in both orders. */
u64 cbt_ring_next_seq(u64 *time_ns)
{
	u64 seq;

	spin_lock_irq(&ring.lock);
	seq = ring.next_seq;
	*time_ns = ktime_get_ns();
	spin_unlock_irq(&ring.lock);
	return seq;
}

/* Never waits for a reader: it may be stuck on a volume that is suspended. */
void cbt_ring_info(struct cbt_info *info)
{
	info->version = CBT_VERSION;
	info->event_bytes = sizeof(struct cbt_event);
	spin_lock_irq(&ring.lock);
	memcpy(info->generation, ring.generation, CBT_ID_BYTES);
	info->next_seq = ring.next_seq;
	info->dropped = ring.dropped;
	info->recorded = ring.next_seq - 1 - ring.dropped;
	info->ring_events = ring.room;
	info->ring_used = ring.head - ring.tail;
	info->monotonic_ns = ring.monotonic_ns;
	info->realtime_ns = ring.realtime_ns;
	spin_unlock_irq(&ring.lock);
}

static bool ring_empty(void)
{
	return READ_ONCE(ring.head) == READ_ONCE(ring.tail);
}

/* Copies up to @count events that lie side by side; returns how many. */
static ssize_t take_span(char __user *buffer, size_t count)
{
	u64 at = ring.tail % ring.room;
	u64 used;

	spin_lock_irq(&ring.lock);
	used = ring.head - ring.tail;
	spin_unlock_irq(&ring.lock);
	count = min3((u64)count, used, ring.room - at);
	if (copy_to_user(buffer, ring.slots + at, count * sizeof(*ring.slots)))
		return -EFAULT;
	spin_lock_irq(&ring.lock);
	ring.tail += count;
	spin_unlock_irq(&ring.lock);
	return count;
}

ssize_t cbt_ring_read(struct file *file, char __user *buffer, size_t length)
{
	size_t want = length / sizeof(struct cbt_event);
	size_t done = 0;
	ssize_t got;

	if (!want)
		return -EINVAL;
	for (;;) {
		if (mutex_lock_interruptible(&ring.reader))
			return -ERESTARTSYS;
		if (!ring_empty())
			break;
		mutex_unlock(&ring.reader);
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		if (wait_event_interruptible(ring.wait, !ring_empty()))
			return -ERESTARTSYS;
	}
	do {
		got = take_span(buffer + done * sizeof(struct cbt_event), want - done);
		if (got > 0)
			done += got;
	} while (got > 0 && done < want);
	mutex_unlock(&ring.reader);
	return done ? done * sizeof(struct cbt_event) : got;
}

__poll_t cbt_ring_poll(struct file *file, struct poll_table_struct *wait)
{
	poll_wait(file, &ring.wait, wait);
	return ring_empty() ? 0 : EPOLLIN | EPOLLRDNORM;
}
