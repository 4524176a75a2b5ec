# SPDX-License-Identifier: GPL-2.0-only
"""What has been measured, and what follows from it: rows, ratios with their spread, the cost of each stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple

KIB, MIB = 1 << 10, 1 << 20


class Cell(NamedTuple):
    """What is measured; `path` is a key of pyharness.guest.bench's table."""

    path: str
    backend: str
    """Empty for a path that has none."""
    op: str
    size: int
    clients: int


@dataclass(frozen=True)
class Measured:
    """One cell in one repetition."""

    cell: Cell
    repetition: int
    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    cpu_seconds: float

    @property
    def ops_per_s(self) -> float:
        """Requests of all clients together."""
        return self.requests / self.seconds

    @property
    def bytes_per_s(self) -> float:
        """Of data, without heads."""
        return self.ops_per_s * self.cell.size

    @property
    def cpu_ns_per_byte(self) -> float:
        """Time of all the guest's CPUs together."""
        return self.cpu_seconds * 1e9 / (self.requests * self.cell.size)


class Spread(NamedTuple):
    """The median of the repetitions, the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Raises ValueError of none."""
        ordered = sorted(values)
        return cls(median(ordered), ordered[0], ordered[-1])

    def __str__(self) -> str:
        digits = 2 if self.median < 100 else 0
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}-{self.greatest:.{digits}f})"


