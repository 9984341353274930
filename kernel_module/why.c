// SPDX-License-Identifier: GPL-2.0
/*
 * Why a call is refused: a sentence for its caller, and for the kernel log.
 */
#include <linux/kernel.h>
#include <linux/ratelimit.h>

#include "module.h"

/* Returns @err.  Anybody's loop of bad calls must not fill the log. */
int cbt_refuse(struct cbt_why *why, int err, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vscnprintf(why->text, sizeof(why->text), fmt, args);
	va_end(args);
	pr_err_ratelimited("%s\n", why->text);
	return err;
}
