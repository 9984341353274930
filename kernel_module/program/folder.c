// SPDX-License-Identifier: GPL-2.0
/*
 * The folder that keeps a tracker's state over a restart.  What a call here
 * wrote, renamed or removed is on the disk when it returns.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "cbtctl.h"

/* For messages; lasts until the next call. */
const char *folder_path(const struct folder *folder, const char *name)
{
	static char path[512];

	snprintf(path, sizeof(path), "%s/%s", folder->name, name);
	return path;
}

static void fail_in(const struct folder *folder, const char *name)
{
	fail_errno(folder_path(folder, name));
}

static void sync_folder(const struct folder *folder)
{
	if (fsync(folder->fd))
		fail_errno(folder->name);
}

void folder_open(struct folder *folder, const char *name)
{
	folder->name = name;
	folder->fd = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (folder->fd < 0 && errno == ENOENT)
		fail("%s: there is no such folder; make it first, not on the tracked volume", name);
	if (folder->fd < 0)
		fail_errno(name);
	if (flock(folder->fd, LOCK_EX | LOCK_NB))
		fail("%s: another stop or start works here", name);
}

/* What tells of a volume's writes would be one of them. */
void folder_not_on(const struct folder *folder, dev_t dev, const char *volume)
{
	if (lies_on(folder->fd, dev))
		fail("%s: lies on %s itself; use a folder on another volume", folder->name,
		     volume);
}

bool folder_has(const struct folder *folder, const char *name)
{
	if (!faccessat(folder->fd, name, F_OK, AT_SYMLINK_NOFOLLOW))
		return true;
	if (errno != ENOENT)
		fail_in(folder, name);
	return false;
}

/* Returns how many bytes there are, at most @room; 0 if there is no such file. */
size_t folder_read(const struct folder *folder, const char *name, void *data, size_t room)
{
	int fd = openat(folder->fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	ssize_t got;

	if (fd < 0)
		return 0;
	got = pread(fd, data, room, 0);
	close(fd);
	return got < 0 ? 0 : got;
}

int folder_create(const struct folder *folder, const char *name)
{
	int fd = openat(folder->fd, name, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC,
			0600);

	if (fd < 0)
		fail_in(folder, name);
	return fd;
}

void folder_close(const struct folder *folder, int fd, const char *name)
{
	if (fsync(fd) || close(fd))
		fail_in(folder, name);
	sync_folder(folder);
}

void folder_rename(const struct folder *folder, const char *from, const char *to)
{
	if (renameat(folder->fd, from, folder->fd, to))
		fail_in(folder, to);
	sync_folder(folder);
}

/* Even if it is gone already: whoever removed it may have been ended before the sync. */
void folder_remove(const struct folder *folder, const char *name)
{
	if (unlinkat(folder->fd, name, 0) && errno != ENOENT)
		fail_in(folder, name);
	sync_folder(folder);
}

void folder_write(const struct folder *folder, const char *name, const char *text)
{
	int fd = folder_create(folder, name);

	write_all(fd, text, strlen(text), folder_path(folder, name));
	folder_close(folder, fd, name);
}
