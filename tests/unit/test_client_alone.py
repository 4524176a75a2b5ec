# SPDX-License-Identifier: GPL-2.0-only
"""The client library by itself: no harness, no package beside the standard library, no site directory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyharness
import pyharness.client

CLIENT = Path(pyharness.client.__file__).parent
CORE = sorted(path.stem for path in CLIENT.glob("*.py") if path.stem not in ("__init__", "azure"))
FOREIGN = """
import importlib, sys
sys.path.insert(0, {top!r})
importlib.import_module("pyharness.client.{name}")
loaded = {{name.partition(".")[0] for name in sys.modules}} - {{"__main__"}}
print(*sorted(loaded - sys.stdlib_module_names))
print(*sorted(name for name in sys.modules if name.startswith("pyharness.")))
"""


@pytest.mark.parametrize("name", CORE)
def test_core_needs_the_standard_library_alone(tmp_path: Path, name: str) -> None:
    shutil.copytree(CLIENT, tmp_path / "pyharness" / "client")
    shutil.copy(Path(pyharness.__file__), tmp_path / "pyharness")
    script = FOREIGN.format(top=str(tmp_path), name=name)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    foreign, own = done.stdout.splitlines()
    assert foreign == "pyharness"
    assert all(module.startswith("pyharness.client") for module in own.split())
