"""Presets resonance and resonance-buffer: the frozen predictor scored on runs of its own, and two hypotheses tested."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter

from figures.experiments import Experiment
from figures.heat_map import PAPER, D, P
from figures.resonance_cells import buffer_cells, held_out_cells
from figures.style import ACCENT, DARK, LIGHT, MARKERS, MIDDLE, new_figure, save_figure
from theory.resonance import Rectangle, Setting, fit_rectangle, predict

PREDICTORS = {
    "predictor": "predicted 0.9", "rectangle": "rectangle", "constant": "constant",
    "theorem band, finite s": "theorem band",
    "limit band f .. min(sqrt f, f d)": "limit band",
}  # fmt: skip


def paper_settings() -> list[Setting]:
    """The 81 cells of the authors' map; how many adaptations they ran is not known (150 assumed, B = 25,600)."""
    return [Setting(65_536, round(d), 3, 262_144, p, "one-sided", 25_600, 150) for p in P for d in D]


def paper_rectangle() -> Rectangle:
    """Three numbers fitted to the digitised map, in units of f and of d / s."""
    return fit_rectangle(paper_settings(), PAPER.ravel())


def edge(x: np.ndarray, y: np.ndarray, rising: bool) -> float:
    """Where y first crosses 1/2 upwards (or last crosses it downwards), interpolated in log x; NaN if it does not."""
    above = y >= 0.5
    crossings = [k for k in range(len(y) - 1) if above[k] != above[k + 1] and above[k + 1] == rising]
    if not crossings:
        return float("nan")
    k = crossings[0] if rising else crossings[-1]
    share = (0.5 - y[k]) / (y[k + 1] - y[k])
    return float(np.exp((1 - share) * np.log(x[k]) + share * np.log(x[k + 1])))


def edges(table: pd.DataFrame, column: str) -> dict[tuple[str, str], float]:
    """Lower and upper edge in p / f of every sweep in p, small-d edge in d / s of every sweep in d."""
    found = {}
    for sweep, part in table.groupby("sweep"):
        kinds = (
            {"lower": ("p / f", True), "upper": ("p / f", False)}
            if str(sweep)[0] == "p"
            else {"small d": ("d / s", True)}
        )
        for kind, (axis, rising) in kinds.items():
            part = part.sort_values(axis)
            found[str(sweep), kind] = edge(part[axis].to_numpy(float), part[column].to_numpy(float), rising)
    return found


