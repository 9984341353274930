/* SPDX-License-Identifier: GPL-2.0 */
/* Why a call is refused. */
#ifndef CBT_WHY_H
#define CBT_WHY_H

#include <linux/compiler.h>

#include "cbt.h"

/**
 * struct cbt_why - why a call is refused, in words for its caller
 * @text: a sentence, or empty
 *
 * On the stack of a call; nobody else sees it.
 */
struct cbt_why {
	char text[CBT_WHY_BYTES];
};

__printf(3, 4)
int cbt_refuse(struct cbt_why *why, int err, const char *fmt, ...);

#endif /* CBT_WHY_H */
