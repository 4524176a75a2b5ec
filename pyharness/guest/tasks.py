# SPDX-License-Identifier: GPL-2.0-only
"""Work on threads of the guest, so that a blocking call leaves the agent free to answer."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any


class Task:
    """A call on a thread of its own."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._function = function
        self._args = args
        self._done = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name=getattr(function, "__name__", "task"), daemon=True).start()

    def _run(self) -> None:
        try:
            self._result = self._function(*self._args)
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def wait(self, seconds: float) -> bool:
        """Whether the call has ended, at the latest after `seconds`."""
        return self._done.wait(seconds)

    def result(self) -> Any:
        """What the ended call returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._result


def run(argv: Sequence[str], stdin: bytes) -> tuple[int, bytes, bytes]:
    """Run a program: its exit status (negative for a signal), standard output and standard error."""
    done = subprocess.run(list(argv), input=stdin, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr
