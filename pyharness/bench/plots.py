# SPDX-License-Identifier: GPL-2.0-only
"""Plots of a run, each of which says on what it was measured."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

from pyharness.bench.results import KIB, MIB, Results, size_of

matplotlib.use("Agg")
from matplotlib import pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOKS = {"driver": ("#0b5cad", "o"), "http": ("#c2410c", "s"), "floor": ("#6b7280", "^")}
Rows = list[dict[str, Any]]

_NAMES = {"driver": "driver", "http": "HTTP over virtio-net", "floor": "no backend (floor)"}


def write_plots(results: Results, directory: Path) -> list[Path]:
    """Write the plots of each backend for which there are figures, as PNG."""
    written = []
    all_rows = results.rows()
    backends = sorted({row["backend"] for row in all_rows} - {""})
    for backend, (name, draw) in product(backends, _PLOTS.items()):
        figure = draw([row for row in all_rows if row["backend"] in ("", backend)])
        if figure is None:
            continue
        label = f"{results.label}, backend {backend}"
        figure.text(0.5, 0.005, label, ha="center", va="bottom", fontsize=7, color="#374151")
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        path = directory / f"{name}-{backend}.png"
        figure.savefig(path, dpi=150)
        pyplot.close(figure)
        written.append(path)
    return written


def _those(rows: Rows, **wanted: Any) -> Rows:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _line(axes: Axes, rows: Rows, x: str, y: Callable[[dict[str, Any]], float], path: str) -> None:
    colour, marker = _LOOKS[path]
    rows = sorted(rows, key=lambda row: float(row[x]))
    axes.plot([row[x] for row in rows], [y(row) for row in rows], color=colour, marker=marker, label=_NAMES[path])


def _finish(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(True, which="both", alpha=0.25)
    if axes.has_data():
        axes.legend(fontsize=7)


def _throughput(rows: Rows) -> Figure | None:
    """Throughput against size, a panel for each number of clients and direction."""
    clients = sorted({row["clients"] for row in _those(rows, path="http")})
    if not clients:
        return None
    figure, panels = pyplot.subplots(2, len(clients), figsize=(3.4 * len(clients), 6), squeeze=False, sharey=True)
    for line, op in enumerate(("read", "write")):
        for column, count in enumerate(clients):
            axes = panels[line][column]
            for path in ("http", "driver"):
                _line(
                    axes,
                    _those(rows, path=path, op=op, clients=count),
                    "size",
                    lambda one: one["bytes_per_s"] / MIB,
                    path,
                )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            sizes = sorted({one["size"] for one in _those(rows, path="driver", op=op, clients=count)})
            axes.set_xticks(sizes, [size_of(size) for size in sizes])
            _finish(axes, f"{op}, {count} client{'s' * (count > 1)}", "request size", "MiB/s")
    return figure


def _latency(rows: Rows) -> Figure | None:
    """Median and 99th percentile of one client's small requests."""
    paths = [path for path in ("floor", "driver", "http") if _those(rows, path=path, size=4 * KIB, clients=1)]
    if not paths:
        return None
    figure, axes = pyplot.subplots(figsize=(5, 3.6))
    for index, path in enumerate(paths):
        chosen = _those(rows, path=path, size=4 * KIB, clients=1)
        at = [position + 0.27 * index for position in range(len(chosen))]
        colour, _ = _LOOKS[path]
        axes.bar(at, [row["p50_us"] for row in chosen], width=0.25, color=colour, label=f"{_NAMES[path]}, p50")
        axes.scatter(
            at, [row["p99_us"] for row in chosen], marker="_", s=160, color=colour, label=f"{_NAMES[path]}, p99"
        )
        axes.set_xticks([position + 0.27 for position in range(len(chosen))], [row["op"] for row in chosen])
    axes.set_yscale("log")
    # Room for the legend above the bars, and none of their length lost below.
    axes.set_ylim(10, 30 * max(row["p99_us"] for path in paths for row in _those(rows, path=path, clients=1)))
    _finish(axes, "4 KiB, one client", "", "latency, µs")
    axes.legend(fontsize=6, ncols=2, loc="upper center")
    return figure


def _ceiling(rows: Rows) -> Figure | None:
    """What one channel carries against the number of clients."""
    figure, panels = pyplot.subplots(1, 2, figsize=(7.4, 3.4))
    drawn = False
    sides: tuple[tuple[int, str, Callable[[dict[str, Any]], float]], ...] = (
        (4 * KIB, "requests/s", lambda row: float(row["ops_per_s"])),
        (4 * MIB, "MiB/s", lambda row: row["bytes_per_s"] / MIB),
    )
    for axes, (size, unit, y) in zip(panels, sides, strict=True):
        for path in ("driver", "floor") if size == 4 * KIB else ("driver",):
            chosen = _those(rows, path=path, op="read", size=size)
            if chosen:
                _line(axes, chosen, "clients", y, path)
                drawn = True
        axes.set_xscale("log")
        clients = sorted({row["clients"] for row in _those(rows, path="driver")})
        axes.set_xticks(clients, [str(count) for count in clients])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        _finish(axes, f"one channel, reads of {size_of(size)}", "clients", unit)
    return figure if drawn else None


_PLOTS: dict[str, Callable[[Rows], Figure | None]] = {
    "throughput": _throughput,
    "latency": _latency,
    "channel": _ceiling,
}
