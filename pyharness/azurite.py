# SPDX-License-Identifier: GPL-2.0-only
"""Azurite as a process on loopback, which ends with this one."""

from __future__ import annotations

import re
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from pyharness.artifacts.run import missing_tool
from pyharness.errors import HarnessError

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's one account and its key, which are the same everywhere and no secret."""

_MAIN = "node_modules/azurite/dist/src/blob/main.js"
_LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)")
_STOP_TIMEOUT_S = 10.0


class Azurite:
    """One emulator with its data in a directory. Start it from a thread that lives as long as it is needed."""

    def __init__(self, installation: Path, data: Path) -> None:
        """`installation` is what `ensure_azurite` returned."""
        self._installation = installation
        self._data = data
        self._process: subprocess.Popen[str] | None = None
        self.port = 0
        """0 until it has been started; the same each time that it is started again."""

    @property
    def endpoint(self) -> str:
        """For the `http` backend."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def account_url(self) -> str:
        """For the SDK."""
        return f"{self.endpoint}/{ACCOUNT}"

    @property
    def credential(self) -> dict[str, str]:
        """For the SDK."""
        return {"account_name": ACCOUNT, "account_key": KEY}

    @property
    def pid(self) -> int:
        """Of the running process. Raises HarnessError when there is none."""
        if self._process is None:
            raise HarnessError("Azurite is not running")
        return self._process.pid

    def start(self) -> None:
        """Return once it listens. Raises HarnessError."""
        node = ["node", str(self._installation / _MAIN), "--blobHost", "127.0.0.1", "--blobPort", str(self.port)]
        # The SDK may be newer than the API versions that this Azurite knows.
        options = ["--location", str(self._data), "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
        process = self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *node, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line.rstrip("\n"))
            if listening := _LISTENS.search(line):
                self.port = int(listening[1])
                threading.Thread(target=process.stdout.read, name="azurite", daemon=True).start()
                return
        if process.wait() == 127:
            raise missing_tool("node")
        raise HarnessError("Azurite does not start", detail="\n".join(said[-20:]))

    def stop(self) -> None:
        """End it in good order."""
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it in the middle of whatever it does; `start` makes another one on the same port and data."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
