// SPDX-License-Identifier: GPL-2.0-only
/*
 * Azure Blob requests over VMBus: the guest's side (VSC)
 *
 * A program describes a request with the buffers that belong to it, the driver
 * pins them and sends their page numbers to the host (VSP), which carries the
 * request out, reads and writes the buffers in place, and completes the packet.
 *
 * Life of a device: one object per VMBus device, held by the binding and by
 * each open file. When the device goes away the object is dead for good and
 * lives on until the last file is closed; nothing waits for that. A device that
 * comes back is a new object.
 *
 * Life of a request: it has one owner at a time. That is the caller until it is
 * killed while the host holds the request; the device is the owner from then
 * on, since the pages must stay pinned for as long as the host may use them.
 * The hand-over is made under az_blob_device.lock.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cred.h>
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/hyperv.h>
#include <linux/idr.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/sizes.h>
#include <linux/skbuff.h>	/* mm_account_pinned_pages() */
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include <asm/mshyperv.h>

#include "hv_azure_blob.h"
#include "hv_azure_blob_compat.h"

#define AZ_BLOB_RING_SIZE	SZ_128K		/* each way, header included */
#define AZ_BLOB_QUEUE_DEPTH	1024		/* requests held by the host */

/* How long requests may go on when the device is unbound or suspended. */
#define AZ_BLOB_DRAIN_TIMEOUT	(2 * HZ)

/* A sleep that a fatal signal ends and that does not keep the system awake. */
#define AZ_BLOB_SLEEP		(TASK_KILLABLE | TASK_FREEZABLE)

/* The wire: what is sent to the host. */
#define AZ_BLOB_WIRE_V1			0
#define AZ_BLOB_WIRE_USER_REQUEST	0x100

struct az_blob_wire_request {
	__le32 version;
	__le32 timeout_ms;
	__le32 data_offset;
	__le32 data_len;
	__le32 data_valid;
	__le32 operation;
	__le32 request_offset;
	__le32 request_len;
	__le32 response_offset;
	__le32 response_len;
	u8 guid[16];
} __packed;
static_assert(sizeof(struct az_blob_wire_request) == 56);

/* The wire: the host's completion. @len says nothing that is not known. */
struct az_blob_wire_completion {
	__le32 len;
	__le32 status;
	__le32 response_len;
} __packed;
static_assert(sizeof(struct az_blob_wire_completion) == 12);

static_assert(sizeof(struct az_blob_request_sync) == 72);
static_assert(PAGE_SIZE == HV_HYP_PAGE_SIZE);

enum az_blob_device_state {
	AZ_BLOB_OPEN,
	AZ_BLOB_SUSPENDED,	/* the channel is closed; requests queue up */
	AZ_BLOB_DEAD,		/* the device is gone and @hdev with it */
};

/**
 * struct az_blob_device - one VMBus device and its node
 * @kref: held by the binding and by each open file, because files outlive the
 *	binding.
 * @hdev: the VMBus device; not to be touched when @state is %AZ_BLOB_DEAD.
 * @misc: the node.
 * @id: the number in the node's name.
 * @name: the node's name.
 * @debugfs: the device's directory.
 * @reap: frees @orphans in process context.
 * @drained: woken when @pending runs empty.
 * @lock: protects what follows. The channel callback takes it too. Sending is
 *	done under it, so once @state is changed nobody can be sending, and the
 *	channel may be closed.
 * @state: see &enum az_blob_device_state.
 * @queue: requests to be sent, first come first served: small ones cannot keep
 *	a big one from ever finding room in the ring.
 * @pending: requests that the host holds.
 * @in_flight: the number of them.
 * @room_wanted: the host was asked to tell when there is room in the ring.
 * @orphans: answered requests whose callers were killed.
 */
struct az_blob_device {
	struct kref kref;
	struct hv_device *hdev;
	struct miscdevice misc;
	int id;
	char name[24];
	struct dentry *debugfs;
	struct work_struct reap;
	wait_queue_head_t drained;

