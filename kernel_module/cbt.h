/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * cbt: records which blocks of a volume were written, when and by whom.
 *
 * This header and cbt_events.h are the whole interface between cbt.ko and user
 * space.  The module makes one character device, /dev/cbt (mode 0600).
 * ioctl(2) on it attaches, switches, reads and detaches trackers; mmap(2) and
 * poll(2) give the recorded events.  cbtctl and cbtlab/record are its two
 * users.
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
 * Errors of every ioctl: ENOTTY unknown call; EFAULT bad pointer, and nothing
 * was done; EPERM without CAP_SYS_ADMIN (as is open); EINTR a signal came while
 * waiting (a deadly one, while waiting for another call).  A refusal that is
 * not obvious is explained by a sentence: CBT_IOC_WHY gives it, and the kernel
 * log has it too.
 */
#ifndef CBT_H
#define CBT_H

#include <linux/ioctl.h>
#include <linux/types.h>

#include "cbt_events.h"

#define CBT_VERSION 2
#define CBT_DEVICE "/dev/cbt"

#define CBT_GRANULARITY_MIN 512
#define CBT_GRANULARITY_MAX (1024 * 1024)
#define CBT_TRACKERS_MAX 64		/* of one switch call */
#define CBT_ID_BYTES 16
#define CBT_WHY_BYTES 256

/* ---- attach, detach --------------------------------------------------- */

#define CBT_ROLE_PHYSICAL 1
#define CBT_ROLE_SNAPSHOT 2

/* cbt_attach.flags */
/*
 * Go on where a sealed tracker ended: with its @generation and @interval, in
 * state CBT_S_LOADING until CBT_IOC_LOAD has brought back all of its bits.
 */
#define CBT_ATTACH_CONTINUE 0x1
/* Tell readers (CBT_S_UNCLEAN) that what was tracked before is lost. */
#define CBT_ATTACH_UNCLEAN 0x2
/* Only the bitmaps, no events. */
#define CBT_ATTACH_NO_EVENTS 0x4
/* One interval, never switched (EINVAL): half the memory.  For snapshots. */
#define CBT_ATTACH_SINGLE 0x8
/*
 * The caller vouches that an exchange of the volume's device-mapper table
 * leaves its content as it is (LVM does so for lvcreate -s and lvextend):
 * counted, but no state.
 */
#define CBT_ATTACH_TABLES 0x10

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
 * @flags: in: CBT_ATTACH_*
 * @tracker: out: its id, 1 to 65535, not used twice until CBT_IOC_RING
 * @generation: in with CBT_ATTACH_CONTINUE, else zero; out
 * @volume_size: out: bytes
 * @bitmap_bytes: out: of one bitmap, ceil(ceil(size / granularity) / 8)
 * @memory: out: bytes of kernel memory that the tracker's bitmaps take
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
	__u32 flags;
	__u32 tracker;
	__u8 generation[CBT_ID_BYTES];
	__u64 volume_size;
	__u64 bitmap_bytes;
	__u64 memory;
};

/*
 * Every write that is submitted after the call returns is recorded; one in
 * flight meanwhile may not be.  The volume stays open and the module loaded
 * until the tracker is detached: dmsetup remove and rmmod say "busy".
 *
 * A generation is made from the wall clock and random bytes, never twice: a
 * bitmap says what changed only within one.
 *
 * ENOENT, ENOTBLK, ENXIO: no such device.  EINVAL: granularity, role, flags.
 * EOPNOTSUPP: a disk that is neither a bio-based device-mapper volume nor brd
 * (put a device-mapper linear target on top), DAX, or zoned.  ENODATA: an empty
 * device (no table loaded yet).  ELOOP: @log_fd is on a file system that lies
 * directly on the volume (btrfs does not tell, nor do stacks: look at those
 * yourself).
 * ENOMEM: the bitmaps take more than three quarters of the memory that is to be
 * had.  ENOSPC: all 65535 ids are used up.
 * EEXIST: a tracker of that @generation is attached already.
 * EBUSY: another program has replaced our handler on this disk, or the disk
 * could not be frozen within five seconds.
 */
#define CBT_IOC_ATTACH _IOWR('C', 0x01, struct cbt_attach)

/*
 * Stops tracking and frees the bitmaps; events stay in the rings.  The
 * argument is the id.  ENOENT: no such tracker.  ESTALE: it was sealed, and
 * the volume was written since: what was saved of it is worth nothing, and
 * detaching says so once; the second call detaches.  EBUSY: another program
 * has put its handler over ours (detach that first), or the disk could not be
 * frozen within five seconds; the tracker goes on.
 *
 * EDEADLK: the volume is suspended: if the tracker is the last that has it
 * open, closing writes back its dirty page cache, and waits for the resume.  So
 * it does, unseen, where a volume below is suspended: resume that first.
 */
