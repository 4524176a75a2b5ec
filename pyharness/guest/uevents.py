# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's uevents, and device nodes that come and go.

The kernel makes a node before it announces the device and removes it before it announces the removal, so after an
event the file system tells the truth.
"""

from __future__ import annotations

import threading
from pathlib import Path

from pyroute2.netlink.uevent import UeventSocket


class UeventWatch:
    """Collects all uevents from its creation on."""

    def __init__(self) -> None:
        self._events: list[tuple[tuple[str, str], ...]] = []
        self._news = threading.Condition()
        self._bound = threading.Event()
        threading.Thread(target=self._listen, name="uevents", daemon=True).start()
        self._bound.wait()

    def _listen(self) -> None:
        with UeventSocket() as events:
            events.bind()
            self._bound.set()
            while True:
                for event in events.get():
                    fields = tuple((str(key), str(value)) for key, value in event.items() if key != "header")
                    with self._news:
                        self._events.append(fields)
                        self._news.notify_all()

    def since(self, start: int, seconds: float) -> tuple[tuple[tuple[str, str], ...], ...]:
        """Events from number `start` on, each as key and value pairs; waits up to `seconds` for the first of them."""
        with self._news:
            self._news.wait_for(lambda: len(self._events) > start, seconds)
            return tuple(self._events[start:])

    def wait_for_node(self, path: str, present: bool, seconds: float) -> bool:
        """Whether the node `path` is there (or gone) at the latest after `seconds`."""
        with self._news:
            return self._news.wait_for(lambda: Path(path).exists() == present, seconds)
