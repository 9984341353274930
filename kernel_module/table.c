// SPDX-License-Identifier: GPL-2.0
/*
 * Exchanges of a device-mapper table: whoever loads another table gives a
 * volume other content without a write to it (another device, an error target,
 * a snapshot that is merged into its origin).  dm-mod tells nobody in the
 * kernel, so a probe stands at the one function that exchanges tables.  Where
 * the kernel has no such probes, or the function another name, readers are
 * told by CBT_I_NO_TABLES.
 */
#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/kprobes.h>
#include <linux/ptrace.h>

#include "module.h"

static bool watched;

/* dm_swap_table(struct mapped_device *md, struct dm_table *table) */
static int on_swap(struct kprobe *probe, struct pt_regs *regs)
{
#ifdef CONFIG_HAVE_FUNCTION_ARG_ACCESS_API
	struct mapped_device *md = (void *)regs_get_kernel_argument(regs, 0);
	struct dm_table *table = (void *)regs_get_kernel_argument(regs, 1);
	struct gendisk *disk = dm_disk(md);

	cbt_hook_table_exchanged(disk, dm_table_get_size(table) < get_capacity(disk));
#endif
	return 0;
}

static struct kprobe probe = {
	.symbol_name = "dm_swap_table",
	.pre_handler = on_swap,
};

void cbt_table_watch(void)
{
	int err = -EOPNOTSUPP;

	if (IS_ENABLED(CONFIG_HAVE_FUNCTION_ARG_ACCESS_API))
		err = register_kprobe(&probe);
	watched = !err;
	if (err)
		pr_warn("exchanges of device-mapper tables cannot be seen (%d)\n", err);
}

void cbt_table_unwatch(void)
{
	if (watched)
		unregister_kprobe(&probe);
}

/* False too when the probe was passed by while it could not run. */
bool cbt_table_watched(void)
{
	return watched && !probe.nmissed;
}
