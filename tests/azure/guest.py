# SPDX-License-Identifier: GPL-2.0-only
"""The guest's half: Azure's SDK over the device. Needs the unpacked SDK on the path."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from azure.storage.blob import BlobServiceClient

from pyharness.client.azure import AzureBlobDeviceTransport
from tests.azure import scenario

_SIZE = 1_500_000


def run_scenario(node: str, url: str, account: str, key: str, names: str) -> str:
    """The outcomes of these steps, with spaces between them, or of all, as JSON."""
    with AzureBlobDeviceTransport(node) as transport:

        def make(**options: Any) -> BlobServiceClient:
            credential = {"account_name": account, "account_key": key}
            return BlobServiceClient(url, credential=credential, transport=transport, retry_total=0, **options)

        outcomes = scenario.run(make, "over-driver", names.split() or None)
    return json.dumps([asdict(outcome) for outcome in outcomes])


def run_example(code: str, url: str, account: str, key: str) -> str:
    """An example of the documentation."""
    names = {"__name__": "__main__", "URL": url, "CREDENTIAL": {"account_name": account, "account_key": key}}
    exec(compile(code, "example", "exec"), names)
    return "true"


class Crowd:
    """Threads that upload and download until they are stopped, whatever happens to them."""

    def __init__(self, node: str, url: str, account: str, key: str, count: int, timeout_s: float) -> None:
        self._transport = AzureBlobDeviceTransport(node, connection_timeout=0, read_timeout=timeout_s)
        service = BlobServiceClient(
            url, credential={"account_name": account, "account_key": key}, transport=self._transport, retry_total=0
        )
        self._container = service.get_container_client("crowd")
        self._over = threading.Event()
        self._said: list[list[str]] = [[] for _ in range(count)]
        self._longest = 0.0
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        content = scenario.pattern(_SIZE + number)
        expected = hashlib.sha256(content).digest()
        blob = self._container.get_blob_client(f"of-{number}")
        while not self._over.is_set():
            self._note(number, lambda: blob.upload_blob(content, overwrite=True))
            self._note(number, lambda: self._check(blob.download_blob().readall(), expected))

    @staticmethod
    def _check(content: bytes, expected: bytes) -> None:
        if hashlib.sha256(content).digest() != expected:
            raise AssertionError("the content has changed")

    def _note(self, number: int, action: Callable[[], object]) -> None:
        started = time.monotonic()
        try:
            action()
            said = "done"
        except Exception as error:
            said = type(error).__name__
            # Whoever is refused at once would else fill the list.
            time.sleep(0.05)
        self._longest = max(self._longest, time.monotonic() - started)
        self._said[number].append(said)

    def mark(self) -> list[int]:
        """Where each thread is now, for `since`."""
        return [len(said) for said in self._said]

    def since(self, mark: list[int]) -> str:
        """What became of each thread's requests since then, as JSON: a list of lists."""
        return json.dumps([said[start:] for said, start in zip(self._said, mark, strict=True)])

    def longest(self) -> float:
        """Seconds that the slowest request has taken since this was asked for last."""
        longest, self._longest = self._longest, 0.0
        return longest

    def stop(self) -> bool:
        """Whether all have ended."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        self._transport.close()
        return not any(thread.is_alive() for thread in self._threads)
