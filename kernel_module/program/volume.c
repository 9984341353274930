// SPDX-License-Identifier: GPL-2.0
/*
 * A volume that is opened exclusively: nobody has it mounted or has put
 * another volume on it, and nobody can until it is closed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "cbtctl.h"

/* No disk has larger sectors, and a read past the cache must be of whole ones. */
#define ALIGNMENT 4096
#define DEVNAME "DEVNAME="

void volume_open(struct volume *volume, const char *path)
{
	struct stat about;

	volume->name = path;
	/* Neither reading nor writing back would return, nor could the program be ended. */
	if (!stat(path, &about) && S_ISBLK(about.st_mode) && suspended(about.st_rdev))
		fail("%s: it, or what it lies on, is suspended; resume that first", path);
	volume->fd = open(path, O_RDONLY | O_EXCL | O_DIRECT | O_CLOEXEC);
	if (volume->fd < 0 && errno == EBUSY)
		fail("%s: is in use: mounted, or another volume lies on it", path);
	if (volume->fd < 0 || fstat(volume->fd, &about))
		fail_errno(path);
	if (!S_ISBLK(about.st_mode))
		fail("%s: is no block device", path);
	volume->dev = about.st_rdev;
	if (ioctl(volume->fd, BLKGETSIZE64, &volume->size))
		fail_errno(path);
	volume->buffer = aligned_alloc(ALIGNMENT, PIECE);
	if (!volume->buffer)
		fail_errno(path);
}

/* By the node that the kernel itself made: there may be no udev. */
void volume_open_number(struct volume *volume, dev_t dev)
{
	static char node[256];
	char path[64], line[256];
	FILE *about;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/uevent", major(dev), minor(dev));
	about = fopen(path, "re");
	if (!about)
		fail_errno(path);
	while (fgets(line, sizeof(line), about)) {
		line[strcspn(line, "\n")] = 0;
		if (!strncmp(line, DEVNAME, strlen(DEVNAME)))
			snprintf(node, sizeof(node), "/dev/%.200s", line + strlen(DEVNAME));
	}
	fclose(about);
	volume_open(volume, node);
	if (volume->dev != dev)
		fail("%s: is not %u:%u", node, major(dev), minor(dev));
}

/* Writes back what is in its page cache, and waits until it is on the medium. */
void volume_flush(struct volume *volume)
{
	if (fsync(volume->fd))
		fail_errno(volume->name);
}

/*
 * Reads @length bytes at @offset, both multiples of ALIGNMENT unless the volume
 * ends there, into @volume->buffer.  Returns how many there are, or 0 if they
 * cannot be read.
 */
__u32 volume_read(struct volume *volume, __u64 offset, __u32 length)
{
	__u32 have = 0;

	if (offset >= volume->size)
		return 0;
	if (length > volume->size - offset)
		length = volume->size - offset;
	while (have < length) {
		ssize_t got = pread(volume->fd, volume->buffer + have, length - have,
				    offset + have);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return 0;
		have += got;
	}
	return have;
}
