// SPDX-License-Identifier: GPL-2.0
/*
 * Where a file system writes whenever it is written, beyond the first and the
 * last MiB of its volume.  Those already have the superblocks of ext4 (each
 * mount), btrfs (each commit) and XFS, the boot sector, FSINFO and the first
 * FAT of vfat.
 *
 *   XFS	the head of its log: each mount for writing, and each unmount
 *		of one, appends to it; and the headers of its allocation
 *		groups, which change with what is allocated
 *   NTFS	the first records of its table, the mirror of them, and the restart
 *		pages of its log
 *
 * A volume may hold anything: numbers out of range are clipped by
 * fingerprint_add(), and a place that cannot be read is left out.
 *
 * Layouts: fs/xfs/libxfs/xfs_format.h and xfs_log_format.h, fs/ntfs3/ntfs.h.
 */
#include <string.h>

#include "cbtctl.h"

#define BLOCK 4096
#define GROUPS_MAX 256

static __u64 big(const unsigned char *at, int bytes)
{
	__u64 value = 0;

	while (bytes--)
		value = value << 8 | *at++;
	return value;
}

static __u64 little(const unsigned char *at, int bytes)
{
	__u64 value = 0;

	while (bytes--)
		value = value << 8 | at[bytes];
	return value;
}

/* ---- XFS ---- */

#define XFS_MAGIC "XFSB"
#define XFS_LOG_SECTOR 512
#define XFS_LOG_HEADER 0xfeedbabe
#define XFS_HEAD_BEFORE 4096
#define XFS_HEAD_AFTER 65536

struct xfs {
	__u64 block_bytes;
	__u64 group_blocks;
	__u64 groups;
	__u64 log_offset;
	__u64 log_sectors;
};

static bool xfs_read(struct xfs *xfs, struct volume *volume)
{
	const unsigned char *sb = volume->buffer;
	__u64 log, shift;

	if (!volume_read(volume, 0, BLOCK) || memcmp(sb, XFS_MAGIC, 4))
		return false;
	xfs->block_bytes = big(sb + 4, 4);
	xfs->group_blocks = big(sb + 84, 4);
	xfs->groups = big(sb + 88, 4);
	xfs->log_sectors = big(sb + 96, 4) * xfs->block_bytes / XFS_LOG_SECTOR;
	log = big(sb + 48, 8);
	shift = sb[124] & 31;
	xfs->log_offset = ((log >> shift) * xfs->group_blocks + (log & ((1ULL << shift) - 1))) *
			  xfs->block_bytes;
	return log && xfs->group_blocks && xfs->log_sectors;	/* the log may be elsewhere */
}

/* The count of rounds that each sector of the log begins with, or its header has. */
static __u32 xfs_cycle(const struct xfs *xfs, struct volume *volume, __u64 sector)
{
	__u64 at = xfs->log_offset + sector * XFS_LOG_SECTOR;
	const unsigned char *found = volume->buffer + at % BLOCK;

	if (!volume_read(volume, at - at % BLOCK, BLOCK))
		return 0;
	if (big(found, 4) == XFS_LOG_HEADER)
		found += 4;
	return big(found, 4);
}

/* Where the first sector's round ends: there the next record goes. */
static __u64 xfs_head(const struct xfs *xfs, struct volume *volume)
{
	__u32 cycle = xfs_cycle(xfs, volume, 0);
	__u64 low = 0, high = xfs->log_sectors;

	while (high - low > 1) {
		__u64 middle = low + (high - low) / 2;

		if (xfs_cycle(xfs, volume, middle) == cycle)
			low = middle;
		else
			high = middle;
	}
	return high == xfs->log_sectors ? 0 : high;
}

static void add_xfs(struct fingerprint *print, struct volume *volume)
{
	struct xfs xfs;
	__u64 head, i;

	if (!xfs_read(&xfs, volume))
		return;
	head = xfs.log_offset + xfs_head(&xfs, volume) * XFS_LOG_SECTOR;
	fingerprint_add(print, volume, head, XFS_HEAD_AFTER);
	if (head >= xfs.log_offset + XFS_HEAD_BEFORE)
		fingerprint_add(print, volume, head - XFS_HEAD_BEFORE, XFS_HEAD_BEFORE);
	for (i = 0; i < xfs.groups && i < GROUPS_MAX; i++)
		fingerprint_add(print, volume, i * xfs.group_blocks * xfs.block_bytes, BLOCK);
}

/* ---- NTFS ---- */

#define NTFS_MAGIC "NTFS    "
#define NTFS_DATA 0x80
#define NTFS_RECORDS 16
#define NTFS_LOG_RECORD 2
#define NTFS_LOG_PAGES 65536

/* So many units, or if it is negative a power of two. */
static __u64 ntfs_size(unsigned char told, __u64 unit)
{
	return told <= 128 ? told * unit : 1ULL << ((256 - told) & 31);
}

/* The first cluster of the data of the record that is in the buffer, or 0. */
static __u64 ntfs_first_cluster(const unsigned char *record, __u64 bytes)
{
	__u64 at = little(record + 20, 2);

	while (at + 40 < bytes && little(record + at, 4) < NTFS_DATA) {
		__u64 length = little(record + at + 4, 4);

		if (!length)
			return 0;
		at += length;
	}
	if (at + 40 >= bytes || little(record + at, 4) != NTFS_DATA || !record[at + 8])
		return 0;
	at += little(record + at + 32, 2);
	if (at + 16 >= bytes)
		return 0;
	return little(record + at + 1 + (record[at] & 7), record[at] >> 4 & 7);
}

static void add_ntfs(struct fingerprint *print, struct volume *volume)
{
	const unsigned char *boot = volume->buffer;
	__u64 cluster, record, table, mirror, log;

	if (!volume_read(volume, 0, BLOCK) || memcmp(boot + 3, NTFS_MAGIC, 8))
		return;
	cluster = ntfs_size(boot[13], 1) * little(boot + 11, 2);
	record = ntfs_size(boot[64], cluster);
	table = little(boot + 48, 8) * cluster;
	mirror = little(boot + 56, 8) * cluster;
	if (!record || record > BLOCK)
		return;
	fingerprint_add(print, volume, table, NTFS_RECORDS * record);
	fingerprint_add(print, volume, mirror, BLOCK);
	if (table % BLOCK || !volume_read(volume, table, NTFS_RECORDS * record))
		return;
	log = ntfs_first_cluster(volume->buffer + NTFS_LOG_RECORD * record, record) * cluster;
	if (log)
		fingerprint_add(print, volume, log, NTFS_LOG_PAGES);
}

void places_of_file_system(struct fingerprint *print, struct volume *volume)
{
	add_xfs(print, volume);
	add_ntfs(print, volume);
}
