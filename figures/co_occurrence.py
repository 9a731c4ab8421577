"""Figure co-occurrence: recovery against rho_2, with the paper's n^{-1/2} marked.

The cells are those of the preset robustness-cooccurrence (one pair, pairs all over, a hub); small leaves out
n = 4,096.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from figures.cells import Cell
from figures.claims import Claim
from figures.experiments import Experiment, mean_and_interval
from figures.robustness import cooccurrence_cells, pair_columns
from figures.style import ACCENT, DARK, LIGHT, MARKERS, MIDDLE, line_with_interval, new_figure, save_figure

BY = ("structure", "n", "rho_2", "sqrt(n) rho_2")
COLUMNS = {"frr_090": "FRR 0.9", "frr_080": "FRR 0.8", "cosine of 0": "cosine of 0", "cosine of 1": "cosine of 1"}


def cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    found = cooccurrence_cells(seeds, size)
    return [item for item in found if item[0]["n"] < 4_000] if size == "small" else found


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds; the cosines are those of the pair, or of the hub (0) and one of its partners (1)."""
    return mean_and_interval(table, BY, COLUMNS)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Share recovered against sqrt(n) rho_2 (all features) and cosine of the features concerned against rho_2."""
    short = summarise(table)
    short["concerned"] = short[["cosine of 0", "cosine of 1"]].min(axis=1)
    hub = short["structure"] == "hub"
    short.loc[hub, "concerned"] = short.loc[hub, "cosine of 0"]
    # An interval over two seeds is wider than the axis.
    short["concerned ±"] = short["cosine of 0 ±"].where(short["seeds"] > 2)
    short["FRR 0.9 ±"] = short["FRR 0.9 ±"].where(short["seeds"] > 2)
    figure, (left, right) = new_figure(1, 2, width=4.8, height=3.6)
    for (structure, n), part in short.groupby(["structure", "n"], sort=False):
        structures = list(dict.fromkeys(short["structure"]))
        place = structures.index(structure)
        look = {
            "color": (DARK, ACCENT, MIDDLE)[place % 3], "marker": MARKERS[place], "label": f"{structure}, n = {n:,}",
            "ls": ("-", "--", ":")[sorted(short["n"].unique()).index(n) % 3],
        }  # fmt: skip
        line_with_interval(left, part, "sqrt(n) rho_2", "FRR 0.9", **look)
        line_with_interval(right, part, "rho_2", "concerned", **look)
    for axis, name in ((left, "sqrt(n) rho_2"), (right, "rho_2")):
        axis.set_xscale("log")
        axis.set_xlabel(name)
        axis.set_ylim(-0.03, 1.05)
    left.axvline(1, color=LIGHT, lw=1.5)
    left.text(1, 0.02, " rho_2 = 1 / sqrt n", fontsize=7)
    right.axhline(0.9, color=LIGHT, lw=1)
    left.set_ylabel("features recovered, cosine > 0.9")
    left.legend(fontsize=7, frameon=False)
    right.set_ylabel("cosine of the pair (the worse one), of the hub")
    low, high = short["seeds"].min(), short["seeds"].max()
    left.set_title(f"BA, p = 2 f; {low} to {high} seeds, 95 % intervals from 3 on", fontsize=8, loc="left")
    save_figure(figure, path)


def claims(table: pd.DataFrame) -> list[Claim]:
    """A drop near n^{-1/2}."""
    short = summarise(table)
    pairs = short[short["structure"] == "pairs"]
    beyond = pairs[pairs["sqrt(n) rho_2"] > 2]
    least = float(beyond["FRR 0.9"].min()) if len(beyond) else None
    one = short[short["structure"] == "one pair"]
    lost = one[one[["cosine of 0", "cosine of 1"]].min(axis=1) < 0.9]
    merged, by_n = lost["rho_2"], lost.groupby("n")["rho_2"].min()
    return [
        Claim(
            "Recovery drops near rho_2 = n^(-1/2) (smallest share recovered beyond twice that, all features in pairs)",
            least, None, None if least is None else least < 0.9,
            "H3 is needed by the proof; trained BA tells partners apart far beyond it."
            if least is not None and least >= 0.9 else "As the title of the paper's figure says.",
        ),
        Claim(
            "A single pair merges only when it nearly always co-occurs (smallest rho_2 at which its cosine is below "
            "0.9; not in the paper)", float(merged.min()) if len(merged) else None, None, None,
            "By n: " + ", ".join(f"{n:,}: {least:g}" for n, least in by_n.items())
            + ". A power n^(-1/2) would halve it from n = 256 to 1,024." if len(merged) else "It never does here.",
        ),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    "co-occurrence", "Recovery against the largest co-occurrence rho_2", cells, summarise, draw, seeds=(0, 1, 2),
    measure=pair_columns, claims=claims,
)  # fmt: skip
