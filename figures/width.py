"""Figure width: recovery against the number of neurons M and the coefficient level h.

With exactly s equal coefficients in unit rows h = 1 / sqrt(s), so that 1 / h^2 = s. The theorem asks for
M >~ n p^{-s/(1-eps)^2}, which grows exponentially in 1 / h^2.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures.cells import Cell
from figures.claims import Claim
from figures.experiments import Experiment, Finished, mean_and_interval
from figures.style import ACCENT, DARK, MARKERS, MIDDLE, line_with_interval, new_figure, save_figure, seeds_text
from simulator import BA, Exactly, Training, World
from theory.bounds import log_width_power_form

LEVELS = (2, 3, 4, 6, 8)
"""s = 1 / h^2."""
RATIOS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""M / n."""
MULTIPLE = 2.0
"""p / f."""


def cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    n, d, steps = (32, 16, 40) if size == "tiny" else (256, 64, 1_500)
    if size in ("paper", "full"):
        n, d, steps = 4_096, 256, 6_000
    found = []
    for s in LEVELS[:2] if size == "tiny" else LEVELS:
        for ratio in RATIOS[1:3] if size == "tiny" else RATIOS:
            training = Training(
                BA(MULTIPLE * s / n), round(ratio * n), steps, 512, learning_rate=3e-3, decay=0.7,
                start_bias="quantile",
            )  # fmt: skip
            world = World(n, d, Exactly(s))
            label = {"1/h^2": s, "M / n": ratio}
            found += [(label, Cell(world, training, seed, samples=2_000, references=False)) for seed in seeds]
    return found


def collect(done: Sequence[Finished]) -> pd.DataFrame:
    """One row per cell, with the width that the theorem asks for (power form, eps -> 0) over n."""
    rows = []
    for one in done:
        assert one.cell.world is not None
        assert isinstance(one.cell.training.method, BA)
        n, p, s = one.cell.world.n, one.cell.training.method.p, one.label["1/h^2"]
        asked = float(np.exp(log_width_power_form(n, p, s, 1e-9)) / n)
        rows.append(one.row() | {"n": n, "d": one.cell.world.d, "theorem M / n": asked})
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds."""
    columns = {"frr_090": "FRR 0.9", "frr_080": "FRR 0.8", "theorem M / n": "theorem M / n"}
    return mean_and_interval(table, ["1/h^2", "M / n"], columns).drop(columns="theorem M / n ±")


def draw(table: pd.DataFrame, path: Path) -> None:
    """Left: share recovered against M / n, one line per level. Right: the M / n needed for 0.9, and the theorem's."""
    short = summarise(table)
    figure, (left, right) = new_figure(1, 2, width=4.6, height=3.5)
    levels = sorted(short["1/h^2"].unique())
    for k, level in enumerate(levels):
        look = {"color": (DARK, MIDDLE, ACCENT)[k % 3], "ls": ("-", "--")[k // 3 % 2], "marker": MARKERS[k % 5]}
        part = short[short["1/h^2"] == level]
        line_with_interval(left, part, "M / n", "FRR 0.9", label=f"1/h² = s = {level}", **look)
    left.set_xscale("log", base=2)
    left.set_xlabel("width M / n")
    left.set_ylabel("features recovered, cosine > 0.9")
    left.set_ylim(-0.03, 1.05)
    left.legend(fontsize=7, frameon=False)
    needed = needed_width(short)
    right.plot(needed.index, needed, "o-", color=DARK, label="measured: M / n for 0.9")
    asked = short.groupby("1/h^2")["theorem M / n"].mean()
    right.plot(asked.index, asked, "s--", color=ACCENT, label="theorem: p^(-s)")
    right.set_yscale("log")
    right.set_xlabel("1/h² = s")
    right.set_ylabel("width M / n")
    right.legend(fontsize=7, frameon=False)
    n, d = int(table["n"].iloc[0]), int(table["d"].iloc[0])
    left.set_title(f"n = {n:,}, d = {d}, p = {MULTIPLE:g} f; {seeds_text(table)}", fontsize=8, loc="left")
    save_figure(figure, path)


def needed_width(short: pd.DataFrame) -> pd.Series:
    """Smallest M / n of the grid at which 0.9 of the features are recovered, per level (NaN where none is)."""
    good = short[short["FRR 0.9"] >= 0.9].groupby("1/h^2")["M / n"].min()
    return good.reindex(sorted(short["1/h^2"].unique()))


def claims(table: pd.DataFrame) -> list[Claim]:
    """Width is needed, and more of it at smaller coefficients; too much of it costs."""
    short = summarise(table)
    needed = needed_width(short)
    known = needed.dropna()
    asked = short.groupby("1/h^2")["theorem M / n"].mean()
    ratio = float((known / asked.reindex(known.index)).max()) if len(known) else None
    growth = float(known.iloc[-1] / known.iloc[0]) if len(known) > 1 else None
    widths = ", ".join(f"{level}: {'none' if np.isnan(width) else f'{width:g}'}" for level, width in needed.items())
    wide = short.pivot_table(index="1/h^2", columns="M / n", values="FRR 0.9")
    lost = wide.max(axis=1) - wide[wide.columns.max()]
    return [
        Claim(
            "The width that is needed grows with 1/h^2 (M / n for a share of 0.9, largest level over smallest)", growth,
            float(asked.iloc[-1] / asked.iloc[0]), None if growth is None else growth > 1,
            f"M / n for 0.9 by level: {widths}. Training for many steps needs about one neuron per feature; the "
            "proof's single step needs one that starts aligned.",
        ),
        Claim(
            "The theorem's width n p^(-s) is sufficient, not necessary (needed over asked, largest over the levels)",
            ratio, None, None if ratio is None else ratio <= 1,
            "The two differ by many orders of magnitude.",
        ),
        Claim(
            "More width than needed costs recovery (not in the paper, whose theorem only asks for enough: largest loss "
            "of the share recovered from the best width to the widest)", float(lost.max()), None, None,
            "Likely reason: at p = 2 f every neuron may fire on twice its feature's share. With many neurons per "
            "feature these share the feature's samples and their reconstruction, and interference from other features "
            f"bends them: at M = {wide.columns.max():g} n the loss is "
            + ", ".join(f"{x:.2f} (1/h^2 = {s})" for s, x in lost.items()) + ".",
        ),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    "width", "Recovery against width and coefficient level", cells, summarise, draw, seeds=(0, 1, 2), collect=collect,
    claims=claims,
)  # fmt: skip