	spinlock_t lock;	/* see above */
	enum az_blob_device_state state;
	struct list_head queue;
	struct list_head pending;
	unsigned int in_flight;
	bool room_wanted;
	struct list_head orphans;
};

/* The order is that of the pages on the wire. */
enum az_blob_buffer_kind {
	AZ_BLOB_DATA,
	AZ_BLOB_REQUEST,
	AZ_BLOB_RESPONSE,
	AZ_BLOB_NR_BUFFERS
};

/**
 * struct az_blob_buffer - one of the caller's buffers
 * @addr: its address.
 * @len: its length in bytes.
 * @offset: where it starts, counted from the start of the request's first page.
 * @nr_pages: the number of pages that it touches.
 * @nr_pinned: how many of them are pinned.
 * @pages: its pages, a part of az_blob_request.pages.
 */
struct az_blob_buffer {
	u64 addr;
	u32 len;
	u32 offset;
	unsigned int nr_pages;
	unsigned int nr_pinned;
	struct page **pages;
};

enum az_blob_request_state {
	AZ_BLOB_QUEUED,		/* in az_blob_device.queue */
	AZ_BLOB_SENT,		/* in az_blob_device.pending */
	AZ_BLOB_DONE,		/* in no list, or in az_blob_device.orphans */
};

/**
 * struct az_blob_request - a request on its way
 * @node: in the list that belongs to @state.
 * @wait: where the caller sleeps.
 * @state: changed under az_blob_device.lock.
 * @orphaned: the caller was killed: the device owns the request.
 * @error: 0 or -errno, when done.
 * @response: the host's answer, when done with no error.
 * @started: jiffies when the request was queued.
 * @buffers: the caller's buffers.
 * @wire: what is sent.
 * @mpb: the pages, as VMBus wants them.
 * @mpb_len: the length of @mpb in bytes.
 * @mmp: what was charged for the pages, and to whom.
 * @pages: the pages of all buffers.
 */
struct az_blob_request {
	struct list_head node;
	wait_queue_head_t wait;
	enum az_blob_request_state state;
	bool orphaned;
	int error;
	struct az_blob_response response;
	unsigned long started;

	struct az_blob_buffer buffers[AZ_BLOB_NR_BUFFERS];
	struct az_blob_wire_request wire;
	struct vmbus_packet_mpb_array *mpb;
	u32 mpb_len;
	struct mmpin mmp;
	struct page *pages[];
};

static DEFINE_IDA(az_blob_ida);
static struct dentry *az_blob_debugfs;

/* Requests: pages */

/* A buffer counts as the whole pages that it touches. */
static u64 az_blob_page_count(u64 addr, u32 len)
{
	if (!len)
		return 0;

	return DIV_ROUND_UP(offset_in_page(addr) + (u64)len, PAGE_SIZE);
}

static u64 az_blob_total_pages(const struct az_blob_request_sync *args)
{
	return az_blob_page_count(args->data_buffer, args->data_len) +
	       az_blob_page_count(args->request_buffer, args->request_len) +
	       az_blob_page_count(args->response_buffer, args->response_len);
}

/* The host may read or write the data, it does not say which beforehand. */
static bool az_blob_host_writes(enum az_blob_buffer_kind kind)
{
	return kind != AZ_BLOB_REQUEST;
}

/*
 * The pins last as long as the request, like those of direct I/O, so this is
 * not FOLL_LONGTERM, which would rule out mapped files as buffers.
 */
static int az_blob_pin(struct az_blob_buffer *buf, bool host_writes)
{
	unsigned long first = buf->addr & PAGE_MASK;

	if (!access_ok(u64_to_user_ptr(buf->addr), buf->len))
		return -EFAULT;

	while (buf->nr_pinned < buf->nr_pages) {
		int n = pin_user_pages_fast(first + buf->nr_pinned * PAGE_SIZE,
					    buf->nr_pages - buf->nr_pinned,
					    host_writes ? FOLL_WRITE : 0,
					    buf->pages + buf->nr_pinned);

		if (n == -ENOMEM || n == -EINTR)
			return n;
		if (n <= 0)
			return -EFAULT;
		buf->nr_pinned += n;
	}

	return 0;
}

