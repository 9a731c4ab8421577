"""The picture of `sae-recovery compare`: recovery of every method, a panel per world and width."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from figures.style import ACCENT, DARK, LIGHT, MIDDLE, new_figure, save_figure


def _mean(values: pd.Series) -> tuple[float, float]:
    """Mean and half-width of its 95 % t interval (0 for a single seed)."""
    numbers = values.astype(float).dropna().to_numpy()
    if not len(numbers):
        return np.nan, 0.0
    half = stats.t.ppf(0.975, len(numbers) - 1) * stats.sem(numbers) if len(numbers) > 1 else 0.0
    return float(numbers.mean()), float(half)


def draw_compare(table: pd.DataFrame, short: pd.DataFrame, bounds: pd.DataFrame, n: int, path: Path) -> None:
    """FRR at 0.9 per method: filled at its own best, open at matched L0, over what the width allows.

    Args:
        table: one row per run. short: its summary, which says whether an L0 is the matched one ("x" where it is not).
        bounds: unused by the recovery panels but for the classical rows.
        n: number of features; M / n of them is the most that M neurons can hold.
    """
    worlds, widths = list(dict.fromkeys(table["world"])), sorted(set(table["M"]))
    methods = list(dict.fromkeys(table["method"]))
    classical = [row for row in dict.fromkeys(bounds["row"]) if row not in ("true dictionary", "logistic probe")]
    classical = [row for row in classical if bounds[bounds["row"] == row]["FRR 0.9"].notna().any()]
    names = methods + classical
    aimed = short[short["point"] == "matched L0"]
    matches = zip(aimed["world"], aimed["method"], aimed["M"], aimed["L0 matched"] == "yes", strict=True)
    near = {(world, method, M): matched for world, method, M, matched in matches}
    height = 0.5 + 0.17 * len(names)
    figure, panels = new_figure(len(widths), len(worlds), width=2.9, height=height)
    panels = np.asarray(panels).reshape(len(widths), len(worlds))
    for i, M in enumerate(widths):
        for j, world in enumerate(worlds):
            axis = panels[i, j]
            here = table[(table["world"] == world) & (table["M"] == M)]
            for k, method in enumerate(names):
                colour = ACCENT if method.startswith(("BA", "GBA")) and method != "BatchTopK" else DARK
                if method in classical:
                    found = bounds[(bounds["world"] == world) & (bounds["row"] == method) & (bounds["M"] == M)]
                    axis.plot(found["FRR 0.9"], [k] * len(found), "D", ms=3.5, color=MIDDLE)
                    continue
                for point, shift, fill in (("matched L0", 0.17, "white"), ("best", -0.17, colour)):
                    mean, half = _mean(here[(here["method"] == method) & (here["point"] == point)]["frr_090"])
                    ends = [[min(half, mean)], [min(half, 1 - mean)]] if half > 0 else None
                    mark, size = ("o", 3.5) if point == "best" or near.get((world, method, M)) else ("x", 3)
                    axis.errorbar(mean, k + shift, xerr=ends, fmt=mark, ms=size, lw=0.9, color=colour, mfc=fill)
            before = _mean(here["frr_090_untrained"])[0]
            axis.axvline(min(1.0, M / n), color=LIGHT, lw=1)
            axis.axvline(before, color=LIGHT, lw=1, ls=":")
            axis.set_xlim(-0.03, 1.03)
            axis.set_ylim(len(names) - 0.4, -0.6)
            axis.set_yticks(range(len(names)), names if j == 0 else [""] * len(names), fontsize=7)
            axis.tick_params(axis="x", labelsize=7)
            if i == 0:
                axis.set_title(world, fontsize=8)
            if j == len(worlds) - 1:
                axis.text(1.05, 0.5, f"M = {M}\n= {M / n:g} n", transform=axis.transAxes, fontsize=7, va="center")
            if i == len(widths) - 1:
                axis.set_xlabel("features recovered, cosine > 0.9", fontsize=7)
    told = (
        f"filled: own best; open: matched L0 (cross: not reached); 95 % intervals, {table['seed'].nunique()} seeds; "
        "line: all that M neurons can hold; dotted: untrained"
    )
    figure.suptitle(told, fontsize=7)
    save_figure(figure, path)
