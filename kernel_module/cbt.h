/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * cbt: records which blocks of a volume were written, when and by whom.
 *
 * This header is the whole interface between cbt.ko and user space.  The
 * module makes one character device, /dev/cbt (mode 0600).  ioctl(2) on it
 * attaches, switches, reads and detaches trackers; read(2) and poll(2) take
 * the recorded events.  cbtctl.c and cbtlab/record/kernel_module.py are its
 * two users.
 *
 * A tracker follows one volume (a whole disk or a partition) with a bitmap
 * per interval: bit n stands for the bytes [n * granularity, (n + 1) *
 * granularity) of the volume, bit n in byte n / 8, lowest bit first.  A
 * tracker belongs to the module and not to the open file: it goes on after
 * the program that attached it has ended, and until it is detached.
 *
 * Two bitmaps a tracker and interval:
 *   changed    a bit is set before the driver sees the write; never lossy
 *   discarded  whole blocks whose last operation was a discard; explains a
 *              changed block, and decides nothing about its content
 *
 * All structures have fixed sizes, no implicit padding, native byte order
 * (little-endian on disk: the module is for little-endian machines).
 * "in" and "out" are seen from the module.  Fields named reserved, and bits
 * of flags without a name here, must be zero, or the call is EINVAL.
 *
 * Errors of every ioctl: ENOTTY unknown call; EFAULT bad pointer; EPERM
 * without CAP_SYS_ADMIN; EINTR a signal came while waiting for another call.
 * A refusal that is not obvious is explained by a line in the kernel log.
 */
#ifndef CBT_H
#define CBT_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define CBT_VERSION 1
#define CBT_DEVICE "/dev/cbt"

#define CBT_GRANULARITY_MIN 512
#define CBT_GRANULARITY_MAX (1024 * 1024)
#define CBT_TRACKERS_MAX 64		/* of one switch call */
#define CBT_NAME_BYTES 40
#define CBT_COMM_BYTES 16
#define CBT_ID_BYTES 16

/* ---- events ---------------------------------------------------------- */

/* cbt_event.op */
#define CBT_OP_WRITE 1
#define CBT_OP_WRITE_ZEROES 2
#define CBT_OP_DISCARD 3
#define CBT_OP_SECURE_ERASE 4
#define CBT_OP_END 255		/* closes a saved stream; never from the module */

/* cbt_event.flags: how the write was submitted (the kernel's REQ_*) */
#define CBT_F_SYNC 0x1
#define CBT_F_FUA 0x2
#define CBT_F_PREFLUSH 0x4
#define CBT_F_META 0x8
#define CBT_F_PRIO 0x10
#define CBT_F_RAHEAD 0x20
#define CBT_F_NOWAIT 0x40
#define CBT_F_IDLE 0x80
/*
 * The driver split a write and submitted its remainder again, within the same
 * submit and the same interval: the event before it already covers its range.
 */
#define CBT_F_REMAINDER 0x10000

/* cbt_event.known: which optional fields hold a value */
#define CBT_K_INODE 0x1
#define CBT_K_INODE_OFFSET 0x2
#define CBT_K_TASK 0x4		/* pid and comm */

/**
 * struct cbt_event - one write-like operation on one tracked volume
 * @seq: counts from 1 over all trackers; a number that no event carries was
 *	dropped because the ring was full
 * @time_ns: CLOCK_MONOTONIC; never falls as @seq rises
 * @offset: bytes from the start of the volume
 * @length: bytes; may reach past the attached size where the volume has grown
 * @inode: of the file whose page cache was written, if CBT_K_INODE
 * @inode_offset: bytes from the start of that file, if CBT_K_INODE_OFFSET
 * @interval: the tracker's interval, in whose bitmap the bits were set
 * @pid: the task that submitted it (a kernel thread for write-back)
 * @flags: CBT_F_*
 * @tracker: its id
 * @op: CBT_OP_*
 * @known: CBT_K_*
 * @comm: the task's name, padded with zeros
 */
struct cbt_event {
	__u64 seq;
	__u64 time_ns;
	__u64 offset;
	__u64 length;
	__u64 inode;
	__u64 inode_offset;
	__u32 interval;
	__u32 pid;
	__u32 flags;
	__u16 tracker;
	__u8 op;
	__u8 known;
	char comm[CBT_COMM_BYTES];
};

