"""The picture of `sae-recovery compare`: recovery of every method, a panel per world and width."""

from pathlib import Path

import numpy as np
import pandas as pd

from figures.style import ACCENT, DARK, LIGHT, MIDDLE, new_figure, save_figure


def draw_compare(short: pd.DataFrame, bounds: pd.DataFrame, n: int, path: Path) -> None:
    """FRR at 0.9 per method: filled at its own best, open at matched L0, over what the width allows.

    Args:
        short: a row per world, M, method and point, as `figures.compare.summary` makes it.
        bounds: of its rows, those of classical learners are drawn.
        n: number of features; M / n of them is the most that M neurons can hold.
    """
    worlds, widths = list(dict.fromkeys(short["world"])), sorted(set(short["M"]))
    methods = list(dict.fromkeys(short["method"]))
    classical = [row for row in dict.fromkeys(bounds["row"]) if row not in ("true dictionary", "logistic probe")]
    classical = [row for row in classical if bounds[bounds["row"] == row]["FRR 0.9"].notna().any()]
    names = methods + classical
    height = 0.5 + 0.17 * len(names)
    figure, panels = new_figure(len(widths), len(worlds), width=2.9, height=height)
    panels = np.asarray(panels).reshape(len(widths), len(worlds))
    for i, M in enumerate(widths):
        for j, world in enumerate(worlds):
            axis = panels[i, j]
            here = short[(short["world"] == world) & (short["M"] == M)]
            for k, method in enumerate(names):
                colour = ACCENT if method.startswith(("BA", "GBA")) and method != "BatchTopK" else DARK
                if method in classical:
                    found = bounds[(bounds["world"] == world) & (bounds["row"] == method) & (bounds["M"] == M)]
                    axis.plot(found["FRR 0.9"], [k] * len(found), "D", ms=3.5, color=MIDDLE)
                    continue
                for point, shift, fill in (("matched L0", 0.17, "white"), ("best", -0.17, colour)):
                    for _, row in here[(here["method"] == method) & (here["point"] == point)].iterrows():
                        mean, half = row["FRR 0.9"], np.nan_to_num(row["FRR 0.9 ±"])  # no interval with one seed
                        ends = [[min(half, mean)], [min(half, 1 - mean)]] if half > 0 else None
                        mark, size = ("o", 3.5) if point == "best" or row["L0 matched"] == "yes" else ("x", 3)
                        axis.errorbar(mean, k + shift, xerr=ends, fmt=mark, ms=size, lw=0.9, color=colour, mfc=fill)
            axis.axvline(min(1.0, M / n), color=LIGHT, lw=1)
            axis.axvline(here["untrained"].mean(), color=LIGHT, lw=1, ls=":")
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
        f"filled: own best; open: matched L0 (cross: not reached); 95 % intervals, {short['seeds'].max()} seeds; "
        "line: all that M neurons can hold; dotted: untrained"
    )
    figure.suptitle(told, fontsize=7)
    save_figure(figure, path)
