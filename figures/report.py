"""What a person sees of a cell: a short table and one picture."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter

from figures.style import ACCENT, DARK, LIGHT, MIDDLE, new_figure, save_figure


def table_text(table: pd.DataFrame) -> str:
    """A table as aligned text; shares as per cent would hide their definition, so all stay shares of 1."""

    def cell(value: Any, counts: bool) -> str:
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return "-"
        if isinstance(value, list):
            return "..".join(f"{item:.3f}" for item in value)
        if not isinstance(value, float):
            return str(value)
        if counts or (value.is_integer() and 1.5 < abs(value) < 1e6):
            return str(int(value))
        return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1e6 else f"{value:.2g}"

    def shown(name: Any, value: Any) -> str:
        if name in ("p", "p / f", "cosine >") and isinstance(value, float) and not np.isnan(value):
            return f"{value:.3g}"
        return cell(value, name in ("dead", "seeds"))

    if not len(table):
        return "(no rows)"
    columns = [[str(name), *(shown(name, value) for value in table[name])] for name in table]
    text = [list(row) for row in zip(*columns, strict=True)]
    widths = [max(len(row[i]) for row in text) for i in range(len(table.columns))]
    numeric = [i > 0 and not isinstance(table.iloc[0, i], str) for i in range(len(widths))] if len(table) else []
    lines = []
    for row in text:
        padded = [
            item.rjust(width) if numeric and right else item.ljust(width)
            for item, width, right in zip(row, widths, numeric or [False] * len(widths), strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def result_text(result: Mapping[str, Any], folder: Path) -> str:
    """The short table of one cell: the trained network among its references, and where the rest lies."""
    columns = {
        "dictionary": "row", "FRR 0.8": "frr_080", "FRR 0.9": "frr_090", "precision 0.9": "neuron_precision_090",
        "MCC": "mcc", "loss": "loss", "L0": "mean_l0", "dead": "dead",
    }  # fmt: skip
    planted = result["rows"][0].get("n") is not None
    if not planted:
        columns = {k: v for k, v in columns.items() if v in ("row", "loss", "mean_l0", "dead")}
    table = pd.DataFrame([{name: row.get(key) for name, key in columns.items()} for row in result["rows"]])
    lines = [table_text(table)]
    notes = [f"{row['row']}: {row['note']}" for row in result["rows"] if row.get("note")]
    lines += ["", *[textwrap.shorten(note, 160) for note in notes]]
    if planted:
        lines.append(
            f"chance level of the MCC at this shape: {result['mcc_chance']:.3f}; "
            f"features recovered: {round(result['frr_090'] * result['n'])} of {result['n']} at cosine 0.9"
        )
    if result["status"] == "diverged":
        lines.append(f"THE RUN DIVERGED at step {result['steps']}: lower --learning-rate")
    lines.append(f"{result['steps']} steps in {result['seconds']:.1f} s. Report: {folder}")
    return "\n".join(lines)


def draw_report(path: Path, result: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> None:
    """report.png: training curve, cosine histogram, activation frequency against target."""
    history, features = tables["history"], tables.get("features")
    neurons = tables.get("neurons", pd.DataFrame({"frequency": [], "target": []}, dtype=float))
    figure, axes = new_figure(1, 3, squeeze=True)
    left, middle, right = axes

    trained = history[history["step"] > 0]
    if len(trained):
        left.plot(trained["step"], trained["loss"], color=DARK)
        if (trained["loss"] > 0).all() and np.isfinite(trained["loss"]).all():
            left.set_yscale("log")
    left.set_xlabel("step")
    left.set_ylabel("normalised loss")
    left.set_title("training", fontsize=9, loc="left")

    if features is None:
        middle.text(
            0.5, 0.5, "nothing planted, or diverged:\nrecovery is unknown", ha="center", va="center", color=MIDDLE
        )
        middle.set_axis_off()
    else:
        bins = np.linspace(min(0.0, features["cosine"].min(), features["cosine_untrained"].min()), 1, 51)
        middle.hist(features["cosine_untrained"], bins, color=LIGHT, label="untrained")
        middle.hist(features["cosine"], bins, color=DARK, alpha=0.85, label="trained")
        middle.axvline(0.9, color=ACCENT, lw=1, ls="--")
        middle.set_xlabel("largest cosine of a feature with a neuron")
        middle.set_ylabel("features")
        share = f"{result['frr_090']:.1%}".replace(".0%", "%")
        middle.set_title(f"{share} of {result['n']} above 0.9", fontsize=9, loc="left")
        middle.legend(fontsize=8, frameon=False, loc="upper left")

    measured = neurons["frequency"].to_numpy(float)
    if not len(measured):
        right.set_axis_off()
        save_figure(figure, path)
        return
    floor = 0.5 / max(result["samples"], 1)
    shown = np.maximum(measured, floor)
    if neurons["target"].notna().any():
        x, label = neurons["target"].to_numpy(float), "target activation frequency"
        spread = np.exp(0.08 * np.linspace(-1, 1, len(x))) if len(np.unique(x)) < len(x) else 1.0
    else:
        x, spread, label = np.arange(1, len(measured) + 1, dtype=float), 1.0, "neuron, by frequency"
        shown = np.sort(shown)[::-1]
    right.plot(x * spread, shown, ".", color=DARK, ms=3, alpha=0.5)
    if label.startswith("target"):
        line = np.array([x.min() / 3, x.max() * 3])
        right.plot(line, line, color=ACCENT, lw=1, ls="--", label="measured = target")
        right.legend(fontsize=8, frameon=False)
        right.set_xscale("log")
        if len(np.unique(x)) == 1:
            right.set_xlim(x[0] / 10, x[0] * 10)
            right.set_ylim(min(x[0] / 10, shown.min() / 2), max(x[0] * 10, shown.max() * 2))
    right.set_yscale("log")
    for axis in (right.xaxis, right.yaxis):
        axis.set_minor_formatter(NullFormatter())
    right.set_xlabel(label)
    right.set_ylabel("measured activation frequency")
    right.set_title(f"{int((measured == 0).sum())} of {len(measured)} neurons dead", fontsize=9, loc="left")
    save_figure(figure, path)
