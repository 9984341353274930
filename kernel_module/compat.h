/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What differs between the kernels that this module is built for.  Newest
 * first; each branch names the change that made it necessary.  Debian's 6.1
 * and 6.12 are run in the tests, the branches between them are only written.
 */
#ifndef CBT_COMPAT_H
#define CBT_COMPAT_H

#include <linux/blkdev.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/version.h>

/* 6.12 moved it: 5f60d5f6bbc1 "move asm/unaligned.h to linux/unaligned.h". */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#include <linux/unaligned.h>
#else
#include <asm/unaligned.h>
#endif

/*
 * An open block device.  6.9 made it a struct file (f3a608827d1f "bdev: open
 * block device as files"), 6.7 a struct bdev_handle (e719b4d15674 "block:
 * Provide bdev_open_* functions"); before, the block_device itself was held.
 */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 9, 0)

/**
 * struct cbt_bdev - an open block device
 * @file: what keeps it open
 * @bdev: itself
 */
struct cbt_bdev {
	struct file *file;
	struct block_device *bdev;
};

static inline int cbt_bdev_open(struct cbt_bdev *open, dev_t dev)
{
	open->file = bdev_file_open_by_dev(dev, BLK_OPEN_READ, NULL, NULL);
	if (IS_ERR(open->file))
		return PTR_ERR(open->file);
	open->bdev = file_bdev(open->file);
	return 0;
}

static inline void cbt_bdev_close(struct cbt_bdev *open)
{
	fput(open->file);
}

#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 7, 0)

/**
 * struct cbt_bdev - an open block device
 * @handle: what keeps it open
 * @bdev: itself
 */
struct cbt_bdev {
	struct bdev_handle *handle;
	struct block_device *bdev;
};

static inline int cbt_bdev_open(struct cbt_bdev *open, dev_t dev)
{
	open->handle = bdev_open_by_dev(dev, BLK_OPEN_READ, NULL, NULL);
	if (IS_ERR(open->handle))
		return PTR_ERR(open->handle);
	open->bdev = open->handle->bdev;
	return 0;
}

static inline void cbt_bdev_close(struct cbt_bdev *open)
{
	bdev_release(open->handle);
}

#else

/**
 * struct cbt_bdev - an open block device
 * @bdev: itself
 */
struct cbt_bdev {
	struct block_device *bdev;
};

static inline int cbt_bdev_open(struct cbt_bdev *open, dev_t dev)
{
	/* 6.5: 05bdb9965305 "block: replace fmode_t with a block-specific type" */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
	open->bdev = blkdev_get_by_dev(dev, BLK_OPEN_READ, NULL, NULL);
#else
	open->bdev = blkdev_get_by_dev(dev, FMODE_READ, NULL);
#endif
	return PTR_ERR_OR_ZERO(open->bdev);
}

static inline void cbt_bdev_close(struct cbt_bdev *open)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
	blkdev_put(open->bdev, NULL);
#else
	blkdev_put(open->bdev, FMODE_READ);
#endif
}

#endif

/*
 * Before 6.3 a driver could take single pages past submit_bio (3222d8c2a7f8
 * "block: remove ->rw_page"): swap and mpage fall back to bios without it.
 */
static inline void cbt_drop_bypass(struct block_device_operations *ops)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
	ops->rw_page = NULL;
#endif
}

/* From 6.3 on flags change under a lock (bc292ab00f6c "mm: introduce vma->vm_flags wrapper"). */
static inline void cbt_area_never_writable(struct vm_area_struct *area)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_clear(area, VM_MAYWRITE);
#else
	area->vm_flags &= ~VM_MAYWRITE;
#endif
}

/*
 * Exported by dm-mod for its own targets, and declared in a header of theirs
 * (drivers/md/dm.h) that is not among the installed ones.
 */
struct mapped_device;
void dm_internal_suspend_noflush(struct mapped_device *md);
void dm_internal_resume(struct mapped_device *md);

#endif /* CBT_COMPAT_H */
