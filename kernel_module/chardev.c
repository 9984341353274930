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
#include <linux/uaccess.h>

#include "module.h"

static unsigned long ring_events = 1 << 17;
module_param(ring_events, ulong, 0444);
MODULE_PARM_DESC(ring_events, "room for events until they are read (80 bytes each)");

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

static long do_attach(void __user *arg)
{
	struct cbt_attach call;
	dev_t dev;
	int err;

	if (copy_from_user(&call, arg, sizeof(call)))
		return -EFAULT;
	err = device_of(&call, &dev);
	if (!err)
		err = cbt_tracker_attach(&call, dev);
	if (err)
		return err;
	if (copy_to_user(arg, &call, sizeof(call))) {
		cbt_tracker_detach(call.tracker);
		return -EFAULT;
	}
	return 0;
}

static long do_switch(void __user *arg)
{
	struct cbt_switch call;
	u32 *ids;
	int err;

	if (copy_from_user(&call, arg, sizeof(call)))
		return -EFAULT;
	if (!call.count || call.count > CBT_TRACKERS_MAX ||
	    call.flags & ~CBT_SWITCH_RUNNING)
		return -EINVAL;
	ids = memdup_user(u64_to_user_ptr(call.trackers), call.count * sizeof(*ids));
	if (IS_ERR(ids))
		return PTR_ERR(ids);
	err = cbt_tracker_switch(&call, ids);
	kfree(ids);
	if (err)
		return err;
	return copy_to_user(arg, &call, sizeof(call)) ? -EFAULT : 0;
}

static long do_bits(void __user *arg)
{
	struct cbt_bits call;
	int err;

	if (copy_from_user(&call, arg, sizeof(call)))
		return -EFAULT;
	err = cbt_tracker_bits(&call);
	if (err)
		return err;
	return copy_to_user(arg, &call, sizeof(call)) ? -EFAULT : 0;
}

static long do_info(void __user *arg)
{
	struct cbt_info info;
	int err = cbt_tracker_info(&info);

	if (err)
		return err;
	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
}

static long do_status(void __user *arg)
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

static long do_ring(void __user *arg)
{
	u64 events;

	if (copy_from_user(&events, arg, sizeof(events)))
		return -EFAULT;
	return cbt_tracker_ring(events);
}

static long with_id(void __user *arg, int (*call)(u32 id))
{
	u32 id;

	if (copy_from_user(&id, arg, sizeof(id)))
		return -EFAULT;
	return call(id);
}

static long dispatch(unsigned int command, void __user *arg)
{
	switch (command) {
	case CBT_IOC_ATTACH:
		return do_attach(arg);
	case CBT_IOC_DETACH:
		return with_id(arg, cbt_tracker_detach);
	case CBT_IOC_SWITCH:
		return do_switch(arg);
	case CBT_IOC_CLEAR:
		return with_id(arg, cbt_tracker_clear);
	case CBT_IOC_BITS:
		return do_bits(arg);
	case CBT_IOC_INFO:
		return do_info(arg);
	case CBT_IOC_RING:
		return do_ring(arg);
	case CBT_IOC_STATUS:
		return do_status(arg);
	default:
		return -ENOTTY;
	}
}

/*
 * A call may be made while a volume is suspended, and only its caller will
 * resume it: no allocation may wait for a page to be written there.
 */
static long cbt_ioctl(struct file *file, unsigned int command, unsigned long value)
{
	unsigned int noio;
	long result;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	noio = memalloc_noio_save();
	result = dispatch(command, (void __user *)value);
	memalloc_noio_restore(noio);
	return result;
}

static ssize_t cbt_read(struct file *file, char __user *buffer, size_t length,
			loff_t *position)
{
	return cbt_ring_read(file, buffer, length);
}

static const struct file_operations cbt_fops = {
	.owner = THIS_MODULE,
	.read = cbt_read,
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
	int err = cbt_ring_set(ring_events);

	if (err) {
		pr_err("ring_events=%lu: not from 16 to 2^24, or no memory for it\n",
		       ring_events);
		return err;
	}
	err = misc_register(&cbt_device);
	if (err)
		cbt_ring_free();
	return err;
}

static void __exit cbt_exit(void)
{
	misc_deregister(&cbt_device);
	cbt_hook_free_retired();
	cbt_ring_free();
}

module_init(cbt_init);
module_exit(cbt_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Records which blocks of a volume were written, when and by whom");
