# SPDX-License-Identifier: GPL-2.0-only
"""The client in programs that have nothing else of the harness. Its mirror of the ABI is `test_abi_planted`'s."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pyharness.client import abi


def test_client_refuses_a_python_that_lays_structs_out_otherwise(tmp_path: Path) -> None:
    text = Path(abi.__file__).read_text()
    assert text.count('("pad", ctypes.c_uint32)') == 1
    changed = tmp_path / "abi.py"
    changed.write_text(text.replace('("pad", ctypes.c_uint32)', '("pad", ctypes.c_uint64)'))
    done = subprocess.run([sys.executable, changed], capture_output=True, text=True, check=False)
    assert "ImportError: struct az_blob_request_sync has another layout in this Python" in done.stderr
