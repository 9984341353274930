// SPDX-License-Identifier: GPL-2.0
/*
 * A device-mapper volume: is it suspended, and may it stay so for a moment?
 *
 * dm-mod exports no way to ask, but it tells everybody in sysfs: the attribute
 * "suspended" in the folder "dm" of the disk.  While a resume is under way it
 * still says 1 and writes pass already.  So the volume is held first, by a
 * suspend of dm's internal kind (the one that thin pools use for their thin
 * volumes): that takes dm's lock, and so comes before a resume or after it.
 * On a suspended volume it only takes note, and a resume waits until it is
 * taken back; on a running one, which is told from it by asking again, it
 * suspends for that long.
 */
#include <linux/device-mapper.h>
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
 * The disk must be open until cbt_mapper_close: that keeps the kobject.
 * EOPNOTSUPP: not a device-mapper disk.
 */
int cbt_mapper_open(struct cbt_mapper *mapper, struct gendisk *disk)
{
	memset(mapper, 0, sizeof(*mapper));
	mapper->md = dm_get_md(disk_devt(disk));
	if (!mapper->md)
		return -EOPNOTSUPP;
	mapper->node = kernfs_find_and_get(disk_to_dev(disk)->kobj.sd, "dm");
	if (!mapper->node)
		goto out;
	mapper->kobject = mapper->node->priv;
	mapper->attribute = find_attribute(mapper->kobject, "suspended");
	if (!mapper->attribute || !mapper->kobject->ktype->sysfs_ops)
		goto out;
	mapper->page = (char *)get_zeroed_page(GFP_KERNEL);
	if (mapper->page)
		return 0;
	cbt_mapper_close(mapper);
	return -ENOMEM;
out:
	cbt_mapper_close(mapper);
	return -EOPNOTSUPP;
}

/* dm's answer takes one spinlock and no memory.  False: not, or not dm's. */
bool cbt_mapper_suspended(struct cbt_mapper *mapper)
{
	ssize_t length;

	if (!mapper->md)
		return false;
	length = mapper->kobject->ktype->sysfs_ops->show(mapper->kobject,
							 mapper->attribute,
							 mapper->page);
	return length > 0 && mapper->page[0] == '1';
}

void cbt_mapper_hold(struct cbt_mapper *mapper)
{
	if (!mapper->md)
		return;
	dm_internal_suspend_noflush(mapper->md);
	mapper->held = true;
}

void cbt_mapper_release(struct cbt_mapper *mapper)
{
	if (mapper->held)
		dm_internal_resume(mapper->md);
	mapper->held = false;
}

void cbt_mapper_close(struct cbt_mapper *mapper)
{
	cbt_mapper_release(mapper);
	free_page((unsigned long)mapper->page);
	if (mapper->node)
		kernfs_put(mapper->node);
	if (mapper->md)
		dm_put(mapper->md);
	memset(mapper, 0, sizeof(*mapper));
}