def score(table: pd.DataFrame) -> pd.DataFrame:
    """One row per predictor: errors of the share recovered at cosine 0.9, mean over the seeds of a cell.

    The constant is the mean of the scored cells themselves, which favours it. Brier: mean over features of
    (predicted probability - recovered or not)^2. Edge errors: mean |log(predicted / measured)| over the sweeps
    where both have the edge; in brackets the sweeps where only one has it.
    """
    by = [
        name
        for name in table.columns
        if name in PREDICTORS.values() or name in ("sweep", "p / f", "d / s", "predicted 0.8")
    ]
    cells = table.groupby(by, sort=False)[["frr_080", "frr_090"]].mean().reset_index()
    cells["constant"] = cells["frr_090"].mean()
    measured = edges(cells, "frr_090")
    y = cells["frr_090"].to_numpy(float)
    lower = float(np.abs(cells["predicted 0.8"] - cells["frr_080"]).mean())
    rows = []
    for name, column in PREDICTORS.items():
        q = cells[column].to_numpy(float)
        row: dict[str, Any] = {
            "predictor": name, "cells": len(cells), "MAE 0.9": float(np.abs(q - y).mean()),
            "MAE 0.8": lower if name == "predictor" else np.nan,
            "Brier": float((q * q - 2 * q * y + y).mean()),
        }  # fmt: skip
        told = edges(cells, column)
        for kind in ("lower", "upper", "small d"):
            pairs = [(told[key], measured[key]) for key in measured if key[1] == kind]
            errors = [abs(np.log(a / b)) for a, b in pairs if np.isfinite(a) and np.isfinite(b)]
            missed = sum(np.isfinite(a) != np.isfinite(b) for a, b in pairs)
            row[f"{kind} edge"] = (f"{np.mean(errors):.2f}" if errors else "-") + f" ({missed} of {len(pairs)})"
        rows.append(row)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Predicted against measured share, the sweeps in p, and the authors' 81 cells beside the prediction for them."""
    figure, axes = new_figure(2, 2)
    (left, right), maps = axes
    for k, (rule, part) in enumerate(table.groupby("rule", sort=False)):
        colour = (DARK, ACCENT)[k]
        left.plot(part["predicted 0.9"], part["frr_090"], MARKERS[k], ms=4, color=colour, alpha=0.6, label=rule)
    left.plot([0, 1], [0, 1], color=LIGHT, lw=1)
    left.set_xlabel("predicted share at cosine > 0.9 (frozen)")
    left.set_ylabel("measured share")
    left.legend(fontsize=8, frameon=False)
    left.set_title(f"{table['sweep'].nunique()} sweeps, seeds: {table['seed'].nunique()}", fontsize=9, loc="left")
    sweeps = table[table["sweep"].str.startswith("p")]
    for k, (_, part) in enumerate(sweeps.groupby("sweep")):
        mean = part.groupby("p / f")[["frr_090", "predicted 0.9"]].mean().reset_index()
        colour = (DARK, MIDDLE, LIGHT, ACCENT)[k % 4]
        right.plot(mean["p / f"], mean["frr_090"], MARKERS[k % 5], ms=4, color=colour)
        name = ", ".join(f"{name} {part[name].iloc[0]}" for name in ("n", "d", "s"))
        right.plot(mean["p / f"], mean["predicted 0.9"], color=colour, lw=1, ls=("-", "--")[k // 4], label=name)
    right.set_xscale("log")
    right.set_xlabel("p / f")
    right.legend(fontsize=6, frameon=False, loc="lower left")
    right.set_title("points: runs, lines: predicted", fontsize=9, loc="left")
    paper = paper_prediction()
    for axis, column, title in zip(
        maps, ("predicted 0.9", "authors"), ("predicted for the authors' map", "authors (read off)"), strict=True
    ):
        axis.imshow(
            paper[column].to_numpy().reshape(PAPER.shape), origin="lower", cmap="cividis", vmin=0, vmax=1, aspect="auto"
        )
        axis.set_xticks(range(len(D)), [f"{d:g}" for d in D], fontsize=7)
        axis.set_yticks(range(len(P)), [f"{p * 65_536 / 3:.2g}" for p in P], fontsize=7)
        axis.set_xlabel("dimension d")
        axis.set_ylabel("p / f")
        axis.set_title(title, fontsize=9, loc="left")
    save_figure(figure, path)


EXPERIMENT = Experiment(
    "resonance", "the frozen resonance predictor on settings that its development never saw", held_out_cells, score,
    draw,
    (0, 1),
)  # fmt: skip


def aligned(folder: Path) -> dict[str, float]:
    """Of the neurons at cosine > 0.8 with their feature: measured frequency over target, and recall (medians)."""
    features, neurons = pd.read_csv(folder / "features.csv"), pd.read_csv(folder / "neurons.csv")
    held = features[features["cosine"] > 0.8]
    if not len(held):
        return {"frequency / target": np.nan, "recall": np.nan}
    own = neurons.iloc[held["neuron"].to_numpy()]
    return {
        "frequency / target": float((own["frequency"] / own["target"]).median()),
        "recall": float(held["recall"].median()),
    }  # fmt: skip


def buffer_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds per world, rule, f B and p / f."""
    by = ["world", "rule", "f B", "p / f", "adaptations", "floor(p B)", "count balance", "predicted 0.9"]
    names = {"frr_090": "FRR 0.9", "frr_080": "FRR 0.8"}
    columns = [*names, "frequency / target", "recall"]
    return table.groupby(by, sort=False, dropna=False)[columns].mean().reset_index().rename(columns=names)


def draw_buffer(table: pd.DataFrame, path: Path) -> None:
    """Per world: share recovered, and share of a feature's samples on which its neuron fires; a column per rule."""
    short = buffer_table(table)
    worlds = list(short.groupby("world", sort=False))
    figure, axes = new_figure(2 * len(worlds), 2, squeeze=False)
    for place, (world, cells) in enumerate(worlds):
        for column, (rule, part) in enumerate(cells.groupby("rule", sort=False)):
            top, bottom = axes[2 * place][column], axes[2 * place + 1][column]
            for k, (count, line) in enumerate(part.groupby("f B")):
                style = {"marker": MARKERS[k % 5], "ms": 4, "lw": 1, "color": (DARK, MIDDLE, LIGHT, ACCENT)[k % 4]}
                top.plot(line["p / f"], line["FRR 0.9"], label=f"f B = {count:g}", **style)
                bottom.plot(line["p / f"], line["recall"], **style)
                bottom.plot(line["p / f"], line["count balance"], color=style["color"], lw=0.8, ls=":")
            for axis in (top, bottom):
                axis.set_xscale("log")
                axis.xaxis.set_minor_formatter(NullFormatter())
                axis.set_xticks([0.25, 0.5, 1, 2], ["1/4", "1/2", "1", "2"])
                axis.set_ylim(-0.03, 1.05)
                axis.set_xlabel("p / f")
            top.set_title(f"{rule}; {world}", fontsize=9, loc="left")
            if column == 0:
                top.set_ylabel("features recovered, cosine > 0.9")
                bottom.set_ylabel("recall of the aligned neuron\n(dotted: count balance)")
                top.legend(fontsize=7, frameon=False)
    save_figure(figure, path)


BUFFER_EXPERIMENT = Experiment(
    "resonance-buffer", "does the one-sided rule's count balance make the lower edge?", buffer_cells, buffer_table,
    draw_buffer, (0,), aligned,
)  # fmt: skip


def paper_prediction() -> pd.DataFrame:
    """The predictor on the authors' 81 cells, shown and not aimed at."""
    settings = paper_settings()
    return pd.DataFrame(
        {
            "p": [setting.p for setting in settings], "d": [setting.d for setting in settings],
            "authors": PAPER.ravel(), "predicted 0.8": predict(settings, 0.8).recovered,
            "predicted 0.9": predict(settings, 0.9).recovered,
        }
    )  # fmt: skip