/*
 * read(2) gives whole events, oldest first, and takes them out of the ring;
 * one reader at a time makes sense.  It waits for the first event unless
 * O_NONBLOCK.  EINVAL: room for less than one event.  EAGAIN: none there.
 * poll(2): POLLIN while there is an event.
 *
 * There is one ring for all open files: what one program has read, whether it
 * saved it or not, no other gets, and none of it comes again.
 */

/* ---- attach, detach --------------------------------------------------- */

#define CBT_ROLE_PHYSICAL 1
#define CBT_ROLE_SNAPSHOT 2

/**
 * struct cbt_attach - start to track a volume
 * @path: in: pointer to the path of the block device (/proc/self/fd/N names an
 *	open one), or 0: @major, @minor
 * @major: in: with @path 0, so that a volume without a node can be tracked
 * @minor: in: with @path 0
 * @granularity: in: bytes a bit; a power of two, 512 to 1 MiB
 * @interval: in: the number of the interval that begins
 * @log_fd: in: where the caller saves the events, or -1: told so that
 *	recording onto the tracked volume itself can be refused
 * @role: in: CBT_ROLE_*; only told to readers, both roles work alike
 * @reserved: zero
 * @tracker: out: its id, 1 to 65535, not used twice until CBT_IOC_RING
 * @volume_size: out: bytes
 * @bitmap_bytes: out: of one bitmap, ceil(ceil(size / granularity) / 8)
 * @memory: out: bytes of kernel memory that the tracker takes (four bitmaps)
 * @reserved2: zero
 */
struct cbt_attach {
	__u64 path;
	__u32 major;
	__u32 minor;
	__u32 granularity;
	__u32 interval;
	__s32 log_fd;
	__u8 role;
	__u8 reserved[3];
	__u32 tracker;
	__u32 reserved2;
	__u64 volume_size;
	__u64 bitmap_bytes;
	__u64 memory;
};

/*
 * Every write that is submitted after the call returns is recorded; one in
 * flight meanwhile may not be.  The volume stays open and the module loaded
 * until the tracker is detached: dmsetup remove and rmmod say "busy".
 *
 * ENOENT, ENOTBLK, ENXIO: no such device.  EINVAL: granularity, role, flags.
 * EOPNOTSUPP: a disk that is neither a bio-based device-mapper volume nor brd
 * (put a device-mapper linear target on top), DAX, or zoned.  ENODATA: an empty
 * device (no table loaded yet).  ELOOP: @log_fd lies on the volume.
 * ENOMEM: the bitmaps cannot be had.  ENOSPC: all 65535 ids are used up.
 * EBUSY: another program has replaced our handler on this disk, or the disk
 * could not be frozen within five seconds.
 */
#define CBT_IOC_ATTACH _IOWR('C', 0x01, struct cbt_attach)

/*
 * Stops tracking and frees the bitmaps; events stay in the ring.  The
 * argument is the id.  ENOENT: no such tracker.  EBUSY: another program has
 * put its handler over ours (detach that first), or the disk could not be
 * frozen within five seconds; the tracker goes on.
 *
 * To be called while the volume is not suspended: if the tracker is the last
 * that has it open, closing writes back its dirty page cache, and on a
 * suspended volume waits for the resume.
 */
#define CBT_IOC_DETACH _IOW('C', 0x02, __u32)

/* ---- switch ------------------------------------------------------------ */

/* in: for tests: switch although a volume is not suspended, or cannot tell */
#define CBT_SWITCH_RUNNING 0x1
/* out: every volume is device-mapper's and was suspended */
#define CBT_SWITCH_SUSPENDED 0x100

/**
 * struct cbt_switch - end an interval on several trackers at one instant
 * @trackers: in: pointer to @count ids (__u32), the volumes in the order of
 *	the stack, topmost first: they are frozen in this order
 * @count: in: 1 to CBT_TRACKERS_MAX
 * @flags: in, out: CBT_SWITCH_*
 * @time_ns: out: CLOCK_MONOTONIC of the switch
 * @seq: out: events of these trackers below it are of the old interval,
 *	those from it on of the new one
 * @frozen_ns: out: how long the volumes were frozen
 */
