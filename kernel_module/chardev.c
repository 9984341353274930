// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/cbt: takes the calls of cbt.h apart, and the module's beginning and end.
 */
#include <linux/blkdev.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/kdev_t.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "module.h"

static unsigned long ring_events;
module_param(ring_events, ulong, 0444);
MODULE_PARM_DESC(ring_events, "room for events of all CPUs until they are read, 80 bytes each (0: 2^18, 4096 a CPU at least)");

static int device_of(const struct cbt_attach *call, dev_t *dev)
{
	char *path;
	int err;

	if (!call->path) {
		*dev = MKDEV(call->major, call->minor);
		return MAJOR(*dev) == call->major && MINOR(*dev) == call->minor ?
		       0 : -ENXIO;
	}
	path = strndup_user(u64_to_user_ptr(call->path), PATH_MAX);
	if (IS_ERR(path))
		return PTR_ERR(path);
	err = lookup_bdev(path, dev);
	kfree(path);
	return err;
}

static long do_attach(void __user *arg, struct cbt_why *why)
{
	struct cbt_attach call;
	dev_t dev;
	int err;

	/* Where the answer cannot be given, nothing is done. */
	if (copy_from_user(&call, arg, sizeof(call)) ||
	    copy_to_user(arg, &call, sizeof(call)))
		return -EFAULT;
	err = device_of(&call, &dev);
	if (!err)
		err = cbt_attach(&call, dev, why);
	if (err)
		return err;
	if (copy_to_user(arg, &call, sizeof(call))) {
		cbt_detach(call.tracker, why);
		return -EFAULT;
	}
	return 0;
}

static long do_switch(void __user *arg, struct cbt_why *why)
{
	struct cbt_switch call;
	u32 *ids;
	int err;

	/* Where the answer cannot be given, nothing is done. */
	if (copy_from_user(&call, arg, sizeof(call)) ||
	    copy_to_user(arg, &call, sizeof(call)))
		return -EFAULT;
	if (!call.count || call.count > CBT_TRACKERS_MAX || call.reserved ||
	    call.flags & ~CBT_SWITCH_RUNNING)
		return -EINVAL;
	ids = memdup_user(u64_to_user_ptr(call.trackers), call.count * sizeof(*ids));
	if (IS_ERR(ids))
		return PTR_ERR(ids);
	err = cbt_switch(&call, ids, why);
	kfree(ids);
	if (err)
		return err;
	return copy_to_user(arg, &call, sizeof(call)) ? -EFAULT : 0;
}

static bool bits_call_valid(const struct cbt_bits *call)
{
	return call->which <= CBT_BITS_FROZEN && call->kind <= CBT_BITS_DISCARDED &&
	       !call->reserved[0] && !call->reserved[1] && !call->reserved2;
}

static long do_bits(void __user *arg, struct cbt_why *why)
{
	struct cbt_bits call;
	void *buffer;
	int err;

	if (copy_from_user(&call, arg, sizeof(call)))
		return -EFAULT;
	if (!bits_call_valid(&call))
		return -EINVAL;
	call.length = min_t(u64, call.length, CBT_BITS_AT_ONCE);
	buffer = kvmalloc(max_t(u64, call.length, 1), GFP_KERNEL);
	if (!buffer)
		return -ENOMEM;
	err = cbt_bits_copy(&call, buffer);
	if (!err && copy_to_user(u64_to_user_ptr(call.buffer), buffer, call.length))
		err = -EFAULT;
	kvfree(buffer);
	if (err)
		return err;
	return copy_to_user(arg, &call, sizeof(call)) ? -EFAULT : 0;
}

static long do_load(void __user *arg, struct cbt_why *why)
{
	struct cbt_bits call;
	void *buffer;
	int err;

	if (copy_from_user(&call, arg, sizeof(call)))
		return -EFAULT;
	if (!bits_call_valid(&call) || call.which != CBT_BITS_ACTIVE ||
	    !call.length || call.length > CBT_BITS_AT_ONCE)
		return -EINVAL;
	buffer = vmemdup_user(u64_to_user_ptr(call.buffer), call.length);
	if (IS_ERR(buffer))
		return PTR_ERR(buffer);
	err = cbt_bits_load(&call, buffer, why);
	kvfree(buffer);
	return err;
}

static long do_info(void __user *arg, struct cbt_why *why)
{
	struct cbt_info info;
	int err = cbt_tracker_info(&info);

	if (err)
		return err;
	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
}

static long do_status(void __user *arg, struct cbt_why *why)
{
	struct cbt_status status;
	int err;

	if (copy_from_user(&status, arg, sizeof(status)))
		return -EFAULT;
	err = cbt_tracker_status(&status);
	if (err)
		return err;
	return copy_to_user(arg, &status, sizeof(status)) ? -EFAULT : 0;
}