/* Sleeps, because pages that were written to are locked to be marked dirty. */
static void az_blob_request_free(struct az_blob_request *req)
{
	int kind;

	for (kind = 0; kind < AZ_BLOB_NR_BUFFERS; kind++)
		unpin_user_pages_dirty_lock(req->buffers[kind].pages,
					    req->buffers[kind].nr_pinned,
					    az_blob_host_writes(kind));
	mm_unaccount_pinned_pages(&req->mmp);
	kvfree(req->mpb);
	kvfree(req);
}

static struct vmbus_packet_mpb_array *
az_blob_mpb_create(struct page **pages, unsigned int nr_pages, u32 *len)
{
	struct vmbus_packet_mpb_array *mpb;
	unsigned int i;

	*len = struct_size(mpb, range.pfn_array, nr_pages);
	mpb = kvmalloc(*len, GFP_KERNEL_ACCOUNT);
	if (!mpb)
		return NULL;

	mpb->rangecount = 1;
	mpb->range.offset = 0;
	mpb->range.len = nr_pages * HV_HYP_PAGE_SIZE;
	for (i = 0; i < nr_pages; i++)
		mpb->range.pfn_array[i] = page_to_hvpfn(pages[i]);

	return mpb;
}

static struct az_blob_request *
az_blob_request_create(const struct az_blob_request_sync *args)
{
	unsigned int nr_pages = az_blob_total_pages(args);
	struct az_blob_request *req;
	unsigned int first_page = 0;
	int kind, ret;

	req = kvzalloc(struct_size(req, pages, nr_pages), GFP_KERNEL_ACCOUNT);
	if (!req)
		return ERR_PTR(-ENOMEM);

	init_waitqueue_head(&req->wait);
	req->buffers[AZ_BLOB_DATA].addr = args->data_buffer;
	req->buffers[AZ_BLOB_DATA].len = args->data_len;
	req->buffers[AZ_BLOB_REQUEST].addr = args->request_buffer;
	req->buffers[AZ_BLOB_REQUEST].len = args->request_len;
	req->buffers[AZ_BLOB_RESPONSE].addr = args->response_buffer;
	req->buffers[AZ_BLOB_RESPONSE].len = args->response_len;

	/* Fails if the caller has pinned as much as it may. */
	if (mm_account_pinned_pages(&req->mmp, (size_t)nr_pages * PAGE_SIZE)) {
		ret = -ENOMEM;
		goto err_free;
	}

	for (kind = 0; kind < AZ_BLOB_NR_BUFFERS; kind++) {
		struct az_blob_buffer *buf = &req->buffers[kind];

		buf->nr_pages = az_blob_page_count(buf->addr, buf->len);
		if (!buf->nr_pages)
			continue;
		buf->pages = req->pages + first_page;
		buf->offset = first_page * PAGE_SIZE +
			      offset_in_page(buf->addr);
		first_page += buf->nr_pages;

		ret = az_blob_pin(buf, az_blob_host_writes(kind));
		if (ret)
			goto err_free;
	}

	req->mpb = az_blob_mpb_create(req->pages, nr_pages, &req->mpb_len);
	if (!req->mpb) {
		ret = -ENOMEM;
		goto err_free;
	}

	req->wire = (struct az_blob_wire_request) {
		.version = cpu_to_le32(AZ_BLOB_WIRE_V1),
		.operation = cpu_to_le32(AZ_BLOB_WIRE_USER_REQUEST),
		.timeout_ms = cpu_to_le32(args->timeout),
		.data_offset = cpu_to_le32(req->buffers[AZ_BLOB_DATA].offset),
		.data_len = cpu_to_le32(args->data_len),
		.data_valid = cpu_to_le32(args->data_valid),
		.request_offset =
			cpu_to_le32(req->buffers[AZ_BLOB_REQUEST].offset),
		.request_len = cpu_to_le32(args->request_len),
		.response_offset =
			cpu_to_le32(req->buffers[AZ_BLOB_RESPONSE].offset),
		.response_len = cpu_to_le32(args->response_len),
	};
	memcpy(req->wire.guid, args->guid, sizeof(req->wire.guid));

	return req;

err_free:
	az_blob_request_free(req);
	return ERR_PTR(ret);
}

