"""Figure group-ablation: highest and lowest target frequency (HTF, LTF) and number of groups of GBA."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter

from figures.cells import Cell
from figures.claims import Claim
from figures.experiments import Experiment, Finished, mean_and_interval, measured
from figures.planted import Planted, planted, real
from figures.style import ACCENT, DARK, LIGHT, MARKERS, MIDDLE, line_with_interval, new_figure, save_figure, seeds_text
from simulator import GBA, TopK

HTF, LTF, GROUPS = (0.05, 0.1, 0.3, 0.5), (1e-2, 1e-3, 1e-4), (1, 3, 10, 20)
# Largest relative change of the loss over the authors' six (HTF, LTF): from 10 to 20 groups, and from 3 to 10.
PAPER_10_TO_20, PAPER_3_TO_10 = 0.043, 0.36


def cells(
    seeds: Sequence[int], size: str, settings: Callable[[str], Planted] = planted
) -> list[tuple[dict[str, Any], Cell]]:
    """The grid at half the width of the other figures, and TopK as the line to compare with.

    One group has the target HTF only.
    """
    own = settings(size)
    M = own.neurons // 2 if size == "small" else own.neurons
    high, low = ((0.1, 0.5), (1e-2, 1e-3)) if size == "tiny" else (HTF, LTF)
    found = []
    for htf in high:
        for groups in GROUPS:
            for ltf in low if groups > 1 else (htf,):
                label = {"method": "GBA", "HTF": htf, "LTF": ltf, "groups": groups}
                found += [(label, own.cell(GBA(htf, ltf, groups), seed, M)) for seed in seeds]
    for k in own.topk:
        label = {"method": "TopK", "HTF": np.nan, "LTF": np.nan, "groups": k}
        found += [(label, own.cell(TopK(k), seed, M)) for seed in seeds]
    return found


def collect(done: Sequence[Finished]) -> pd.DataFrame:
    """One row per cell; for TopK `groups` holds K."""
    rows = [one.row() for one in done]
    for row, one in zip(rows, done, strict=True):
        row["fraction"] = None if row["mean_l0"] is None else row["mean_l0"] / one.cell.training.neurons
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds."""
    columns = {"loss": "loss", "fraction": "fraction", "frr_090": "FRR 0.9"}
    short = mean_and_interval(table.dropna(subset=["loss"]), ["method", "HTF", "LTF", "groups"], columns)
    return measured(short)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Upper row: loss against fraction, one panel per HTF, with TopK. Lower row: against the number of groups."""
    short = summarise(table)
    gba, topk = short[short["method"] == "GBA"], short[short["method"] == "TopK"]
    high = sorted(gba["HTF"].unique())
    lower = [("loss", "normalised loss"), ("fraction", "fraction of activated neurons")]
    lower += [("FRR 0.9", "features recovered, cosine > 0.9")] if "FRR 0.9" in short else []
    columns = max(len(high), len(lower) + 1)
    figure, axes = new_figure(2, columns, width=2.9, height=2.7, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    colours = (ACCENT, LIGHT, MIDDLE, DARK)
    for column, htf in enumerate(high):
        axis = axes[0, column]
        axis.set_axis_on()
        axis.plot(topk["fraction"], topk["loss"], color="#999999", lw=1, label="TopK (post)")
        for k, groups in enumerate(sorted(gba["groups"].unique())):
            part = gba[(gba["HTF"] == htf) & (gba["groups"] == groups)]
            look = {"color": colours[k % 4], "marker": MARKERS[k % 5], "mec": DARK, "mew": 0.5}
            axis.plot(
                part["fraction"],
                part["loss"],
                ls="",
                ms=6,
                label="1 group" if groups == 1 else f"{groups:.0f} groups",
                **look,
            )
        axis.set_xscale("log")
        axis.set_xlim(short["fraction"].min() / 1.3, gba["fraction"].max() * 1.3)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(f"HTF = {htf:g}", fontsize=9, loc="left")
        axis.set_xlabel("fraction of activated neurons", fontsize=8)
        axis.set_ylim(0, max(gba["loss"].max(), 0.05) * 1.1)
    axes[0, 0].set_ylabel("normalised loss")
    axes[0, 0].legend(fontsize=7, frameon=False)
    several = gba[(gba["groups"] > 1) & gba["HTF"].isin((0.05, 0.1) if len(high) > 2 else high)]
    for column, (name, label) in enumerate(lower):
        axis = axes[1, column]
        axis.set_axis_on()
        for k, ((htf, ltf), part) in enumerate(several.groupby(["HTF", "LTF"])):
            look = {"color": (DARK, ACCENT)[k // 3 % 2], "marker": MARKERS[k % 3], "ls": ("-", "--", ":")[k % 3]}
            line_with_interval(axis, part, "groups", name, label=f"({htf:g}, {ltf:g})", **look)
        axis.set_xlabel("number of groups")
        axis.set_ylabel(label, fontsize=8)
    if len(several):
        handles, labels = axes[1, 0].get_legend_handles_labels()
        axes[1, len(lower)].legend(handles, labels, title="(HTF, LTF)", fontsize=8, frameon=False, loc="center left")
    figure.suptitle(seeds_text(table), fontsize=9)
    save_figure(figure, path)


def change(short: pd.DataFrame, column: str, low: int, high: int, relative: bool) -> float:
    """Largest change of a column from `low` to `high` groups over the (HTF, LTF); NaN where they were not run."""
    wide = short[short["method"] == "GBA"].pivot_table(index=["HTF", "LTF"], columns="groups", values=column)
    if low not in wide or high not in wide:
        return np.nan
    step = (wide[high] - wide[low]).abs() / (wide[low] if relative else 1.0)
    return float(step.max())


def claims(table: pd.DataFrame) -> list[Claim]:
    """Insensitive for K >= 10."""
    short = summarise(table)
    later, early = (change(short, "loss", *pair, relative=True) for pair in ((10, 20), (3, 10)))
    found = [
        Claim(
            "The loss is insensitive to the number of groups for K >= 10 (largest relative change from 10 to 20)",
            later, PAPER_10_TO_20, later < 0.1, "Ten groups cover the range of targets as densely as twenty."
            if later < 0.1 else "Twenty groups move the loss where the range of targets is widest.",
        ),
        Claim(
            "Below that it is not (largest relative change from 3 to 10)", early, PAPER_3_TO_10, early > later,
            "Three groups leave gaps of a factor of ten and more between targets, and a third of the neurons at the "
            "highest.",
        ),
    ]  # fmt: skip
    if "FRR 0.9" in short:
        moved = change(short, "FRR 0.9", 10, 20, relative=False)
        spread = short.loc[(short["method"] == "GBA") & (short["groups"] >= 10), "FRR 0.9"]
        found.append(
            Claim(
                "So is recovery (not in the paper: largest change of the share recovered from 10 to 20 groups)",
                moved,
                None,
                moved < 0.1,
                f"Over all (HTF, LTF) with ten groups and more the share recovered lies in {spread.min():.2f} to "
                f"{spread.max():.2f}: the range of targets matters more than the number of groups.",
            )
        )
    return found


EXPERIMENT = Experiment(
    "group-ablation", "GBA: highest and lowest target frequency and number of groups", cells, summarise, draw,
    seeds=(0, 1, 2), collect=collect, small_seeds=(0, 1), claims=claims, on_activations=partial(cells, settings=real),
)  # fmt: skip
