# SPDX-License-Identifier: GPL-2.0-only
"""Faults to plant into a copy of the driver: what is changed, what uncovers it, and what the judge must say of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyharness import repository
from pyharness.errors import CheckFailed, GuestCrashed, HarnessError
from pyharness.machine.crash import Kind
from tests.driver.lab import Lab
from tests.planted import workloads

DRIVER = Path("kernel/hv_azure_blob.c")

Workload = Callable[[Lab], None]


@dataclass(frozen=True)
class Change:
    """Text of the driver, or of another file, and what takes its place."""

    old: str
    new: str
    file: Path = DRIVER


@dataclass(frozen=True)
class Fault:
    """A fault, and its verdict: `error`, of the given kind, with `said` in its message and `shown` in its detail."""

    name: str
    changes: tuple[Change, ...]
    said: str
    shown: str
    kind: Kind | None = None
    error: type[HarnessError] = GuestCrashed
    workload: Workload = workloads.use
    only_at_the_end: bool = False
    """Seen by kmemleak alone, before the machine goes."""


class ChangeDoesNotApply(Exception):
    """The driver's text has moved on: the fault would not be planted, and its test would say nothing."""


def plant(changes: tuple[Change, ...], root: Path, parts: tuple[str, ...] = ("kernel", "uapi")) -> Path:
    """Copy the driver and the patches, or other parts of the tree, below `root` and change them.

    Raises ChangeDoesNotApply unless each text occurs just once.
    """
    for part in parts:
        shutil.copytree(repository.ROOT / part, root / part)
    for change in changes:
        text = (root / change.file).read_text()
        if (count := text.count(change.old)) != 1:
            raise ChangeDoesNotApply(f"{change.file} has {count} times, not once:\n{change.old}")
        (root / change.file).write_text(text.replace(change.old, change.new))
    return root


