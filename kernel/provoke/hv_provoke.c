// SPDX-License-Identifier: GPL-2.0-only
/*
 * Commits, on demand, each fault that the kernel has a detector for: the proof
 * that a test harness notices them. Write the name of a fault to
 * hv_provoke/fault in debugfs; reading it lists the names. Never load this
 * into a kernel that is still needed.
 */

#include <linux/bits.h>
#include <linux/completion.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/irq_work.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/panic.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/seq_file.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include <asm/desc.h>

#define OBJECT_SIZE 64
/* With PROVE_RCU the kernel waits five seconds more than it is told. */
#define STALL_MS 10000
#define TOO_MUCH BIT(40)

/* Both checkpatch and the kernel's rules forbid it; here it is the point. */
#define give_up BUG

static DEFINE_MUTEX(first_lock);
static DEFINE_MUTEX(second_lock);
static DEFINE_SPINLOCK(context_lock);
static DEFINE_SPINLOCK(atomic_lock);
static struct dentry *directory;
static void *left_behind;

/* Always inlined, so that a decoded stack shows both frames at one address. */
static __always_inline int peek(const int *where)
{
	return READ_ONCE(*where);
}

/*
 * KASAN sees the first try. KFENCE watches one allocation in a while; reading
 * the others does no harm.
 */
static void use_after_free(void)
{
	int tries;

	for (tries = 0; tries < 500; tries++) {
		int *object = kmalloc(OBJECT_SIZE, GFP_KERNEL);

		kfree(object);
		OPTIMIZER_HIDE_VAR(object);
		if (object)
			peek(object);
		msleep(20);
	}
}

static void double_free(void)
{
	void *object = kmalloc(OBJECT_SIZE, GFP_KERNEL);
	void *again = object;

	OPTIMIZER_HIDE_VAR(again);
	kfree(object);
	kfree(again);
}

static void out_of_bounds(void)
{
	char *object = kmalloc(OBJECT_SIZE, GFP_KERNEL);
	size_t size = OBJECT_SIZE;

	OPTIMIZER_HIDE_VAR(size);
	if (object)
		WRITE_ONCE(object[size], 1);
	kfree(object);
}

static void shift_out_of_bounds(void)
{
	unsigned int bits = 64;
	int one = 1;

	OPTIMIZER_HIDE_VAR(bits);
	OPTIMIZER_HIDE_VAR(one);
	pr_debug("%d\n", one << bits);
	WRITE_ONCE(one, one << bits);
}

/* What lies behind the table is there to be written, so KASAN has no say. */
static void index_out_of_bounds(void)
{
	static struct {
		int table[4];
		int behind[4];
	} data;
	unsigned int index = ARRAY_SIZE(data.table);

	OPTIMIZER_HIDE_VAR(index);
	data.table[index] = 1;
}

static void lock_inversion(void)
{
	mutex_lock(&first_lock);
	mutex_lock(&second_lock);
	mutex_unlock(&second_lock);
	mutex_unlock(&first_lock);

	mutex_lock(&second_lock);
	mutex_lock(&first_lock);
	mutex_unlock(&first_lock);
	mutex_unlock(&second_lock);
}

/* Two locks of one class: what lockdep reports would hang with one. */
static void recursive_lock(void)
{
	static struct mutex locks[2];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(locks); i++)
		mutex_init(&locks[i]);
	mutex_lock(&locks[0]);
	mutex_lock(&locks[1]);
	mutex_unlock(&locks[1]);
	mutex_unlock(&locks[0]);
}

static void take_context_lock(struct irq_work *work)
{
	spin_lock(&context_lock);
	spin_unlock(&context_lock);
}

static void irq_unsafe_lock(void)
{
	struct irq_work work;

	spin_lock(&context_lock);
	spin_unlock(&context_lock);
	init_irq_work(&work, take_context_lock);
	irq_work_queue(&work);
	irq_work_sync(&work);
}

static void unprotected_rcu(void)
{
	static int __rcu *pointer;

	if (rcu_dereference(pointer))
		pr_debug("never\n");
}

static void freed_lock(void)
{
	struct mutex *lock = kmalloc(sizeof(*lock), GFP_KERNEL);

	if (!lock)
		return;
	mutex_init(lock);
	mutex_lock(lock);
	kfree(lock);
}

static void kept_lock(void)
{
	mutex_lock(&first_lock);
}

static void unbalanced_unlock(void)
{
	mutex_unlock(&first_lock);
}

static void atomic_lock_sleep(void)
{
	spin_lock(&atomic_lock);
	mutex_lock(&first_lock);
	mutex_unlock(&first_lock);
	spin_unlock(&atomic_lock);
}

static void atomic_schedule(void)
{
	spin_lock(&atomic_lock);
	msleep(20);
	spin_unlock(&atomic_lock);
}

static void warn_on(void)
{
	WARN_ON(1);
}

static void warn_message(void)
{
	WARN(1, "a provoked warning of %d\n", OBJECT_SIZE);
}

static void bug(void)
{
	give_up();
}

static void null_dereference(void)
{
	const int *nothing = NULL;

	OPTIMIZER_HIDE_VAR(nothing);
	peek(nothing);
}

static void wild_pointer(void)
{
	const int *wild = (const int *)0xdead000000000100;

	OPTIMIZER_HIDE_VAR(wild);
	peek(wild);
}

static void list_corruption(void)
{
	struct list_head list, old, new;

	INIT_LIST_HEAD(&list);
	list_add(&old, &list);
	old.prev = &old;
	list_add(&new, &list);
}

