# SPDX-License-Identifier: GPL-2.0-only
"""The TCG plugin that counts instructions, compiled for a QEMU of ours."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pyharness import repository
from pyharness.artifacts.cache import Cache, key_of
from pyharness.artifacts.qemu import PLUGIN_HEADER, Qemu
from pyharness.artifacts.run import run
from pyharness.errors import UsageError

_RECIPE = "1"  # raise it when the way of building changes
_SOURCE = repository.ROOT / "qemu/plugins/instructions.c"
_NAME = "instructions.so"


def ensure_plugin(qemu: Qemu, cache: Cache) -> Path:
    """The plugin, compiled unless it is cached. Raises UsageError for a QEMU of the user's."""
    header = qemu.binary.with_name(PLUGIN_HEADER)
    if not header.exists():
        raise UsageError("instructions are counted in the harness's own QEMU alone", mend="leave --qemu out")
    key = key_of(_RECIPE, files={"source": _SOURCE, "header": header})
    return cache.build("plugin", key, partial(_compile, header.parent)) / _NAME


def _compile(headers: Path, directory: Path) -> None:
    glib = run(["pkg-config", "--cflags", "glib-2.0"])[-1].split()
    options = ("-O2", "-Wall", "-Werror", "-shared", "-fPIC", f"-I{headers}", *glib)
    run(["gcc", *options, "-o", directory / _NAME, _SOURCE])