/* Requests: on the way to the host and back */

/*
 * Ends a request. Its caller cannot free it before the lock is released; an
 * orphan is left to process context.
 */
static void az_blob_finish(struct az_blob_device *dev,
			   struct az_blob_request *req, int error)
{
	lockdep_assert_held(&dev->lock);

	list_del_init(&req->node);
	if (req->state == AZ_BLOB_SENT) {
		dev->in_flight--;
		if (list_empty(&dev->pending))
			wake_up(&dev->drained);
	}

	req->error = error;
	WRITE_ONCE(req->state, AZ_BLOB_DONE);

	if (req->orphaned) {
		list_add_tail(&req->node, &dev->orphans);
		schedule_work(&dev->reap);
	} else {
		wake_up(&req->wait);
	}
}

static void az_blob_finish_all(struct az_blob_device *dev,
			       struct list_head *list, int error)
{
	struct az_blob_request *req, *next;

	lockdep_assert_held(&dev->lock);

	list_for_each_entry_safe(req, next, list, node)
		az_blob_finish(dev, req, error);
}

static void az_blob_reap(struct work_struct *work)
{
	struct az_blob_device *dev =
		container_of(work, struct az_blob_device, reap);
	struct az_blob_request *req, *next;
	LIST_HEAD(orphans);

	spin_lock_bh(&dev->lock);
	list_splice_init(&dev->orphans, &orphans);
	spin_unlock_bh(&dev->lock);

	list_for_each_entry_safe(req, next, &orphans, node)
		az_blob_request_free(req);
}

static int az_blob_send(struct az_blob_device *dev,
			struct az_blob_request *req)
{
	return vmbus_sendpacket_mpb_desc(dev->hdev->channel, req->mpb,
					 req->mpb_len, &req->wire,
					 sizeof(req->wire),
					 (u64)(unsigned long)req);
}

/* As above, but -EAGAIN is a promise of an interrupt once there is room. */
static int az_blob_send_or_ask(struct az_blob_device *dev,
			       struct az_blob_request *req)
{
	u32 packet_len = ALIGN(req->mpb_len + sizeof(req->wire), sizeof(u64));
	int ret;

	ret = az_blob_send(dev, req);
	if (ret != -EAGAIN)
		return ret;

	/*
	 * VMBus adds 8 bytes to each packet and wants more room than that; one
	 * byte more serves hosts that compare with ">=" and those with ">".
	 */
	set_channel_pending_send_size(dev->hdev->channel,
				      packet_len + sizeof(u64) + 1);
	dev->room_wanted = true;

	/* The host may have made room before it could see the wish. */
	virt_mb();
	return az_blob_send(dev, req);
}

/*
 * Sends what is queued, as far as there is room. Called whenever that may have
 * changed, by whoever notices: a caller that is slow or frozen holds up nobody.
 */
static void az_blob_pump(struct az_blob_device *dev)
{
	struct az_blob_request *req, *next;
	int ret;

	lockdep_assert_held(&dev->lock);

	if (dev->state != AZ_BLOB_OPEN)
		return;

	list_for_each_entry_safe(req, next, &dev->queue, node) {
		/* With no more than that VMBus cannot run out of ids. */
		if (dev->in_flight == AZ_BLOB_QUEUE_DEPTH)
			return;

		ret = az_blob_send_or_ask(dev, req);
		if (ret == -EAGAIN)
			return;

		/*
		 * -ENODEV is a rescinded channel, and does not tell whether the
		 * packet went out before that showed. If so, the host may use
		 * the pages until the channel is closed. So it counts as sent,
		 * and .remove, which follows a rescind, ends it after that. No
		 * completion can: VMBus has taken the id back, under the lock
		 * that is held here. Any other error means that nothing went
		 * out.
		 */
		if (ret && ret != -ENODEV) {
			az_blob_finish(dev, req, ret);
			continue;
		}

		list_move_tail(&req->node, &dev->pending);
		dev->in_flight++;
		req->state = AZ_BLOB_SENT;
	}

	if (dev->room_wanted) {
		set_channel_pending_send_size(dev->hdev->channel, 0);
		dev->room_wanted = false;
	}
}

