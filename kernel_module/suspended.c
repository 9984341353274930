// SPDX-License-Identifier: GPL-2.0
/*
 * Is this device-mapper disk suspended?  dm-mod exports no way to ask, but it
 * tells everybody in sysfs: the attribute "suspended" in the folder "dm" of
 * the disk.  It is found before the queues are frozen and asked while they
 * are; dm's answer then takes one spinlock and no memory.
 */
#include <linux/kernfs.h>
#include <linux/kobject.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/sysfs.h>

#include "module.h"

static struct attribute *find_attribute(struct kobject *kobject, const char *name)
{
	const struct attribute_group **group = kobject->ktype->default_groups;
	struct attribute **attribute;

	for (; group && *group; group++)
		for (attribute = (*group)->attrs; attribute && *attribute; attribute++)
			if (!strcmp((*attribute)->name, name))
				return *attribute;
	return NULL;
}

/*
 * The disk must be open until cbt_suspended_close: that keeps the kobject.
 * EOPNOTSUPP: not a device-mapper disk.
 */
int cbt_suspended_open(struct cbt_suspended *state, struct gendisk *disk)
{
	memset(state, 0, sizeof(*state));
	state->node = kernfs_find_and_get(disk_to_dev(disk)->kobj.sd, "dm");
	if (!state->node)
		return -EOPNOTSUPP;
	state->kobject = state->node->priv;
	state->attribute = find_attribute(state->kobject, "suspended");
	if (!state->attribute || !state->kobject->ktype->sysfs_ops) {
		cbt_suspended_close(state);
		return -EOPNOTSUPP;
	}
	state->page = (char *)get_zeroed_page(GFP_KERNEL);
	if (!state->page) {
		cbt_suspended_close(state);
		return -ENOMEM;
	}
	return 0;
}

bool cbt_suspended_ask(struct cbt_suspended *state)
{
	ssize_t length;

	if (!state->attribute)
		return false;
	length = state->kobject->ktype->sysfs_ops->show(state->kobject,
							state->attribute,
							state->page);
	return length > 0 && state->page[0] == '1';
}

void cbt_suspended_close(struct cbt_suspended *state)
{
	free_page((unsigned long)state->page);
	if (state->node)
		kernfs_put(state->node);
	memset(state, 0, sizeof(*state));
}
