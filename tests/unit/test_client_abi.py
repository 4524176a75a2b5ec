# SPDX-License-Identifier: GPL-2.0-only
"""The client in programs that have nothing else of the harness. Its mirror of the ABI is `test_abi_planted`'s."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pyharness.client import abi


def test_client_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    """Imported alone, with neither site-packages nor the rest of the harness."""
    client = Path(abi.__file__).parent
    (tmp_path / "pyharness").mkdir()
    (tmp_path / "pyharness" / "__init__.py").touch()
    (tmp_path / "pyharness" / "client").symlink_to(client)
    modules = [f"pyharness.client.{path.stem}" for path in client.glob("[!_]*.py")]
    assert len(modules) >= 4
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {', '.join(modules)}; print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+\n", done.stdout)


def test_client_refuses_a_python_that_lays_structs_out_otherwise(tmp_path: Path) -> None:
    text = Path(abi.__file__).read_text()
    assert text.count('("pad", ctypes.c_uint32)') == 1
    changed = tmp_path / "abi.py"
    changed.write_text(text.replace('("pad", ctypes.c_uint32)', '("pad", ctypes.c_uint64)'))
    done = subprocess.run([sys.executable, changed], capture_output=True, text=True, check=False)
    assert "ImportError: struct az_blob_request_sync has another layout in this Python" in done.stderr