static long do_ring(void __user *arg, struct cbt_why *why)
{
	u64 events;

	if (copy_from_user(&events, arg, sizeof(events)))
		return -EFAULT;
	if (!events)
		return cbt_refuse(why, -EINVAL, "ring: no room for events");
	return cbt_reset_rings(events, why);
}

static long with_id(void __user *arg, struct cbt_why *why,
		    int (*call)(u32 id, struct cbt_why *why))
{
	u32 id;

	if (copy_from_user(&id, arg, sizeof(id)))
		return -EFAULT;
	return call(id, why);
}

static long dispatch(unsigned int command, void __user *arg, struct cbt_why *why)
{
	switch (command) {
	case CBT_IOC_ATTACH:
		return do_attach(arg, why);
	case CBT_IOC_DETACH:
		return with_id(arg, why, cbt_detach);
	case CBT_IOC_SEAL:
		return with_id(arg, why, cbt_seal);
	case CBT_IOC_SWITCH:
		return do_switch(arg, why);
	case CBT_IOC_CLEAR:
		return with_id(arg, why, cbt_bits_clear);
	case CBT_IOC_BITS:
		return do_bits(arg, why);
	case CBT_IOC_LOAD:
		return do_load(arg, why);
	case CBT_IOC_INFO:
		return do_info(arg, why);
	case CBT_IOC_RING:
		return do_ring(arg, why);
	case CBT_IOC_STATUS:
		return do_status(arg, why);
	default:
		return -ENOTTY;
	}
}

/* ---- the open file ---- */

/**
 * struct cbt_file - one opening of /dev/cbt
 * @lock: of @why
 * @why: the sentence of its last call, if that was refused
 */
struct cbt_file {
	spinlock_t lock; /* of why */
	struct cbt_why why;
};

static long tell_why(struct cbt_file *opened, void __user *arg)
{
	struct cbt_why why;

	spin_lock(&opened->lock);
	why = opened->why;
	spin_unlock(&opened->lock);
	return copy_to_user(arg, why.text, sizeof(why.text)) ? -EFAULT : 0;
}

/*
 * A call may be made while a volume is suspended, and only its caller will
 * resume it: no allocation may wait for a page to be written there.
 */
static long cbt_ioctl(struct file *file, unsigned int command, unsigned long value)
{
	struct cbt_file *opened = file->private_data;
	void __user *arg = (void __user *)value;
	struct cbt_why why = { };
	unsigned int noio;
	long result;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (command == CBT_IOC_WHY)
		return tell_why(opened, arg);
	noio = memalloc_noio_save();
	result = dispatch(command, arg, &why);
	memalloc_noio_restore(noio);
	if (!result)
		why.text[0] = 0;
	spin_lock(&opened->lock);
	opened->why = why;
	spin_unlock(&opened->lock);
	return result;
}

static int cbt_open(struct inode *inode, struct file *file)
{
	struct cbt_file *opened;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	opened = kzalloc(sizeof(*opened), GFP_KERNEL);
	if (!opened)
		return -ENOMEM;
	spin_lock_init(&opened->lock);
	file->private_data = opened;
	return 0;
}

static int cbt_release(struct inode *inode, struct file *file)
{
	cbt_ring_leave(file);
	kfree(file->private_data);
	return 0;
}

static const struct file_operations cbt_fops = {
	.owner = THIS_MODULE,
	.open = cbt_open,
	.release = cbt_release,
	.mmap = cbt_ring_mmap,
	.poll = cbt_ring_poll,
	.unlocked_ioctl = cbt_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice cbt_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "cbt",
	.mode = 0600,
	.fops = &cbt_fops,
};

static int __init cbt_init(void)
{
	struct cbt_why why = { };
	int err;

	cbt_event_init();
	err = cbt_reset_rings(ring_events, &why);
	if (err)
		return err;
	err = cbt_mapper_init();
	if (err)
		goto out_rings;
	cbt_table_watch();
	err = misc_register(&cbt_device);
	if (!err)
		return 0;
	cbt_table_unwatch();
	cbt_mapper_exit();
out_rings:
	cbt_ring_free();
	return err;
}

static void __exit cbt_exit(void)
{
	misc_deregister(&cbt_device);
	cbt_table_unwatch();
	cbt_mapper_exit();
	cbt_hook_free_retired();
	cbt_ring_free();
}

module_init(cbt_init);
module_exit(cbt_exit);

MODULE_VERSION("0.2.0");
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Records which blocks of a volume were written, when and by whom");