/*
 * Sends @req and waits for the answer. Returns 0 or -errno; @req is freed, or
 * will be.
 */
static int az_blob_execute(struct az_blob_device *dev,
			   struct az_blob_request *req,
			   struct az_blob_response *response)
{
	bool orphaned = false;
	int ret;

	spin_lock_bh(&dev->lock);
	if (dev->state == AZ_BLOB_DEAD) {
		spin_unlock_bh(&dev->lock);
		ret = -ENODEV;
		goto free;
	}
	req->started = jiffies;
	list_add_tail(&req->node, &dev->queue);
	az_blob_pump(dev);
	spin_unlock_bh(&dev->lock);

	wait_event_state(req->wait, READ_ONCE(req->state) == AZ_BLOB_DONE,
			 AZ_BLOB_SLEEP);

	spin_lock_bh(&dev->lock);
	switch (req->state) {
	case AZ_BLOB_QUEUED:
		az_blob_finish(dev, req, -EINTR);
		az_blob_pump(dev);
		break;
	case AZ_BLOB_SENT:
		req->orphaned = true;
		orphaned = true;
		break;
	case AZ_BLOB_DONE:
		break;
	}
	spin_unlock_bh(&dev->lock);

	/* Not to be touched any more: the answer may have come meanwhile. */
	if (orphaned)
		return -EINTR;

	ret = req->error;
	*response = req->response;
free:
	az_blob_request_free(req);
	return ret;
}

/* The channel callback, in softirq context */

static int az_blob_check_completion(struct az_blob_request *req,
				    const struct vmpacket_descriptor *desc)
{
	const struct az_blob_wire_completion *wire = hv_pkt_data(desc);

	if (hv_pkt_datalen(desc) < sizeof(*wire))
		return -EIO;
	if (le32_to_cpu(wire->response_len) >
	    req->buffers[AZ_BLOB_RESPONSE].len)
		return -EIO;

	req->response.status = le32_to_cpu(wire->status);
	req->response.response_len = le32_to_cpu(wire->response_len);
	return 0;
}

static void az_blob_receive(struct az_blob_device *dev,
			    const struct vmpacket_descriptor *desc)
{
	struct device *hdev = &dev->hdev->device;
	struct az_blob_request *req;
	u64 addr;
	int ret;

	if (desc->type != VM_PKT_COMP) {
		dev_warn_ratelimited(hdev, "ignored a packet of type %u\n",
				     desc->type);
		return;
	}

	spin_lock(&dev->lock);
	/* Hands out each id once: a second completion finds nothing. */
	addr = vmbus_request_addr(dev->hdev->channel, desc->trans_id);
	if (addr == VMBUS_RQST_ERROR) {
		spin_unlock(&dev->lock);
		dev_warn_ratelimited(hdev,
				     "ignored the completion of unknown request %llu\n",
				     desc->trans_id);
		return;
	}

	req = (struct az_blob_request *)(unsigned long)addr;
	ret = az_blob_check_completion(req, desc);
	az_blob_finish(dev, req, ret);
	spin_unlock(&dev->lock);

	if (ret)
		dev_warn_ratelimited(hdev, "malformed completion of request %llu\n",
				     desc->trans_id);
}

/* Called for packets, and when the host has made the room we asked for. */
static void az_blob_channel_callback(void *context)
{
	struct az_blob_device *dev = context;
	struct vmpacket_descriptor *desc;

	foreach_vmbus_pkt(desc, dev->hdev->channel)
		az_blob_receive(dev, desc);

	spin_lock(&dev->lock);
	az_blob_pump(dev);
	spin_unlock(&dev->lock);
}

/* The node */

static void az_blob_device_free(struct kref *kref)
{
	kfree(container_of(kref, struct az_blob_device, kref));
}