@dataclass
class Results:
    """A run of the benchmark."""

    accelerator: str
    kernel: str
    machine: str
    qemu: str
    driver: str
    repetitions: int
    load: list[float] = field(default_factory=list)
    """The host's load average over a minute, before and after."""
    measured: list[Measured] = field(default_factory=list)
    verified: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By backend: what was written and read back with every byte hashed."""
    sampled: int = 0
    """Requests whose bytes were hashed and right, besides."""

    @property
    def label(self) -> str:
        """What each figure must say of itself."""
        return f"{self.accelerator.upper()}, kernel {self.kernel}, {self.machine}"

    def of(self, cell: Cell) -> list[Measured]:
        """The repetitions of a cell."""
        return [one for one in self.measured if one.cell == cell]

    def cells(self) -> list[Cell]:
        """Those that were measured, in order."""
        return sorted({one.cell for one in self.measured}, key=lambda c: (c.backend, c.op, c.size, c.clients, c.path))

    def rows(self) -> list[dict[str, Any]]:
        """A row for each cell: medians of its repetitions."""
        return [
            {
                **cell._asdict(),
                **{name: round(median(getattr(one, name) for one in self.of(cell)), 3) for name in _FIGURES},
                "ops_per_s_spread": _spread(one.ops_per_s for one in self.of(cell)),
            }
            for cell in self.cells()
        ]

    def ratio(self, of: Cell, to: Cell, figure: Callable[[Measured], float]) -> Spread | None:
        """`of` over `to`, each repetition by itself; None when one was not measured."""
        pairs = zip(self.of(of), self.of(to), strict=False)
        values = [figure(one) / figure(other) for one, other in pairs]
        return Spread.of(values) if values else None

    def ratios(self) -> list[dict[str, Any]]:
        """The driver's throughput over that of HTTP, and its latency over that of the floor, cell by cell."""
        found = []
        for cell in self.cells():
            if cell.path != "driver":
                continue
            over = self.ratio(cell, cell._replace(path="http"), lambda one: one.ops_per_s)
            latency = self.ratio(cell, cell._replace(path="floor", backend=""), lambda one: one.p50_us)
            cpu = self.ratio(cell, cell._replace(path="http"), lambda one: one.cpu_ns_per_byte)
            found.append(
                {
                    **cell._asdict(),
                    "ops_over_http": over and over._asdict(),
                    "p50_over_floor": latency and latency._asdict(),
                    "cpu_over_http": cpu and cpu._asdict(),
                }
            )
        return found

    def stages(self) -> list[dict[str, Any]]:
        """Where the time of one client's small requests goes: how much longer each path takes than the one before.

        In microseconds, from the median latencies, each repetition by itself.
        """
        found = []
        small = [cell for cell in self.cells() if cell.clients == 1 and cell.size == 4 * KIB]
        for driver in (cell for cell in small if cell.path == "driver"):
            for stage, path, before in _STAGES:
                cells = [
                    cell
                    for name in (path, before)
                    for cell in small
                    if cell.path == name and cell.op == driver.op and cell.backend in ("", driver.backend)
                ]
                if len(cells) < 1 + bool(before):
                    continue
                values = zip(*([one.p50_us for one in self.of(cell)] for cell in cells), strict=True)
                us = Spread.of(value[0] - sum(value[1:]) for value in values)
                found.append({"backend": driver.backend, "op": driver.op, "stage": stage, "us": us._asdict()})
        return found

    def ceiling(self) -> list[dict[str, Any]]:
        """What one channel carries against the number of clients."""
        return [
            {
                "backend": row["backend"],
                **{name: row[name] for name in ("op", "size", "clients", "ops_per_s", "bytes_per_s")},
            }
            for row in self.rows()
            if row["path"] == "driver"
        ]

    def as_json(self) -> dict[str, Any]:
        """What bench.json holds."""
        facts = {key: value for key, value in asdict(self).items() if key != "measured"}
        return {
            **facts,
            "rows": self.rows(),
            "ratios": self.ratios(),
            "stages": self.stages(),
            "ceiling": self.ceiling(),
        }

    def table(self) -> str:
        """For a person."""
        lines = [
            self.label,
            f"{'backend':8} {'op':5} {'size':>8} {'clients':>7}  {'HTTP':>21} {'driver':>21} {'floor':>10}  "
            f"{'driver/HTTP':>22}  {'p50 us':>8} {'p99 us':>8}  {'driver/floor p50':>17}",
        ]
        rows = {Cell(*(row[name] for name in Cell._fields)): row for row in self.rows()}
        for ratio in self.ratios():
            cell = Cell(*(ratio[name] for name in Cell._fields))
            http, floor = rows.get(cell._replace(path="http")), rows.get(cell._replace(path="floor", backend=""))
            lines.append(
                f"{cell.backend:8} {cell.op:5} {size_of(cell.size):>8} {cell.clients:>7}  {_rate(http):>21} "
                f"{_rate(rows[cell]):>21} {_ops(floor):>10}  {_shown(ratio['ops_over_http']):>22}  "
                f"{rows[cell]['p50_us']:8.0f} {rows[cell]['p99_us']:8.0f}  {_shown(ratio['p50_over_floor']):>17}"
            )
        lines += [
            f"{stage['backend']:8} {stage['op']:5} 4 KiB, 1 client: {stage['stage']:22} {Spread(**stage['us'])} us"
            for stage in self.stages()
        ]
        for backend, moved in self.verified.items():
            lines.append(f"{backend:8} {moved['bytes'] / (1 << 30):.2f} GiB verified, {moved['wrong']} wrong")
        return "\n".join(lines)


_FIGURES = ("ops_per_s", "bytes_per_s", "p50_us", "p99_us", "cpu_ns_per_byte")

# A stage, the path that ends with it, and the path that ends before it.
_STAGES = (
    ("empty ioctl", "ioctl", ""),
    ("driver, VMBus, device", "bare", "ioctl"),
    ("client library", "floor", "bare"),
    ("VSP", "null", "floor"),
    ("backend", "driver", "null"),
    ("not prepared", "request", "driver"),
    ("the whole by HTTP", "http", ""),
)


def size_of(size: int) -> str:
    """In the largest binary unit that leaves a whole number."""
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def _spread(values: Iterable[float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in Spread.of(values)._asdict().items()}


def _rate(row: Mapping[str, Any] | None) -> str:
    return f"{row['ops_per_s']:.0f}/s {row['bytes_per_s'] / MIB:.1f} MiB/s" if row else "-"


def _ops(row: Mapping[str, Any] | None) -> str:
    return f"{row['ops_per_s']:.0f}/s" if row else "-"


def _shown(spread: Mapping[str, float] | None) -> str:
    return str(Spread(**spread)) if spread else "-"