FAULTS = (
    Fault(
        "use after free",
        (
            Change(
                """
	*response = req->response;
free:
	az_blob_request_free(req);
""",
                """
free:
	az_blob_request_free(req);
	*response = req->response;
""",
            ),
        ),
        said="(KASAN): BUG: KASAN: slab-use-after-free in az_blob_",
        shown="az_blob_execute",
        kind=Kind.KASAN,
    ),
    Fault(
        "double free",
        (
            Change(
                """
	kvfree(req->mpb);
""",
                """
	kvfree(req->mpb);
	kvfree(req->mpb);
""",
            ),
        ),
        said="(KASAN): BUG: KASAN: double-free",
        shown="az_blob_request_free",
        kind=Kind.KASAN,
    ),
    Fault(
        "overrun",
        (
            Change(
                """
	*len = struct_size(mpb, range.pfn_array, nr_pages);
""",
                """
	*len = struct_size(mpb, range.pfn_array, nr_pages - 1);
""",
            ),
        ),
        said="(KASAN): BUG: KASAN: slab-out-of-bounds in az_blob_",
        shown="az_blob_mpb_create",
        kind=Kind.KASAN,
    ),
    Fault(
        "leak",
        (
            Change(
                """
	kvfree(req->mpb);
""",
                """
""",
            ),
        ),
        said="bytes are left allocated by kernel/hv_azure_blob.c:",
        shown="az_blob_mpb_create",
        error=CheckFailed,
    ),
    Fault(
        "leak of what another part of the kernel allocated",
        (
            Change(
                """
	hv_set_drvdata(hdev, dev);
	dev->debugfs =""",
                """
	hv_set_drvdata(hdev, dev);
	kasprintf(GFP_KERNEL, "%s", dev->name);
	dev->debugfs =""",
            ),
        ),
        said="kmemleak: ",
        shown="az_blob_probe",
        kind=Kind.KMEMLEAK,
        only_at_the_end=True,
    ),
    Fault(
        "reference that is kept",
        (
            Change(
                """
	struct az_blob_device *dev = file->private_data;

	kref_put(&dev->kref, az_blob_device_free);
	return 0;
""",
                """
	return 0;
""",
            ),
        ),
        said="bytes are left allocated by kernel/hv_azure_blob.c:",
        shown="az_blob_probe",
        error=CheckFailed,
    ),
    Fault(
        "lock inversion",
        (
            Change(
                """
static DEFINE_IDA(az_blob_ida);
""",
                """
static DEFINE_IDA(az_blob_ida);
static DEFINE_SPINLOCK(planted);
""",
            ),
            Change(
                """
	req->started = jiffies;
""",
                """
	req->started = jiffies;
	spin_lock(&planted);
	spin_unlock(&planted);
""",
            ),
            Change(
                """
	if (dev->state != AZ_BLOB_DEAD)
		WRITE_ONCE(dev->state, state);
	dev->room_wanted = false;
	if (dev->state == AZ_BLOB_DEAD)
		az_blob_finish_all(dev, &dev->queue, -ENODEV);
	spin_unlock_bh(&dev->lock);
""",
                """
	if (dev->state != AZ_BLOB_DEAD)
		WRITE_ONCE(dev->state, state);
	dev->room_wanted = false;
	if (dev->state == AZ_BLOB_DEAD)
		az_blob_finish_all(dev, &dev->queue, -ENODEV);
	spin_unlock_bh(&dev->lock);
	spin_lock_bh(&planted);
	spin_lock(&dev->lock);
	spin_unlock(&dev->lock);
	spin_unlock_bh(&planted);
""",
            ),
        ),
        said="lockdep: WARNING: possible circular locking dependency detected",
        shown="az_blob_fence",
        kind=Kind.LOCKDEP,
    ),
    Fault(
        "lock that a softirq takes too",
        (
            Change(
                """
	spin_lock_bh(&dev->lock);
	switch (req->state) {
""",
                """
	spin_lock(&dev->lock);
	switch (req->state) {
""",
            ),
            Change(
                """
		break;
	}
	spin_unlock_bh(&dev->lock);
""",
                """
		break;
	}
	spin_unlock(&dev->lock);
""",
            ),
        ),
        said="lockdep: WARNING: inconsistent lock state",
        shown="az_blob_execute",
        kind=Kind.LOCKDEP,
    ),
    Fault(
        "sleep in atomic context",
        (
            Change(
                """
	spin_lock_bh(&dev->lock);
	switch (req->state) {
""",
                """
	spin_lock_bh(&dev->lock);
	cond_resched();
	switch (req->state) {
""",
            ),
        ),
        said="atomic sleep: BUG: sleeping function called from invalid context at kernel/hv_azure_blob.c:",
        shown="az_blob_execute",
        kind=Kind.ATOMIC_SLEEP,
    ),
    Fault(
        "missing unpin",
        (
            Change(
                """
	for (kind = 0; kind < AZ_BLOB_NR_BUFFERS; kind++)
		unpin_user_pages_dirty_lock(""",
                """
	for (kind = AZ_BLOB_REQUEST; kind < AZ_BLOB_NR_BUFFERS; kind++)
		unpin_user_pages_dirty_lock(""",
            ),
        ),
        said="pages are left pinned",
        shown="unpin_user_pages is missing",
        error=CheckFailed,
    ),
    Fault(
        "WARN_ON",
        (
            Change(
                """
	req->error = error;
""",
                """
	WARN_ON(!error);
	req->error = error;
""",
            ),
        ),
        said="WARNING: WARNING: CPU: ",
        shown="az_blob_finish",
        kind=Kind.WARNING,
    ),
    Fault(
        "allocation whose failure is ignored",
        (
            Change(
                """
	mpb = kvmalloc(*len, GFP_KERNEL_ACCOUNT);
	if (!mpb)
		return NULL;
""",
                """
	mpb = kvmalloc(*len, GFP_KERNEL_ACCOUNT);
""",
            ),
        ),
        said="(oops): Oops: general protection fault",
        shown="az_blob_mpb_create",
        kind=Kind.OOPS,
        workload=workloads.fail_allocations,
    ),
    Fault(
        "leak when memory is short",
        (
            Change(
                """
	if (!req->mpb) {
		ret = -ENOMEM;
		goto err_free;
	}
""",
                """
	if (!req->mpb)
		return ERR_PTR(-ENOMEM);
""",
            ),
        ),
        said="pages are left pinned",
        shown="az_blob_request_create",
        error=CheckFailed,
        workload=workloads.fail_allocations,
    ),
)