/* misc_open() calls under misc_mtx, so never after misc_deregister(). */
static int az_blob_open(struct inode *inode, struct file *file)
{
	struct az_blob_device *dev =
		container_of(file->private_data, struct az_blob_device, misc);

	kref_get(&dev->kref);
	file->private_data = dev;
	return nonseekable_open(inode, file);
}

static int az_blob_release(struct inode *inode, struct file *file)
{
	struct az_blob_device *dev = file->private_data;

	kref_put(&dev->kref, az_blob_device_free);
	return 0;
}

/*
 * Compares what the credentials say: a forked child has an object of its own
 * that says the same.
 */
static bool az_blob_same_cred(const struct cred *a, const struct cred *b)
{
	if (a == b)
		return true;

	return a->user_ns == b->user_ns &&
	       uid_eq(a->uid, b->uid) && uid_eq(a->euid, b->euid) &&
	       uid_eq(a->suid, b->suid) &&
	       gid_eq(a->gid, b->gid) && gid_eq(a->egid, b->egid) &&
	       gid_eq(a->sgid, b->sgid) &&
	       !cred_fscmp(a, b) &&
	       cap_isidentical(a->cap_effective, b->cap_effective) &&
	       cap_isidentical(a->cap_permitted, b->cap_permitted) &&
	       cap_isidentical(a->cap_inheritable, b->cap_inheritable) &&
	       cap_isidentical(a->cap_bset, b->cap_bset) &&
	       cap_isidentical(a->cap_ambient, b->cap_ambient);
}

static long az_blob_ioctl(struct file *file, unsigned int cmd,
			  unsigned long arg)
{
	struct az_blob_request_sync __user *uarg = (void __user *)arg;
	struct az_blob_device *dev = file->private_data;
	struct az_blob_response response;
	struct az_blob_request_sync args;
	struct az_blob_request *req;
	int ret;

	if (cmd != AZURE_BLOB_IOCTL)
		return -ENOTTY;

	if (!az_blob_same_cred(current_cred(), file->f_cred))
		return -EACCES;

	/* Checked again, under the lock, when the request is queued. */
	if (READ_ONCE(dev->state) == AZ_BLOB_DEAD)
		return -ENODEV;

	if (copy_from_user(&args, uarg, sizeof(args)))
		return -EFAULT;

	if (args.pad || !args.request_len || !args.response_len ||
	    args.data_valid > args.data_len ||
	    az_blob_total_pages(&args) > AZURE_BLOB_MAX_PAGES)
		return -EINVAL;

	/* Nothing is sent whose answer could not be delivered. */
	if (clear_user(&uarg->response, sizeof(uarg->response)))
		return -EFAULT;

	req = az_blob_request_create(&args);
	if (IS_ERR(req))
		return PTR_ERR(req);

	ret = az_blob_execute(dev, req, &response);
	if (ret)
		return ret;

	if (copy_to_user(&uarg->response, &response, sizeof(response)))
		return -EFAULT;

	return 0;
}

