"""Recovery against the target frequency p in units of the features' own frequency f: one world, many p.

Shared by the presets first-recovery (128 features) and thousand-features (1,024 features).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter

from figures.cells import Cell
from figures.experiments import mean_and_interval
from figures.style import ACCENT, DARK, LIGHT, MARKERS, MIDDLE, new_figure, save_figure
from simulator import BA, GBA, Training, World

SHOWN = {
    "frr_090": "FRR 0.9", "frr_080": "FRR 0.8", "frr_090_untrained": "untrained", "neuron_precision_090": "precision",
    "mcc": "MCC", "loss": "loss", "mean_l0": "L0", "seconds": "s / run",
}  # fmt: skip


def sweep_cells(
    world: World,
    training: Training,
    multiples: Sequence[float],
    starts: Sequence[str],
    seeds_at: dict[float, Sequence[int]] | Sequence[int],
    gba: GBA | None = None,
) -> list[tuple[dict[str, Any], Cell]]:
    """BA at every p = multiple * f and start of the biases; and GBA, which is told nothing about f."""
    f = float(world.frequencies().mean())
    cells: list[tuple[dict[str, Any], Cell]] = []
    for start in starts:
        for multiple in multiples:
            p = min(0.99, multiple * f)
            run = replace(training, method=BA(p, buffer=training.method.buffer), start_bias=start)  # type: ignore[union-attr]
            label = {"method": "BA", "biases start at": start, "p / f": multiple, "p": float(f"{p:.6g}")}
            for seed in seeds_at[multiple] if isinstance(seeds_at, dict) else seeds_at:
                # The references depend on the world and the width only: once per seed is enough.
                first = start == starts[0] and multiple == multiples[0]
                cells.append((label, Cell(world, run, seed, references=first)))
        if gba is not None:
            run = replace(training, method=gba, start_bias=start)
            label = {
                "method": f"GBA {gba.htf:g}..{gba.ltf:g}",
                "biases start at": start,
                "p / f": np.nan,
                "p": np.nan,
            }
            seeds = seeds_at[multiples[0]] if isinstance(seeds_at, dict) else seeds_at
            cells += [(label, Cell(world, run, seed, references=False)) for seed in seeds]
    return cells


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds with the 95 % interval of the recovery rate."""
    short = mean_and_interval(table, ["method", "biases start at", "p / f", "p"], SHOWN)
    return short[
        [
            "method",
            "biases start at",
            "p / f",
            "p",
            "seeds",
            "FRR 0.9",
            "FRR 0.9 ±",
            *list(SHOWN.values())[1:],
        ]
    ]


def draw(table: pd.DataFrame, path: Path) -> None:
    """FRR at 0.9 against p / f, every seed a point, the mean a line; GBA as a level."""
    figure, axis = new_figure(width=6.4, height=3.8)
    swept = table[table["method"] == "BA"]
    for (start, group), colour, marker in zip(
        swept.groupby("biases start at", sort=False), (DARK, ACCENT), MARKERS, strict=False
    ):
        mean = group.groupby("p / f")["frr_090"].mean()
        axis.plot(mean.index, mean.to_numpy(), color=colour, lw=1.6, label=f"BA, biases start at {start}")
        axis.plot(group["p / f"], group["frr_090"], marker, color=colour, ms=4, alpha=0.6)
    untrained = swept.groupby("p / f")["frr_090_untrained"].mean()
    axis.plot(untrained.index, untrained.to_numpy(), color=MIDDLE, ls=":", label="untrained network")
    for name, group in table[table["method"] != "BA"].groupby("method"):
        for (start, part), style in zip(group.groupby("biases start at", sort=False), ("--", "-."), strict=False):
            axis.axhline(part["frr_090"].mean(), color=LIGHT, ls=style, label=f"{name}, {start}: told nothing of f")
    axis.set_xscale("log")
    shown = sorted(swept["p / f"].unique())
    axis.set_xticks([x for x in shown if x != 1.28], [f"{x:g}" for x in shown if x != 1.28])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("target activation frequency p / feature frequency f")
    axis.set_ylabel("share of features recovered\n(cosine > 0.9)")
    seeds = table.groupby(["method", "biases start at", "p / f"], dropna=False)["seed"].nunique()
    count = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    axis.set_title("1 seed per point" if count == "1" else f"{count} seeds per point", fontsize=9, loc="left")
    axis.legend(fontsize=8, frameon=False)
    save_figure(figure, path)