static void refcount_underflow(void)
{
	refcount_t count = REFCOUNT_INIT(0);

	refcount_dec(&count);
}

static void timer_expires(struct timer_list *timer)
{
}

static void freed_timer(void)
{
	struct timer_list *timer = kmalloc(sizeof(*timer), GFP_KERNEL);

	if (!timer)
		return;
	timer_setup(timer, timer_expires, 0);
	mod_timer(timer, jiffies + 3600 * HZ);
	kfree(timer);
}

static void bad_page(void)
{
	struct page *page = alloc_page(GFP_KERNEL);

	if (!page)
		return;
	page->mapping = (void *)page;
	__free_page(page);
}

static void construct(void *object)
{
}

/* Only a cache of its own, which a constructor makes it, is checked. */
static void lost_cache_object(void)
{
	struct kmem_cache *cache = kmem_cache_create("hv_provoke", OBJECT_SIZE, 0, 0, construct);

	if (!cache)
		return;
	if (kmem_cache_alloc(cache, GFP_KERNEL))
		kmem_cache_destroy(cache);
}

static void page_allocation(void)
{
	vfree(vmalloc(TOO_MUCH));
}

static void grace_period_over(struct rcu_head *head)
{
}

static void rcu_stall(void)
{
	static struct rcu_head waiting;
	unsigned long end;

	preempt_disable();
	call_rcu(&waiting, grace_period_over);
	end = jiffies + msecs_to_jiffies(STALL_MS);
	while (time_before(jiffies, end))
		cpu_relax();
	preempt_enable();
	rcu_barrier();
}

static void soft_lockup(void)
{
	preempt_disable();
	for (;;)
		cpu_relax();
}

static void hung_task(void)
{
	DECLARE_COMPLETION_ONSTACK(never);

	wait_for_completion(&never);
}

/* Several, for a stale register or stack slot may still point to one. */
static void leak(void)
{
	int i;

	for (i = 0; i < 8; i++) {
		void *object = kmalloc(OBJECT_SIZE, GFP_KERNEL);

		OPTIMIZER_HIDE_VAR(object);
	}
}

/* Still pointed to, so that it is no leak until the module goes. */
static void unload_leftover(void)
{
	left_behind = kmalloc(OBJECT_SIZE, GFP_KERNEL);
}

static void provoke_panic(void)
{
	panic("provoked");
}

static void triple_fault(void)
{
	const struct desc_ptr nothing = {};

	local_irq_disable();
	native_load_idt(&nothing);
	asm volatile("int3");
}

static const struct {
	const char *name;
	void (*commit)(void);
} faults[] = {
	{ "use-after-free", use_after_free },
	{ "double-free", double_free },
	{ "out-of-bounds", out_of_bounds },
	{ "shift-out-of-bounds", shift_out_of_bounds },
	{ "index-out-of-bounds", index_out_of_bounds },
	{ "lock-inversion", lock_inversion },
	{ "recursive-lock", recursive_lock },
	{ "irq-unsafe-lock", irq_unsafe_lock },
	{ "unprotected-rcu", unprotected_rcu },
	{ "freed-lock", freed_lock },
	{ "kept-lock", kept_lock },
	{ "unbalanced-unlock", unbalanced_unlock },
	{ "atomic-lock-sleep", atomic_lock_sleep },
	{ "atomic-schedule", atomic_schedule },
	{ "warn-on", warn_on },
	{ "warn-message", warn_message },
	{ "bug", bug },
	{ "null-dereference", null_dereference },
	{ "wild-pointer", wild_pointer },
	{ "list-corruption", list_corruption },
	{ "refcount-underflow", refcount_underflow },
	{ "freed-timer", freed_timer },
	{ "bad-page", bad_page },
	{ "lost-cache-object", lost_cache_object },
	{ "page-allocation", page_allocation },
	{ "rcu-stall", rcu_stall },
	{ "soft-lockup", soft_lockup },
	{ "hung-task", hung_task },
	{ "leak", leak },
	{ "unload-leftover", unload_leftover },
	{ "panic", provoke_panic },
	{ "triple-fault", triple_fault },
};

static int fault_show(struct seq_file *file, void *unused)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(faults); i++)
		seq_printf(file, "%s\n", faults[i].name);
	return 0;
}

static int fault_open(struct inode *inode, struct file *file)
{
	return single_open(file, fault_show, NULL);
}

static ssize_t fault_write(struct file *file, const char __user *from, size_t count, loff_t *offset)
{
	char name[32] = "";
	size_t i;

	if (count >= sizeof(name))
		return -EINVAL;
	if (copy_from_user(name, from, count))
		return -EFAULT;
	for (i = 0; i < ARRAY_SIZE(faults); i++) {
		if (sysfs_streq(name, faults[i].name)) {
			faults[i].commit();
			return count;
		}
	}
	return -EINVAL;
}

static const struct file_operations fault_operations = {
	.owner = THIS_MODULE,
	.open = fault_open,
	.read = seq_read,
	.write = fault_write,
	.llseek = seq_lseek,
	.release = single_release,
};

static int __init provoke_init(void)
{
	directory = debugfs_create_dir("hv_provoke", NULL);
	debugfs_create_file("fault", 0600, directory, NULL, &fault_operations);
	return 0;
}
module_init(provoke_init);

static void __exit provoke_exit(void)
{
	debugfs_remove(directory);
}
module_exit(provoke_exit);

MODULE_DESCRIPTION("Commits the faults that the kernel's detectors report");
MODULE_LICENSE("GPL");
