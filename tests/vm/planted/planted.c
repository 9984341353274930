// SPDX-License-Identifier: GPL-2.0
/*
 * planted: one fault at a time, for the detectors of the debug kernel to find.
 *
 * insmod planted.ko fault=NAME runs one of the functions below, named like the
 * fault, and stays inserted; rmmod takes it out.  test_detectors.py has the
 * names in an order that matters: after some reports lockdep is off.
 */
#include <linux/delay.h>
#include <linux/interrupt.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>

static char *fault = "none";
module_param(fault, charp, 0);

/* What the compiler may not foresee. */
static volatile int forty = 40, five = 5;
static volatile char sink;

static void none(void)
{
}

/* ---- memory: KASAN ----------------------------------------------------- */

static void use_after_free(void)
{
	char *memory = kzalloc(64, GFP_KERNEL);

	kfree(memory);
	sink = *(volatile char *)(memory + 8);
}

static void slab_out_of_bounds(void)
{
	char *memory = kzalloc(64, GFP_KERNEL);

	sink = *(volatile char *)(memory + 64);
	kfree(memory);
}

static void vmalloc_out_of_bounds(void)
{
	char *memory = vzalloc(PAGE_SIZE + 100);

	/* The rest of the last page is mapped: only the shadow tells. */
	sink = *(volatile char *)(memory + PAGE_SIZE + 104);
	vfree(memory);
}

static void stack_out_of_bounds(void)
{
	volatile char array[8] = { 0 };
	volatile char *place = array;

	sink = place[five + 4];
}

/* ---- locks: lockdep ----------------------------------------------------- */

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static DEFINE_SPINLOCK(spinning);

/* Never taken both ways at once: nothing hangs, and lockdep must say it could. */
static void lock_inversion(void)
{
	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);
	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
}

static void from_softirq(struct tasklet_struct *unused)
{
	spin_lock(&spinning);
	spin_unlock(&spinning);
}

/* A lock of softirq context, taken with softirqs enabled. */
static void lock_in_softirq(void)
{
	static struct tasklet_struct tasklet;

	tasklet_setup(&tasklet, from_softirq);
	tasklet_schedule(&tasklet);
	msleep(100);
	tasklet_kill(&tasklet);
	spin_lock(&spinning);
	spin_unlock(&spinning);
}

/* ---- contexts: RCU, atomic sections, processors ---------------------------- */

static void suspicious_rcu(void)
{
	static int value;
	static int __rcu *pointer;

	RCU_INIT_POINTER(pointer, (int __force __rcu *)&value);
	sink = *rcu_dereference(pointer);	/* outside of rcu_read_lock() */
}

static void sleep_in_atomic(void)
{
	spin_lock(&spinning);
	might_sleep();
	spin_unlock(&spinning);
}

/* As an allocation does it, which sleeps on rare occasions only. */
static void allocate_in_atomic(void)
{
	spin_lock(&spinning);
	kfree(kmalloc(64, GFP_KERNEL));
	spin_unlock(&spinning);
}

static void processor_id_preemptible(void)
{
	sink = smp_processor_id();
}

/* ---- memory: kmemleak ------------------------------------------------------- */

/* Several of each, so that a stale copy of a pointer somewhere hides one at most. */
static noinline void leak_slab(void)
{
	memset(kmalloc(200, GFP_KERNEL), 0x5a, 200);
}

static noinline void leak_vmalloc(void)
{
	memset(vmalloc(3 * PAGE_SIZE), 0x5a, PAGE_SIZE);
}

static noinline void leak_percpu(void)
{
	sink = (unsigned long)__alloc_percpu(48, 8);
}

static void leaks(void)
{
	int i;

	for (i = 0; i < 8; i++) {
		leak_slab();
		leak_vmalloc();
	}
	for (i = 0; i < 32; i++)	/* these are only counted */
		leak_percpu();
}

/* ---- arithmetic: UBSAN -------------------------------------------------------- */

static void shift(void)
{
	sink = 1 << forty;
}

static void array_bounds(void)
{
	/* Inside of the object, so that nobody else reports it. */
	static struct {
		int four[4];
		int rest[4];
	} both;

	sink = both.four[five];
}

static void bad_bool(void)
{
	static unsigned char byte = 7;

	sink = *(volatile bool *)&byte ? 1 : 2;
}

/* ---- objects and lists ----------------------------------------------------------- */

static void list_corruption(void)
{
	static LIST_HEAD(head);
	static struct list_head one, other;

	list_add(&one, &head);
	one.prev = &other;
	list_add_tail(&other, &one);
}

static void list_deleted_twice(void)
{
	static LIST_HEAD(head);
	static struct list_head one;

	list_add(&one, &head);
	list_del(&one);
	list_del(&one);
}

static void nothing(struct timer_list *unused)
{
}

static void freed_timer(void)
{
	struct {
		struct timer_list timer;
	} *holder = kzalloc(sizeof(*holder), GFP_KERNEL);

	timer_setup(&holder->timer, nothing, 0);
	mod_timer(&holder->timer, jiffies + 1000 * HZ);
	kfree(holder);		/* debugobjects stops it first */
}

static void warning(void)
{
	WARN(1, "planted\n");
}

static const struct {
	const char *name;
	void (*run)(void);
} faults[] = {
	{ "none", none },
	{ "use_after_free", use_after_free },
	{ "slab_out_of_bounds", slab_out_of_bounds },
	{ "vmalloc_out_of_bounds", vmalloc_out_of_bounds },
	{ "stack_out_of_bounds", stack_out_of_bounds },
	{ "lock_inversion", lock_inversion },
	{ "lock_in_softirq", lock_in_softirq },
	{ "suspicious_rcu", suspicious_rcu },
	{ "sleep_in_atomic", sleep_in_atomic },
	{ "allocate_in_atomic", allocate_in_atomic },
	{ "processor_id_preemptible", processor_id_preemptible },
	{ "leaks", leaks },
	{ "shift", shift },
	{ "array_bounds", array_bounds },
	{ "bad_bool", bad_bool },
	{ "list_corruption", list_corruption },
	{ "list_deleted_twice", list_deleted_twice },
	{ "freed_timer", freed_timer },
	{ "warning", warning },
};

static int __init planted_init(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(faults); i++) {
		if (!strcmp(fault, faults[i].name)) {
			faults[i].run();
			return 0;
		}
	}
	return -EINVAL;
}

static void __exit planted_exit(void)
{
}

module_init(planted_init);
module_exit(planted_exit);
MODULE_DESCRIPTION("Faults for the detectors of a debug kernel to find");
MODULE_LICENSE("GPL");
