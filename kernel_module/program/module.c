// SPDX-License-Identifier: GPL-2.0
/*
 * The open module, its refusals as sentences, and numbers in words.
 *
 * Commands open the module after they have understood their words, so that a
 * call that cannot be understood ends with 2 with or without a module.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cbtctl.h"

int module_fd = -1;

static char advice[512];	/* what to do if anything fails from now on */

static void say(const char *format, va_list words, const char *more)
{
	fflush(stdout);
	fputs("cbtctl: ", stderr);
	vfprintf(stderr, format, words);
	fprintf(stderr, "%s%s\n", *more ? ": " : "", more);
}

void warn(const char *format, ...)
{
	va_list words;

	va_start(words, format);
	say(format, words, "");
	va_end(words);
}

/* Says how things stand, and the way out, after whatever fails from now on. */
void advise(const char *format, ...)
{
	va_list words;

	va_start(words, format);
	vsnprintf(advice, sizeof(advice), format, words);
	va_end(words);
}

void misunderstood(const char *format, ...)
{
	va_list words;

	va_start(words, format);
	say(format, words, "");
	va_end(words);
	exit(EXIT_MISUNDERSTOOD);
}

void fail(const char *format, ...)
{
	va_list words;

	va_start(words, format);
	say(format, words, advice);
	va_end(words);
	exit(EXIT_REFUSED);
}

void fail_errno(const char *what)
{
	fail("%s: %s", what, strerror(errno));
}

/* The module's sentence about its last refusal, or else what @error means. */
const char *module_why(int error)
{
	static char why[CBT_WHY_BYTES + 1];

	if (ioctl(module_fd, CBT_IOC_WHY, why) < 0 || !why[0])
		snprintf(why, sizeof(why), "%s", strerror(error));
	why[strcspn(why, "\n")] = 0;
	return why;
}

/* The module's sentences begin with what they are about: not twice. */
void refused(const char *what, int error)
{
	const char *why = module_why(error);
	size_t length = strlen(what);

	if (!strncmp(why, what, length) && why[length] == ':')
		fail("%s", why);
	fail("%s: %s", what, why);
}

/* Returns 0, or the errno of the refusal. */
int module_try(unsigned long request, void *arg)
{
	return ioctl(module_fd, request, arg) < 0 ? errno : 0;
}

void module_call(unsigned long request, void *arg, const char *what)
{
	int error = module_try(request, arg);

	if (error)
		refused(what, error);
}

void tracker_refused(int error, __u32 id)
{
	char name[32];

	snprintf(name, sizeof(name), "tracker %u", id);
	if (error == ENOENT)
		fail("%s: there is none", name);
	refused(name, error);
}

/* A call about tracker @id. */
void tracker_call(unsigned long request, void *arg, __u32 id)
{
	int error = module_try(request, arg);

	if (error)
		tracker_refused(error, id);
}

void module_open(void)
{
	struct cbt_info info;

	module_fd = open(CBT_DEVICE, O_RDWR | O_CLOEXEC);
	if (module_fd < 0)
		fail(CBT_DEVICE ": %s: insert cbt.ko, and be root", strerror(errno));
	if (module_try(CBT_IOC_INFO, &info) || info.version != CBT_VERSION)
		fail(CBT_DEVICE ": is another version of the module: this program knows %d",
		     CBT_VERSION);
}

__u64 parse_number(const char *text, __u64 max)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || *end || *text < '0' || *text > '9' || value > max)
		misunderstood("%s: is not a number up to %llu", text, max);
	return value;
}

__u32 parse_id(const char *text)
{
	return parse_number(text, 0xffffffff);
}

/* A file to be written, and not an option in a wrong place. */
const char *file_name(const char *text)
{
	if (*text == '-')
		misunderstood("%s: is no file name here; ./%s is one, and /dev/stdout", text, text);
	return text;
}

/* @text has room for HEX_BYTES. */
void hex(char *text, const __u8 *bytes)
{
	int i;

	for (i = 0; i < CBT_ID_BYTES; i++)
		sprintf(text + 2 * i, "%02x", bytes[i]);
}

void write_all(int fd, const void *data, size_t length, const char *name)
{
	while (length) {
		ssize_t done = write(fd, data, length);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			fail_errno(name);
		data = (const char *)data + done;
		length -= done;
	}
}
