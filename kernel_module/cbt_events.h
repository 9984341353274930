/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * cbt: events, the rings that they come through, and the file that they are
 * saved in.  Part of cbt.h, which includes it.
 */
#ifndef CBT_EVENTS_H
#define CBT_EVENTS_H

#include <linux/types.h>

#define CBT_NAME_BYTES 40
#define CBT_COMM_BYTES 16

/* ---- events ---------------------------------------------------------- */

/* cbt_event.op */
#define CBT_OP_WRITE 1
#define CBT_OP_WRITE_ZEROES 2
#define CBT_OP_DISCARD 3
#define CBT_OP_SECURE_ERASE 4
/* Only in a saved stream, never from the module: */
#define CBT_OP_TRACKER 254	/* describes a tracker */
#define CBT_OP_END 255		/* closes it */

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
 * @seq: counts from 1 over all trackers and CPUs; a number that no event
 *	carries was dropped because its ring was full
 * @time_ns: CLOCK_MONOTONIC, read right after @seq was given: it rises with
 *	@seq on one CPU; between CPUs neighbours may be swapped by less than
 *	the time that takes
 * @offset: bytes from the start of the volume
 * @length: bytes; may reach past the attached size where the volume has grown
 * @inode: of the one file whose page cache was written, if CBT_K_INODE (ext4,
 *	XFS, FAT, NTFS; btrfs does not tell its device, so never there)
 * @inode_offset: bytes from the start of that file, if CBT_K_INODE_OFFSET;
 *	@length bytes of the file follow from there
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
 * One ring a CPU, in memory that the reader maps: two mappings, both shared,
 * whole and with the sizes of struct cbt_info.
 *
 *   offset CBT_MAP_TAILS, info.tails_bytes, readable and writable: one struct
 *	cbt_tail a ring.  Whoever maps it is the reader, until its last
 *	descriptor and mapping are gone; EBUSY while there is another.
 *   offset CBT_MAP_RINGS, info.rings_bytes, readable only (EPERM): struct
 *	cbt_rings, then one struct cbt_ring a ring; from info.slots_offset
 *	on, ring after ring, info.ring_room events each.
 *
 * EINVAL: another offset or size, or a private mapping.
 *
 * The events of ring r from tail to head - 1 are there; number n lies in slot
 * n % info.ring_room.  The reader copies them and then stores the new tail:
 * only then are their slots used again.  Loads and stores with acquire and
 * release; on x86 plain ones are.  A tail that makes no sense costs its reader
 * events (they count as dropped) and nobody else anything.
 *
 * Within a ring numbers rise.  To merge rings in the order of @seq: read
 * rings.next_seq first, then each ring's @pending, then each head; all events
 * below the lowest of next_seq and the pendings that are not 0 are in the
 * rings, or were dropped.
 *
 * poll(2): POLLIN while there is an event.
 */
#define CBT_MAP_TAILS 0
#define CBT_MAP_RINGS 0x10000000

/**
 * struct cbt_tail - how far the reader is in one ring
 * @tail: events taken since the ring was made
 * @reserved: keeps two CPUs' tails apart
 */
struct cbt_tail {
	__u64 tail;
	__u64 reserved[7];
};

/**
 * struct cbt_rings - what all rings share
 * @next_seq: the number that the next event will get
 * @reserved: keeps it apart from the rings
 */
struct cbt_rings {
	__u64 next_seq;
	__u64 reserved[7];
};

/**
 * struct cbt_ring - one CPU's ring
 * @head: events put in since the ring was made
 * @pending: not 0 while an event is put in: its number is not lower than this
 * @dropped: events that found no room
 * @first_dropped: the number of the first of them, or 0
 * @last_dropped: the number of the last of them, or 0
 * @reserved: keeps two CPUs' rings apart
 */
struct cbt_ring {
	__u64 head;
	__u64 pending;
	__u64 dropped;
	__u64 first_dropped;
	__u64 last_dropped;
	__u64 reserved[3];
};

/* ---- a saved stream --------------------------------------------------------
 *
 * What a recorder writes to a file: one header, one descriptor for each
 * tracker that is attached, then records: events, and between them one record
 * CBT_OP_TRACKER for each tracker that came later, before its first event; then
 * one record CBT_OP_END: seq = the module's next_seq, offset = events that the
 * module has dropped since its sequence began, length = records before it,
 * inode = CRC-32 (zlib's) of all records before it.  A stream without it was
 * cut short.  Little-endian.
 *
 * CBT_OP_TRACKER: tracker = its id, flags = CBT_ROLE_*, inode = its
 * granularity, interval = the one at attach, length = the volume's size, comm =
 * the begin of its name, seq = of an event that follows; the rest is zero.  A
 * tracker that was detached before its events were met is nowhere described:
 * nobody knows what volume they are of.
 *
 * Order: from version 2 on the events come in batches.  A batch holds all
 * events of a span of at most CBT_STREAM_BATCH numbers, in any order (as the
 * rings gave them); the numbers of the next batch are higher.  In version 1
 * all numbers rise.  Descriptions have no part in the order.
 *
 * Lost is each number from header.first_seq on, and below the end's seq, that no
 * event has.
 */
#define CBT_STREAM_MAGIC "CBTWRITE"
#define CBT_STREAM_VERSION 2
#define CBT_STREAM_BATCH 65536

/**
 * struct cbt_stream_header - the begin of the file
 * @magic: CBT_STREAM_MAGIC
 * @version: CBT_STREAM_VERSION
 * @header_bytes: 64 + 64 * @trackers
 * @record_bytes: sizeof(struct cbt_event)
 * @trackers: descriptors that follow
 * @anchor_monotonic_ns: as in struct cbt_info
 * @anchor_realtime_ns: likewise
 * @first_seq: the lowest number that the recorder could get, when it began: what
 *	is below was another's, or dropped; 0: not told
 * @reserved: zero
 */
struct cbt_stream_header {
	char magic[8];
	__u32 version;
	__u32 header_bytes;
	__u32 record_bytes;
	__u32 trackers;
	__u64 anchor_monotonic_ns;
	__u64 anchor_realtime_ns;
	__u64 first_seq;
	__u8 reserved[16];
};

/**
 * struct cbt_stream_tracker - a tracker that was attached when the file was begun
 * @id: its id
 * @role: CBT_ROLE_*
 * @reserved: zero
 * @granularity: bytes a bit
 * @interval: the one at attach
 * @volume_size: bytes
 * @name: of the volume
 */
struct cbt_stream_tracker {
	__u32 id;
	__u8 role;
	__u8 reserved[3];
	__u32 granularity;
	__u32 interval;
	__u64 volume_size;
	char name[CBT_NAME_BYTES];
};

#endif /* CBT_EVENTS_H */