static const struct file_operations az_blob_fops = {
	.owner = THIS_MODULE,
	.open = az_blob_open,
	.release = az_blob_release,
	.unlocked_ioctl = az_blob_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

/* debugfs: hv_azure_blob/<VMBus device>/pending_requests */

static void az_blob_show_list(struct seq_file *m,
			      const struct list_head *list)
{
	static const char * const states[] = {
		[AZ_BLOB_QUEUED] = "queued",
		[AZ_BLOB_SENT] = "sent",
	};
	const struct az_blob_request *req;

	list_for_each_entry(req, list, node)
		seq_printf(m, "%pUl %s %u %u %u %u %u\n", req->wire.guid,
			   req->orphaned ? "orphaned" : states[req->state],
			   jiffies_to_msecs(jiffies - req->started),
			   le32_to_cpu(req->wire.timeout_ms),
			   req->buffers[AZ_BLOB_REQUEST].len,
			   req->buffers[AZ_BLOB_RESPONSE].len,
			   req->buffers[AZ_BLOB_DATA].len);
}

static int pending_requests_show(struct seq_file *m, void *unused)
{
	struct az_blob_device *dev = m->private;

	seq_puts(m, "# guid state age_ms timeout_ms request_len response_len data_len\n");
	spin_lock_bh(&dev->lock);
	az_blob_show_list(m, &dev->pending);
	az_blob_show_list(m, &dev->queue);
	spin_unlock_bh(&dev->lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(pending_requests);

/* The VMBus driver */

static int az_blob_open_channel(struct az_blob_device *dev)
{
	struct vmbus_channel *channel = dev->hdev->channel;

	/* The host sees ids, not addresses, and we can check what comes back. */
	channel->rqstor_size = AZ_BLOB_QUEUE_DEPTH;
	channel->next_request_id_callback = vmbus_next_request_id;
	channel->request_addr_callback = vmbus_request_addr;

	/*
	 * As much as a ring holds beside its header. VMBus cuts a packet that
	 * is longer than this, and believes one of this length, wherever it
	 * begins, to lie within the ring's mapping.
	 */
	channel->max_pkt_size = AZ_BLOB_RING_SIZE - PAGE_SIZE;

	return vmbus_open(channel, AZ_BLOB_RING_SIZE, AZ_BLOB_RING_SIZE, NULL,
			  0, az_blob_channel_callback, dev);
}

/* From here on nothing is sent. What is dead stays dead. */
static void az_blob_fence(struct az_blob_device *dev,
			  enum az_blob_device_state state)
{
	spin_lock_bh(&dev->lock);
	if (dev->state != AZ_BLOB_DEAD)
		WRITE_ONCE(dev->state, state);
	dev->room_wanted = false;
	if (dev->state == AZ_BLOB_DEAD)
		az_blob_finish_all(dev, &dev->queue, -ENODEV);
	spin_unlock_bh(&dev->lock);
}

/*
 * Gives the host a chance to answer what it holds, closes the channel, and ends
 * what is left with @error. A rescinded channel's callback is not called any
 * more, there is nothing to wait for.
 */
static void az_blob_close_channel(struct az_blob_device *dev, int error)
{
	struct vmbus_channel *channel = dev->hdev->channel;

	if (!channel->rescind)
		wait_event_timeout(dev->drained, list_empty(&dev->pending),
				   AZ_BLOB_DRAIN_TIMEOUT);

	vmbus_close(channel);

	/* The host has let go of the pages, and the callback is done. */
	spin_lock_bh(&dev->lock);
	az_blob_finish_all(dev, &dev->pending, error);
	spin_unlock_bh(&dev->lock);
	flush_work(&dev->reap);
}

static int az_blob_probe(struct hv_device *hdev,
			 const struct hv_vmbus_device_id *id)
{
	struct az_blob_device *dev;
	int ret;

	if (hv_is_isolation_supported()) {
		dev_err(&hdev->device,
			"the host cannot see the pages of an isolated VM\n");
		return -EOPNOTSUPP;
	}

	dev = kzalloc(sizeof(*dev), GFP_KERNEL);
	if (!dev)
		return -ENOMEM;

	kref_init(&dev->kref);
	dev->hdev = hdev;
	INIT_WORK(&dev->reap, az_blob_reap);
	init_waitqueue_head(&dev->drained);
	spin_lock_init(&dev->lock);
	dev->state = AZ_BLOB_OPEN;
	INIT_LIST_HEAD(&dev->queue);
	INIT_LIST_HEAD(&dev->pending);
	INIT_LIST_HEAD(&dev->orphans);

	dev->id = ida_alloc(&az_blob_ida, GFP_KERNEL);
	if (dev->id < 0) {
		ret = dev->id;
		goto err_put;
	}
	if (dev->id)
		snprintf(dev->name, sizeof(dev->name), "azure_blob%d", dev->id);
	else
		strscpy(dev->name, "azure_blob", sizeof(dev->name));

	ret = az_blob_open_channel(dev);
	if (ret)
		goto err_ida;

	hv_set_drvdata(hdev, dev);
	dev->debugfs = debugfs_create_dir(dev_name(&hdev->device),
					  az_blob_debugfs);
	debugfs_create_file("pending_requests", 0400, dev->debugfs, dev,
			    &pending_requests_fops);

	/* Last: the node may be opened and used before this returns. */
	dev->misc.minor = MISC_DYNAMIC_MINOR;
	dev->misc.name = dev->name;
	dev->misc.fops = &az_blob_fops;
	dev->misc.parent = &hdev->device;
	ret = misc_register(&dev->misc);
	if (ret)
		goto err_close;

	return 0;

err_close:
	debugfs_remove(dev->debugfs);
	hv_set_drvdata(hdev, NULL);
	az_blob_fence(dev, AZ_BLOB_DEAD);
	az_blob_close_channel(dev, -ENODEV);
err_ida:
	ida_free(&az_blob_ida, dev->id);
err_put:
	kref_put(&dev->kref, az_blob_device_free);
	return ret;
}

/*
 * Unbind or rescind. The latter runs on a workqueue that all of VMBus shares,
 * so this waits for the host within bounds, and not for users of the node. It
 * does wait for a read of pending_requests to end, which may take a page fault
 * in the reader's memory, so there is no bound to that if user space serves the
 * fault; but only root can open that file.
 */
static void az_blob_remove(struct hv_device *hdev)
{
	struct az_blob_device *dev = hv_get_drvdata(hdev);

	az_blob_fence(dev, AZ_BLOB_DEAD);
	misc_deregister(&dev->misc);
	ida_free(&az_blob_ida, dev->id);
	debugfs_remove(dev->debugfs);
	az_blob_close_channel(dev, -ENODEV);
	hv_set_drvdata(hdev, NULL);
	kref_put(&dev->kref, az_blob_device_free);
}

/*
 * Hibernation: callers are frozen where they sleep. What the host does not
 * answer in time is lost, because its pages belong to another life of the VM;
 * what is still queued is sent after the resume.
 */
static int az_blob_suspend(struct hv_device *hdev)
{
	struct az_blob_device *dev = hv_get_drvdata(hdev);

	az_blob_fence(dev, AZ_BLOB_SUSPENDED);
	az_blob_close_channel(dev, -EIO);
	return 0;
}

static int az_blob_resume(struct hv_device *hdev)
{
	struct az_blob_device *dev = hv_get_drvdata(hdev);
	int ret;

	/* An earlier resume failed. */
	if (dev->state == AZ_BLOB_DEAD)
		return -ENODEV;

	ret = az_blob_open_channel(dev);
	if (ret) {
		az_blob_fence(dev, AZ_BLOB_DEAD);
		return ret;
	}

	spin_lock_bh(&dev->lock);
	WRITE_ONCE(dev->state, AZ_BLOB_OPEN);
	az_blob_pump(dev);
	spin_unlock_bh(&dev->lock);
	return 0;
}

static const struct hv_vmbus_device_id az_blob_ids[] = {
	{ HV_AZURE_BLOB_GUID },
	{ }
};
MODULE_DEVICE_TABLE(vmbus, az_blob_ids);

static struct hv_driver az_blob_driver = {
	.name = KBUILD_MODNAME,
	.id_table = az_blob_ids,
	.probe = az_blob_probe,
	.remove = AZ_BLOB_REMOVE,
	.suspend = az_blob_suspend,
	.resume = az_blob_resume,
};

static int __init az_blob_init(void)
{
	int ret;

	az_blob_debugfs = debugfs_create_dir(KBUILD_MODNAME, NULL);
	ret = vmbus_driver_register(&az_blob_driver);
	if (ret)
		debugfs_remove(az_blob_debugfs);
	return ret;
}

static void __exit az_blob_exit(void)
{
	vmbus_driver_unregister(&az_blob_driver);
	debugfs_remove(az_blob_debugfs);
}

module_init(az_blob_init);
module_exit(az_blob_exit);

MODULE_DESCRIPTION("Azure Blob requests over Hyper-V VMBus");
MODULE_LICENSE("GPL");
