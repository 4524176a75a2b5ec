# SPDX-License-Identifier: GPL-2.0-only
"""`pyharness shell` as a person uses it."""

from __future__ import annotations

import sys

import pexpect
import pytest

from pyharness import repository
from pyharness.artifacts.prepare import Prepared

pytestmark = pytest.mark.default_kernel_only("a terminal is the same with every kernel")

PATIENCE_S = 300
BLOB = "from pyharness.client.blob import *; c = BlobClient(BlobDevice('/dev/azure_blob'))"


def test_the_client_talks_to_the_device_from_the_shell(prepared: Prepared) -> None:
    argv = ["-m", "pyharness", "shell", "--kernel", prepared.kernel.name]
    person = pexpect.spawn(sys.executable, argv, cwd=repository.ROOT, timeout=PATIENCE_S, encoding="utf-8")
    try:
        person.expect_exact("ends the guest")
        person.expect(r"# ")
        person.sendline(f"python3 -c \"{BLOB}; c.put('/a/b', b'x' * 5); print('length', c.head('/a/b').length)\"")
        person.expect_exact("length 5")
        person.sendline("exit")
        person.expect(pexpect.EOF)
        person.close()
        assert person.exitstatus == 0
    finally:
        person.close(force=True)