#define CBT_IOC_DETACH _IOW('C', 0x02, __u32)

/*
 * Ends recording for good, so that the bitmaps can be saved while the module
 * watches: not a bit changes any more; a write to the volume is let through
 * and leaves CBT_S_MISSED.  The argument is the id.  The orderly stop: nobody
 * uses the volume any more; seal; read the bitmaps and save them durably;
 * detach, and if that did not say ESTALE, write durably that they are clean.
 * ENOENT.  EBUSY: the disk could not be frozen.
 */
#define CBT_IOC_SEAL _IOW('C', 0x09, __u32)

/* ---- switch ------------------------------------------------------------ */

/* in: for tests: switch although a volume is not suspended, or cannot tell */
#define CBT_SWITCH_RUNNING 0x1
/* out: every volume is device-mapper's and was held suspended */
#define CBT_SWITCH_SUSPENDED 0x100

/**
 * struct cbt_switch - end an interval on several trackers at one instant
 * @trackers: in: pointer to @count ids (__u32), the volumes in the order of
 *	the stack, topmost first: they are frozen in this order
 * @count: in: 1 to CBT_TRACKERS_MAX
 * @flags: in, out: CBT_SWITCH_*
 * @wait_ms: in: wait so long until all are suspended, by whomever; 0: they are
 * @reserved: zero
 * @time_ns: out: CLOCK_MONOTONIC of the switch
 * @seq: out: events of these trackers below it are of the old interval,
 *	those from it on of the new one
 * @frozen_ns: out: how long the volumes were frozen
 */
struct cbt_switch {
	__u64 trackers;
	__u32 count;
	__u32 flags;
	__u32 wait_ms;
	__u32 reserved;
	__u64 time_ns;
	__u64 seq;
	__u64 frozen_ns;
};

/*
 * Keeps device-mapper from resuming the volumes, freezes them, exchanges each
 * tracker's active and frozen bitmaps, raises its interval by one, thaws.  To
 * be called between dmsetup suspend and dmsetup resume: then nothing is in
 * flight, and what waits is marked again, in the new interval, when it is
 * submitted after the resume.  A resume that comes meanwhile waits for the
 * call (and gives up, EINTR, at a signal); a switch that comes while a resume is
 * under way finds the volume not suspended, for which it may have to suspend
 * and resume it once more.  All trackers switch, or none.
 *
 * With @wait_ms the call is made before the suspend and returns when it has
 * switched: for programs that suspend and resume in one breath (lvcreate -s).
 * It takes the first suspend that comes, so nobody else may reload the volume's
 * table meanwhile; and if a short one is missed (ETIMEDOUT), the snapshot that
 * was made in it belongs to no interval and is to be thrown away.
 *
 * The frozen bitmaps must have been read, saved and cleared (CBT_IOC_CLEAR):
 * a switch drops nothing, and takes no longer on a large volume.  Each volume
 * costs the time of one freeze (a grace period), one after the other.
 *
 * ENOENT: no such tracker.  EINVAL: count, flags, one id twice, a tracker of
 * one interval.  EEXIST: the frozen bitmaps were not cleared.  ESTALE: sealed.
 * EBUSY: a volume is not suspended (and CBT_SWITCH_RUNNING not given), could not
 * be held or frozen within five seconds, or is in CBT_S_LOADING.  ETIMEDOUT: @wait_ms are over.
 * EOPNOTSUPP: a volume that is not device-mapper's cannot be suspended, and
 * CBT_SWITCH_RUNNING is not given.  EOVERFLOW: the interval is 2^32 - 1.
 */
#define CBT_IOC_SWITCH _IOWR('C', 0x03, struct cbt_switch)

/*
 * Zeroes a tracker's frozen bitmaps, when they have been read and saved: the
 * next switch needs them.  The argument is the id.  ENOENT.  A tracker has one
 * owner, who saves and clears: for a second program attach a second tracker.
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

/*
 * Brings bits back into the active bitmaps of a tracker in CBT_S_LOADING:
 * @buffer is read, each of its bits is added.  Parts from front to back, first
 * all of CBT_BITS_CHANGED, then all of CBT_BITS_DISCARDED; when the last byte
 * is there CBT_S_LOADING is gone.  Load before the volume is written.
 * @which CBT_BITS_ACTIVE; @interval is not used; @length at most 1 MiB, and a
 * multiple of 8 but for the last part of a bitmap.
 * ENOENT.  EINVAL: a part that is not the next one, pad bits set.  ENODATA:
 * the tracker is not loading.  ESTALE: it is sealed.
 */
