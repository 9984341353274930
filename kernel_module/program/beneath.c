// SPDX-License-Identifier: GPL-2.0
/*
 * What lies beneath a file or a volume, as sysfs tells: whether events would be
 * saved on the volume that they are of, and whether anything there is suspended.
 *
 * Not by a file's own device number alone: the volume may be part of another,
 * and btrfs makes up a number for each of its trees.  A loop device's file is
 * not looked into, nor are file systems in layers or on another machine.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "cbtctl.h"

#define MOUNT_ID "mnt_id:"
#define BTRFS "/sys/fs/btrfs"
#define PATH_BYTES 768

/**
 * struct look - what a device is asked
 * @test: whether it is what we look for
 * @wanted: for the test
 */
struct look {
	bool (*test)(dev_t dev, dev_t wanted);
	dev_t wanted;
};

/* Takes "MAJOR:MINOR" from a file of sysfs; false if there is none. */
static bool read_number(const char *path, dev_t *dev)
{
	unsigned int major, minor;
	FILE *file = fopen(path, "re");
	bool found;

	if (!file)
		return false;
	found = fscanf(file, "%u:%u", &major, &minor) == 2;
	fclose(file);
	*dev = makedev(major, minor);
	return found;
}

static bool any(dev_t dev, const struct look *look);

/* Whether @look is true of a device in a folder of links, or of one beneath it. */
static bool any_in(const char *folder, const struct look *look)
{
	DIR *list = opendir(folder);
	struct dirent *entry;
	char path[PATH_BYTES];
	bool found = false;
	dev_t dev;

	while (list && !found && (entry = readdir(list))) {
		snprintf(path, sizeof(path), "%s/%s/dev", folder, entry->d_name);
		found = entry->d_name[0] != '.' && read_number(path, &dev) &&
			any(dev, look);
	}
	if (list)
		closedir(list);
	return found;
}

/* Whether @look is true of the device or of one that it lies on. */
static bool any(dev_t dev, const struct look *look)
{
	char path[64];
	dev_t whole;

	if (look->test(dev, look->wanted))
		return true;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/slaves", major(dev), minor(dev));
	if (any_in(path, look))
		return true;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/partition", major(dev), minor(dev));
	if (access(path, F_OK))
		return false;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/../dev", major(dev), minor(dev));
	return read_number(path, &whole) && any(whole, look);
}

static bool is_same(dev_t dev, dev_t wanted)
{
	return dev == wanted;
}

static bool is_suspended(dev_t dev, dev_t wanted)
{
	char path[64];
	FILE *file;
	int value;

	(void)wanted;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/dm/suspended", major(dev), minor(dev));
	file = fopen(path, "re");
	if (!file)
		return false;
	value = fgetc(file);
	fclose(file);
	return value == '1';
}

/* Whether the volume, or one that it lies on, is suspended. */
bool suspended(dev_t dev)
{
	const struct look look = { .test = is_suspended };

	return any(dev, &look);
}

/* The device that the file system of an open file is mounted from; 0: none that is told. */
static dev_t mounted_from(int fd)
{
	char path[64], line[2048], source[512];
	int mount = -1;
	struct stat about;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, MOUNT_ID, strlen(MOUNT_ID)))
			mount = atoi(line + strlen(MOUNT_ID));
	if (file)
		fclose(file);
	*source = 0;
	file = fopen("/proc/self/mountinfo", "re");
	while (file && fgets(line, sizeof(line), file)) {
		const char *rest = strstr(line, " - ");

		if (rest && atoi(line) == mount)
			sscanf(rest, " - %*s %511s", source);
	}
	if (file)
		fclose(file);
	return !stat(source, &about) && S_ISBLK(about.st_mode) ? about.st_rdev : 0;
}

/* Whether @look is true of a device of the btrfs that @dev belongs to. */
static bool any_of_btrfs(dev_t dev, const struct look *look)
{
	const struct look its = { .test = is_same, .wanted = dev };
	DIR *list = opendir(BTRFS);
	struct dirent *entry;
	char path[PATH_BYTES];
	bool found = false;

	while (list && !found && (entry = readdir(list))) {
		snprintf(path, sizeof(path), BTRFS "/%.300s/devices", entry->d_name);
		found = entry->d_name[0] != '.' && any_in(path, &its) &&
			any_in(path, look);
	}
	if (list)
		closedir(list);
	return found;
}

/* Whether the open file or folder lies on the volume, or on one that lies on it. */
bool lies_on(int fd, dev_t volume)
{
	const struct look look = { .test = is_same, .wanted = volume };
	struct stat about;
	dev_t dev;

	if (fstat(fd, &about))
		return false;
	dev = S_ISBLK(about.st_mode) ? about.st_rdev : about.st_dev;
	if (major(dev))
		return any(dev, &look);
	dev = mounted_from(fd);
	return dev && (any(dev, &look) || any_of_btrfs(dev, &look));
}

/* Opens a file that is to be written, or the folder that it will be in: nothing is made. */
int place_open(const char *name)
{
	int fd = open(name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	char *copy;

	if (fd >= 0)
		return fd;
	if (errno != ENOENT)
		fail_errno(name);
	copy = strdup(name);
	fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	if (fd < 0)
		fail_errno(name);
	free(copy);
	return fd;
}
