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
#include <linux/completion.h>
#include <linux/device-mapper.h>
#include <linux/err.h>
#include <linux/kernfs.h>
#include <linux/kobject.h>
#include <linux/lockdep.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/workqueue.h>

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

/*
 * Under the tracker lock.  dm's answer takes one spinlock and no memory.
 * False: not suspended, or not dm's.
 */
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

/* ---- holding ---- */

/**
 * struct cbt_hold - a volume that cannot be resumed, or is about to be so
 * @work: the suspend, which waits for dm's lock
 * @done: it has been made
 * @lock: of the following
 * @held: it has been made, and the caller must take it back
 * @abandoned: the caller has gone: the work takes it back
 * @md: with a reference of its own
 */
struct cbt_hold {
	struct work_struct work;
	struct completion done;
	struct mutex lock; /* of held and abandoned */
	bool held;
	bool abandoned;
	struct mapped_device *md;
};

static struct workqueue_struct *queue;

int cbt_mapper_init(void)
{
	queue = alloc_workqueue("cbt", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	return queue ? 0 : -ENOMEM;
}

/* Waits for holds that were abandoned. */
void cbt_mapper_exit(void)
{
	destroy_workqueue(queue);
}

/*
 * dm resumes a snapshot with its origin suspended for that long: it takes the
 * origin's lock within the snapshot's own.  dm_resume() tells lockdep of the
 * nesting, dm_internal_resume() does not, and would be reported; the order is
 * the same, and nobody takes the two the other way round.
 */
static void resume(struct mapped_device *md)
{
	lockdep_off();
	dm_internal_resume(md);
	lockdep_on();
}

static void free_hold(struct cbt_hold *hold)
{
	dm_put(hold->md);
	kfree(hold);
}

static void make_hold(struct work_struct *work)
{
	struct cbt_hold *hold = container_of(work, struct cbt_hold, work);
	unsigned int noio = memalloc_noio_save();
	bool abandoned;

	dm_internal_suspend_noflush(hold->md);
	mutex_lock(&hold->lock);
	abandoned = hold->abandoned;
	hold->held = !abandoned;
	complete(&hold->done);
	mutex_unlock(&hold->lock);
	if (abandoned) {
		resume(hold->md);
		free_hold(hold);
	}
	memalloc_noio_restore(noio);
}

/*
 * dm's lock may be held by a resume that waits for a volume below, which the
 * caller holds already: so it is not waited for without a limit.
 * -EBUSY: not within five seconds.  NULL: not device-mapper's.
 */
struct cbt_hold *cbt_mapper_hold(struct cbt_mapper *mapper)
{
	struct cbt_hold *hold;
	bool held;

	if (!mapper->md)
		return NULL;
	hold = kzalloc(sizeof(*hold), GFP_KERNEL);
	if (!hold)
		return ERR_PTR(-ENOMEM);
	hold->md = dm_get_md(disk_devt(dm_disk(mapper->md)));
	if (!hold->md) {
		kfree(hold);
		return ERR_PTR(-ENXIO);
	}
	INIT_WORK(&hold->work, make_hold);
	init_completion(&hold->done);
	mutex_init(&hold->lock);
	queue_work(queue, &hold->work);
	wait_for_completion_timeout(&hold->done, CBT_FREEZE_TIMEOUT);
	mutex_lock(&hold->lock);
	held = hold->held;
	hold->abandoned = !held;
	mutex_unlock(&hold->lock);
	return held ? hold : ERR_PTR(-EBUSY);
}

void cbt_mapper_release(struct cbt_hold *hold)
{
	if (IS_ERR_OR_NULL(hold))
		return;
	/* The work has made it; let it leave the lock. */
	flush_work(&hold->work);
	resume(hold->md);
	free_hold(hold);
}

void cbt_mapper_close(struct cbt_mapper *mapper)
{
	free_page((unsigned long)mapper->page);
	if (mapper->node)
		kernfs_put(mapper->node);
	if (mapper->md)
		dm_put(mapper->md);
	memset(mapper, 0, sizeof(*mapper));
}