struct cbt_switch {
	__u64 trackers;
	__u32 count;
	__u32 flags;
	__u64 time_ns;
	__u64 seq;
	__u64 frozen_ns;
};

/*
 * Freezes the volumes, exchanges each tracker's active and frozen bitmaps,
 * raises its interval by one, thaws.  To be called between dmsetup suspend
 * and dmsetup resume: then nothing is in flight, and what waits is marked
 * again, in the new interval, when it is submitted after the resume.  What
 * the frozen bitmaps held before is lost; CBT_IOC_CLEAR beforehand makes the
 * switch short on large volumes.  All trackers switch, or none.
 *
 * The caller alone may resume, and only after the call has returned: while a
 * resume is under way device-mapper still says that the volume is suspended
 * and already lets writes through, so that a switch that races with it is
 * neither refused nor sound, and CBT_SWITCH_SUSPENDED says nothing then.
 *
 * ENOENT: no such tracker.  EINVAL: count, flags, one id twice.  EBUSY: a
 * volume is not suspended (and CBT_SWITCH_RUNNING not given), or could not be
 * frozen within five seconds.  EOPNOTSUPP: a volume that is not
 * device-mapper's cannot be suspended, and CBT_SWITCH_RUNNING is not given.
 * EOVERFLOW: the interval is 2^32 - 1.
 */
#define CBT_IOC_SWITCH _IOWR('C', 0x03, struct cbt_switch)

/*
 * Zeroes a tracker's frozen bitmaps, when they have been read and saved, so
 * that the next switch need not.  The argument is the id.  ENOENT.
 */
#define CBT_IOC_CLEAR _IOW('C', 0x04, __u32)

/* ---- bitmaps ------------------------------------------------------------ */

#define CBT_BITS_ACTIVE 0	/* of the current interval; still changing */
#define CBT_BITS_FROZEN 1	/* of the interval before; at rest */

#define CBT_BITS_CHANGED 0
#define CBT_BITS_DISCARDED 1

/**
 * struct cbt_bits - copy a part of a bitmap
 * @buffer: in: pointer to @length bytes
 * @offset: in: bytes of the bitmap
 * @length: in: bytes of the bitmap; out: bytes copied, at most 1 MiB a call
 * @tracker: in: id
 * @which: in: CBT_BITS_ACTIVE or CBT_BITS_FROZEN
 * @kind: in: CBT_BITS_CHANGED or CBT_BITS_DISCARDED
 * @reserved: zero
 * @interval: out: the interval that the bits are of; a bitmap read in parts
 *	is whole only if all parts name the same one
 * @reserved2: zero
 */
struct cbt_bits {
	__u64 buffer;
	__u64 offset;
	__u64 length;
	__u32 tracker;
	__u8 which;
	__u8 kind;
	__u8 reserved[2];
	__u32 interval;
	__u32 reserved2;
};

/*
 * ENOENT: no such tracker.  EINVAL: which, kind, an offset past the end.
 * ENODATA: no frozen bitmap: never switched, or cleared.
 */
#define CBT_IOC_BITS _IOWR('C', 0x05, struct cbt_bits)

/* ---- state --------------------------------------------------------------- */

/**
 * struct cbt_info - the module and its ring
 * @version: CBT_VERSION
 * @event_bytes: sizeof(struct cbt_event)
 * @generation: random, made when the module was loaded and whenever the ring
 *	was set anew; sequence numbers compare only within one
 * @next_seq: the number that the next event will get
 * @recorded: events that went into the ring
 * @dropped: events that did not, for want of room; @next_seq - 1 - @recorded
 * @ring_events: room of the ring
 * @ring_used: events waiting to be read
 * @monotonic_ns: a pair of clock readings taken together when @generation
 * @realtime_ns:	was made: the anchor of all events' times
 * @trackers: attached now
 * @reserved: zero
 */
struct cbt_info {
	__u32 version;
	__u32 event_bytes;
	__u8 generation[CBT_ID_BYTES];
	__u64 next_seq;
	__u64 recorded;
	__u64 dropped;
	__u64 ring_events;
	__u64 ring_used;
	__u64 monotonic_ns;
	__u64 realtime_ns;
	__u32 trackers;
	__u32 reserved;
};

