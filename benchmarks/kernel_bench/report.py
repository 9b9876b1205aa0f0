"""The figures as tables and curves."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

HEADER = "| | seconds | processor seconds | peak MB | GFLOP/s | share of peak"


def markdown(report: dict[str, Any]) -> str:
    unit, gflop = ("TFLOP/s", 1e3) if report["peak_gflop_per_s"] > 1e4 else ("GFLOP/s", 1)
    lines = ["# Kernels", "", f"{HEADER.replace('GFLOP/s', unit)} |", "|---|" + "---:|" * 5]
    lines += [f"| {name} | {cells(row, gflop)} |" for name, row in report["costs"].items()]
    lines += ["", f"Peak of a matrix product: {report['peak_gflop_per_s'] / gflop:.3g} {unit}."]
    counts = report["iterations"]
    plain = counts.get("plain", "not yet known")
    lines += ["", f"Iterations to a marginal error of 1e-3: {counts['ours']} (ours), {plain} (plain)."]
    lines += ["", "| what it returns | L1 marginal error |", "|---|---:|"]
    lines += [f"| {name} | {error:.3g} |" for name, error in report["errors"].items()]
    lines += ["", "| ratio | clock | processor | expected beforehand |", "|---|---:|---:|---|"]
    for name, row in report["ratios"].items():
        values = (row["memory"], row["memory"]) if "memory" in row else (row["clock"], row["processor"])
        lines.append(f"| {name} | {values[0]:.3g} | {values[1]:.3g} | {report['expected'][name]} |")
    lines += ["", *(f"- {key}: {value}" for key, value in report["conditions"].items())]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any], gflop: float = 1) -> str:
    """The columns of HEADER after the first; `gflop` of them are the unit of speed."""
    rates = (f"{row[key] / size:.3g}" if key in row else "" for key, size in (("gflop_per_s", gflop), ("of_peak", 1)))
    return " | ".join([f"{row['clock_s']:.3g}", f"{row['processor_s']:.3g}", str(row["peak_mb"]), *rates])


def scaling_markdown(report: dict[str, Any]) -> str:
    lines = ["# Kernels: scaling", "", "![curves](kernels_scaling.png)", ""]
    lines += ["| | found | expected beforehand |", "|---|---:|---|"]
    lines += [f"| {name} | {value:.3g} | {report['expected'][name]} |" for name, value in report["found"].items()]
    lines += ["", "Growth: p in seconds ~ size^p, between a sweep's ends. One thread unless it says otherwise.", ""]
    peaks = (f"{peak:.3g} GFLOP/s ({count})" for count, peak in report["peak_gflop_per_s"].items())
    lines += ["Peak of a matrix product (threads): " + ", ".join(peaks) + ".", "", "## To the end, one run each"]
    for shape, rows in report["ends"].items():
        lines += ["", f"{shape}, {report['conditions']['threads']} thread(s), products included:", ""]
        lines += ["| solver | iterations | L1 marginal error | seconds | processor seconds | peak MB |"]
        lines += ["|---|---:|---:|---:|---:|---:|"]
        for row in rows:
            shown = f"{row['iterations'] or ''} | {row['marginal_error']:.3g} | {row['clock_s']:.3g}"
            lines.append(f"| {row['solver']} | {shown} | {row['processor_s']:.3g} | {row['peak_mb']} |")
    lines += ["", "## All points", "", f"| threads | N | M | D {HEADER} |", "|---:|---:|---:|---:|---|" + "---:|" * 5]
    for row in report["points"]:
        lines.append(f"| {row['threads']} | {row['N']} | {row['M']} | {row['D']} | {row['op']} | {cells(row)} |")
    lines += ["", *(f"- {key}: {value}" for key, value in report["conditions"].items())]
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], file: Path) -> None:
    """Seconds and share of the peak over each size, the others at the base point."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{file.name} is not written: matplotlib is not installed (pip install '.[bench]')")
        return
    points = report["points"]
    counts, ops = sorted({point["threads"] for point in points}), list(dict.fromkeys(point["op"] for point in points))
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    for row, (key, label) in enumerate((("clock_s", "seconds"), ("of_peak", "products' share of the peak"))):
        for column, axis in enumerate("NMD"):
            axes = figure.add_subplot(2, 3, 3 * row + column + 1)
            draw(axes, points, axis, key)
            axes.set_ylabel(label)
    axes = figure.axes[0]
    handles = [axes.plot([], color=f"C{index}", label=op)[0] for index, op in enumerate(ops)]
    handles += [axes.plot([], color="0.4", ls="-" if n == 1 else "--", label=f"{n} thread(s)")[0] for n in counts]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.savefig(file, dpi=110)


def draw(axes: Any, points: list[dict[str, Any]], axis: str, key: str) -> None:
    """A figure of each op over one size, dashed with several threads."""
    others = {name: statistics.mode(point[name] for point in points) for name in "NMD" if name != axis}
    at_base = [point for point in points if all(point[name] == value for name, value in others.items())]
    ops = list(dict.fromkeys(point["op"] for point in points))
    for count in sorted({point["threads"] for point in points}):
        for index, op in enumerate(ops):
            curve = sorted(
                (point[axis], point[key])
                for point in at_base
                if (point["op"], point["threads"]) == (op, count) and key in point
            )
            if curve:
                style = "-" if count == 1 else "--"
                axes.plot(*zip(*curve, strict=True), style, color=f"C{index}", marker="o", markersize=3)
    ticks = sorted({point[axis] for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set(xlabel=axis, title=", ".join(f"{name} = {value:,}" for name, value in others.items()))
    axes.set(**({"yscale": "log"} if key == "clock_s" else {"ylim": (0, 1.1)}))
    axes.grid(alpha=0.3)
