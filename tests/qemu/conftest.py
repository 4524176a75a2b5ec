# SPDX-License-Identifier: GPL-2.0-only
"""The bare-metal guests of qemu/tests, built with the host's compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyharness import repository

_SOURCES = repository.ROOT / "qemu/tests"
_LIBRARY = ("lib/start.S", "lib/guest.c", "lib/hyperv.c")
_CFLAGS = (
    *("-std=gnu11", "-O1", "-Wall", "-Wextra", "-m64", "-ffreestanding", "-static", "-nostdlib", "-no-pie", "-fno-pic"),
    # Interrupts come on the stack in use, and nobody enables SSE.
    *("-mno-red-zone", "-mgeneral-regs-only"),
    *("-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables"),
    *("-Wl,-T,lib/guest.ld", "-Wl,--build-id=none"),
)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the image of each test, named after its source; `-kernel` boots it through PVH."""
    directory = tmp_path_factory.mktemp("qemu-tests")
    for source in sorted(_SOURCES.glob("*.c")):
        command = ["gcc", *_CFLAGS, "-o", str(directory / source.stem), *_LIBRARY, source.name]
        built = subprocess.run(command, cwd=_SOURCES, capture_output=True, text=True)
        assert built.returncode == 0, f"{source.name} does not build:\n{built.stderr}"
    return directory
