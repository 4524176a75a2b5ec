# SPDX-License-Identifier: GPL-2.0-only
"""First Python in the guest: takes the agent's code from the host over virtio-serial and serves it.

Part of the root image, so it stays small: everything that changes often comes from the host with each connection.
Whatever is slow to import is imported here, before the host is told that the guest is ready, and inherited by the
process that serves a connection.
"""

import os
import struct
import sys
import time
from pathlib import Path

sys.path.append("/usr/lib/pyharness/site")

import rpyc

PORT_NAME = "pyharness.agent"
PORTS = Path("/sys/class/virtio-ports")
ARCHIVE = Path("/run/pyharness.zip")
HANGUP_POLL_S = 0.02


def open_port() -> int:
    """Open the agent's virtio-serial port; there is no udev, so its device node is looked up in sysfs."""
    while True:
        for port in PORTS.iterdir():
            if (port / "name").read_text().strip() == PORT_NAME:
                return os.open(f"/dev/{port.name}", os.O_RDWR | os.O_CLOEXEC)
        time.sleep(HANGUP_POLL_S)


def read_exactly(port: int, count: int) -> bytes:
    """Read `count` bytes; a port that no host is connected to reads as empty, so wait for one."""
    data = bytearray()
    while len(data) < count:
        chunk = os.read(port, count - len(data))
        if not chunk:
            time.sleep(HANGUP_POLL_S)
        data += chunk
    return bytes(data)


def main() -> None:
    """Serve one host connection in a child, so that each starts from the same fresh interpreter."""
    while True:
        port = open_port()
        os.write(port, f"pyharness-agent rpyc={rpyc.__version__}\n".encode())
        (size,) = struct.unpack("<I", read_exactly(port, 4))
        ARCHIVE.write_bytes(read_exactly(port, size))
        child = os.fork()
        if child == 0:
            sys.path.insert(0, str(ARCHIVE))
            from pyharness.guest import agent

            agent.serve(port)
            os._exit(0)
        os.close(port)
        _, status = os.waitpid(child, 0)
        if status:
            # Nobody is left to answer the host, and it could not tell: a port has no end of file.
            sys.exit(f"pyharness: the agent's process ended with wait status {status:#x}")


main()