#define CBT_IOC_LOAD _IOWR('C', 0x0a, struct cbt_bits)

/* ---- state --------------------------------------------------------------- */

/* cbt_info.flags: exchanges of device-mapper tables cannot be seen, or one was not */
#define CBT_I_NO_TABLES 0x1

/**
 * struct cbt_info - the module and its rings
 * @version: CBT_VERSION
 * @event_bytes: sizeof(struct cbt_event)
 * @generation: made when the module was loaded and whenever the rings were set
 *	anew; sequence numbers compare only within one
 * @next_seq: the number that the next event will get; all events below it are
 *	in the rings, or were dropped
 * @recorded: events that went into a ring
 * @dropped: events that did not, for want of room; @next_seq - 1 - @recorded
 * @first_dropped: the lowest number among them, or 0
 * @last_dropped: the highest number among them, or 0
 * @ring_used: events waiting to be read
 * @monotonic_ns: a pair of clock readings taken together when @generation
 * @realtime_ns:	was made: the anchor of all events' times
 * @trackers: attached now
 * @flags: CBT_I_*
 * @rings: one for each CPU number that is possible here
 * @ring_room: events in each; a power of two
 * @tails_bytes: of the mapping CBT_MAP_TAILS
 * @rings_bytes: of the mapping CBT_MAP_RINGS
 * @slots_offset: of the first slot, bytes from the start of that mapping
 */
struct cbt_info {
	__u32 version;
	__u32 event_bytes;
	__u8 generation[CBT_ID_BYTES];
	__u64 next_seq;
	__u64 recorded;
	__u64 dropped;
	__u64 first_dropped;
	__u64 last_dropped;
	__u64 ring_used;
	__u64 monotonic_ns;
	__u64 realtime_ns;
	__u32 trackers;
	__u32 flags;
	__u32 rings;
	__u32 ring_room;
	__u64 tails_bytes;
	__u64 rings_bytes;
	__u64 slots_offset;
};

#define CBT_IOC_INFO _IOR('C', 0x06, struct cbt_info)

/*
 * Sets the room of all rings together in events, 16 to 2^24 (rounded up to a
 * power of two for each CPU), forgets what is in them, and begins a new
 * sequence at 1 under a new generation, ids at 1 too.  EINVAL: out of range.
 * EBUSY: a tracker is attached, or there is a reader.  ENOMEM.  (At load:
 * ring_events=N; without it 2^18, and at least 4096 a CPU.)  Who has mapped
 * CBT_MAP_RINGS alone goes on looking at the old ones.
 */
#define CBT_IOC_RING _IOW('C', 0x07, __u64)

/*
 * The sentence that explains why the last call through this open file was
 * refused; empty if it was not.  The argument points to CBT_WHY_BYTES bytes.
 */
#define CBT_IOC_WHY _IOR('C', 0x0b, char[CBT_WHY_BYTES])

/* cbt_status.states: sticky, why the next backup may have to be a full one */
#define CBT_S_GREW 0x1	/* is larger than attached, or was written there */
#define CBT_S_SHRANK 0x2	/* became smaller, if only for a while */
#define CBT_S_RUNNING 0x4	/* switched while not suspended */
#define CBT_S_UNHOOKED 0x8	/* our handler was replaced: writes may go unseen */
#define CBT_S_GONE 0x10	/* the device was removed (refused while it is open) */
#define CBT_S_TABLE 0x20	/* its table was exchanged: content may have changed unseen */
#define CBT_S_UNCLEAN 0x40	/* attached after a crash: earlier bits are lost */
#define CBT_S_LOADING 0x80	/* earlier bits are not all back */
#define CBT_S_MISSED 0x100	/* written after it was sealed */
/* cbt_status.states: no reason for a full backup */
#define CBT_S_SEALED 0x10000	/* records no more */

/* in: the tracker with the lowest id that is not below the given one */
#define CBT_STATUS_NEXT 0x1

/**
 * struct cbt_status - one tracker
 * @tracker: in, out: id
 * @flags: in: 0 or CBT_STATUS_NEXT
 * @generation: made at attach, or taken over; a bitmap belongs to it
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
 * @attach_flags: CBT_ATTACH_*
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
 * @tables: exchanges of its device-mapper table seen, failed ones too
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
	__u8 reserved[2];
	__u32 attach_flags;
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
	__u64 tables;
};

/* ENOENT: no such tracker, or none from there on. */
#define CBT_IOC_STATUS _IOWR('C', 0x08, struct cbt_status)

#endif /* CBT_H */
