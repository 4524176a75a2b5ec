# SPDX-License-Identifier: GPL-2.0-only
"""The benchmark runs to its end, and what it leaves can be read. Its figures are nobody's verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from pyharness import repository
from pyharness.artifacts.prepare import Prepared
from pyharness.bench.results import Results
from pyharness.bench.session import Plan, measure
from pyharness.bench.stands import STANDS, Stand
from pyharness.errors import CheckFailed, Exit
from pyharness.machine.config import MachineConfig
from pyharness.progress import Progress
from pyharness.report.subjects import Subject
from pyharness.vsp.backends import Backend
from pyharness.vsp.request import VspRequest

FIGURES = ("bytes_per_s", "ops_per_s", "p50_us", "p99_us", "cpu_ns_per_byte")
BACKENDS = tuple(STANDS)
PNG = b"\x89PNG\r\n"


pytestmark = pytest.mark.kernel_has("INET", "VIRTIO_NET")


def test_quick_run(tmp_path: Path, prepared: Prepared, subject: Subject) -> None:
    chosen = [word for name in BACKENDS for word in ("--backend", name)]
    command = [sys.executable, "-m", "pyharness", "bench", "--quick", *chosen, "--output", str(tmp_path)]
    command += subject.arguments
    done = subprocess.run(command, cwd=repository.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == Exit.OK, done.stderr
    assert "Warning" not in done.stderr
    assert "16 MiB" not in done.stdout and "4 KiB" in done.stdout

    found: dict[str, Any] = json.loads((tmp_path / "bench.json").read_text())
    assert found["kernel"] == f"{prepared.kernel.name} {prepared.kernel.release}"
    assert found["accelerator"] in ("tcg", "kvm") and found["machine"]
    assert found["driver"] == prepared.modules.driver.hash
    cells = [(row["path"], row["backend"], row["op"], row["size"], row["clients"]) for row in found["rows"]]
    paths = [("floor", ""), *product(("driver", "http"), BACKENDS)]
    every = [(*path, op, 4096, clients) for path in paths for op in ("read", "write") for clients in (1, 2)]
    parts = [*product(("ioctl", "bare", "null"), ("",)), *product(("request",), BACKENDS)]
    stages = [(*path, op, 4096, 1) for path in parts for op in ("read", "write")]
    assert sorted(cells) == sorted(every + stages)
    for row in found["rows"]:
        assert all(row[name] >= 0 for name in FIGURES) and row["p50_us"] <= row["p99_us"]
        # Rounded to three digits after the point.
        assert row["bytes_per_s"] == pytest.approx(row["ops_per_s"] * 4096, rel=1e-3)
    for ratio in found["ratios"]:
        assert ratio["ops_over_http"]["least"] <= ratio["ops_over_http"]["median"] <= ratio["ops_over_http"]["greatest"]
    assert found["verified"] == {name: {"requests": 8, "bytes": 32 << 20, "wrong": 0} for name in BACKENDS}
    # Reads and writes by the driver and by HTTP, with one client and with two, and by requests that are not prepared.
    assert found["sampled"] == (8 + 2) * len(BACKENDS)
    plots = {f"{name}-{backend}.png" for name in ("throughput", "latency", "channel") for backend in BACKENDS}
    assert {path.name for path in tmp_path.glob("*.png")} == plots
    assert all(path.read_bytes().startswith(PNG) for path in tmp_path.glob("*.png"))


class Rotten:
    """Damages the last byte of each upload of more than so many bytes, where it lies."""

    def __init__(self, store: Backend, size: int) -> None:
        self.store = store
        self.size = size

    def handle(self, request: VspRequest) -> None:
        body = request.data_valid
        if len(body) > self.size:
            last = body[len(body) - 1 :]
            last.write(bytes([last.read()[0] ^ 1]))
        self.store.handle(request)


@pytest.mark.default_kernel_only("who looks at the bytes does not depend on the guest's kernel")
@pytest.mark.parametrize(
    ("rotten_above", "said"), [(4096, "a write of 8192 bytes brought other bytes"), (1 << 20, "requests to memory")]
)
def test_one_wrong_byte_is_seen(
    rotten_above: int, said: str, config: MachineConfig, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the sample of a cell, and in what is written and read back."""
    honest = STANDS["memory"]

    @contextmanager
    def rotten() -> Iterator[Stand]:
        with honest() as stand:
            yield replace(stand, backend=Rotten(stand.backend, rotten_above))

    monkeypatch.setitem(STANDS, "memory", rotten)
    plan = Plan(sizes=(8192,), clients=(1,), ceiling=(), repetitions=1, seconds=0.01, verify_bytes=1 << 20)
    with pytest.raises(CheckFailed, match=said):
        measure(prepared, config.accelerator, Progress(quiet=True), plan, Results("", "", "", "", "", 1))