#define CBT_IOC_INFO _IOR('C', 0x06, struct cbt_info)

/*
 * Sets the room of the ring in events, 16 to 2^24, forgets what is in it, and
 * begins a new sequence at 1 under a new generation, ids at 1 too.  EINVAL: out of range.
 * EBUSY: a tracker is attached.  ENOMEM.  (At load: ring_events=N.)
 */
#define CBT_IOC_RING _IOW('C', 0x07, __u64)

/* cbt_status.states: sticky, why the next backup may have to be a full one */
#define CBT_S_GREW 0x1	/* writes past the attached size: see grown_to */
#define CBT_S_SHRANK 0x2	/* the volume became smaller than attached */
#define CBT_S_RUNNING 0x4	/* switched while not suspended */
#define CBT_S_UNHOOKED 0x8	/* our handler was replaced: writes may go unseen */
#define CBT_S_GONE 0x10	/* the device was removed */

/* in: the tracker with the lowest id that is not below the given one */
#define CBT_STATUS_NEXT 0x1

/**
 * struct cbt_status - one tracker
 * @tracker: in, out: id
 * @flags: in: 0 or CBT_STATUS_NEXT
 * @generation: random, made at attach; a bitmap belongs to its generation
 * @name: of the disk or partition (dm-0)
 * @major: device number of the volume
 * @minor: device number of the volume
 * @granularity: bytes a bit
 * @interval: the current one
 * @first_interval: the one given at attach
 * @states: CBT_S_*
 * @role: CBT_ROLE_*
 * @frozen: 1 if the frozen bitmaps hold interval @interval - 1
 * @reserved: zero
 * @switches: made since attach
 * @volume_size: bytes, when attached
 * @current_size: bytes, now
 * @grown_to: end of the highest write past @volume_size, or 0: everything
 *	from @volume_size on counts as changed
 * @bitmap_bytes: of one bitmap
 * @memory: bytes of kernel memory
 * @events: operations recorded (dropped ones included)
 * @bytes: their lengths added up, remainders left out
 * @discards: of @events, discards and secure erases
 * @remainders: of @events, those marked CBT_F_REMAINDER
 */
struct cbt_status {
	__u32 tracker;
	__u32 flags;
	__u8 generation[CBT_ID_BYTES];
	char name[CBT_NAME_BYTES];
	__u32 major;
	__u32 minor;
	__u32 granularity;
	__u32 interval;
	__u32 first_interval;
	__u32 states;
	__u8 role;
	__u8 frozen;
	__u8 reserved[6];
	__u64 switches;
	__u64 volume_size;
	__u64 current_size;
	__u64 grown_to;
	__u64 bitmap_bytes;
	__u64 memory;
	__u64 events;
	__u64 bytes;
	__u64 discards;
	__u64 remainders;
};

/* ENOENT: no such tracker, or none from there on. */
#define CBT_IOC_STATUS _IOWR('C', 0x08, struct cbt_status)

/* ---- a saved stream --------------------------------------------------------
 *
 * What a recorder writes to a file: one header, one descriptor for each
 * tracker, then the events as read(2) gave them, then one event CBT_OP_END:
 * seq = the module's next_seq, offset = events dropped, length = events before
 * it in the file, inode = CRC-32 (zlib's) of all events before it.  A stream
 * without it was cut short.  Little-endian.
 */
#define CBT_STREAM_MAGIC "CBTWRITE"
#define CBT_STREAM_VERSION 1

struct cbt_stream_header {
	char magic[8];
	__u32 version;
	__u32 header_bytes;		/* 64 + 64 * trackers */
	__u32 record_bytes;		/* sizeof(struct cbt_event) */
	__u32 trackers;
	__u64 anchor_monotonic_ns;
	__u64 anchor_realtime_ns;
	__u8 reserved[24];
};

struct cbt_stream_tracker {
	__u32 id;
	__u8 role;
	__u8 reserved[3];
	__u32 granularity;
	__u32 interval;			/* at attach */
	__u64 volume_size;
	char name[CBT_NAME_BYTES];
};

#endif /* CBT_H */
