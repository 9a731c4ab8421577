"""Figure zscore: Z-score of every neuron against its maximum activation, activation fraction and MCS."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from scipy.stats import spearmanr

from figures.cells import FIT, Cell
from figures.claims import Claim
from figures.consistency import cells as consistency_cells
from figures.consistency import pairs
from figures.experiments import Experiment, Finished
from figures.planted import Planted, planted, real
from figures.style import ACCENT, DARK, LIGHT, MIDDLE, new_figure, save_figure
from theory.consistency import chance_median

METHODS = ("GBA", "TopK")


def cells(
    seeds: Sequence[int], size: str, settings: Callable[[str], Planted] = planted
) -> list[tuple[dict[str, Any], Cell]]:
    """Two seeds of GBA and of TopK, of the cells of figure consistency."""
    return [item for item in consistency_cells(seeds[:2], size, settings) if item[0]["method"] in METHODS]


def collect(done: Sequence[Finished]) -> pd.DataFrame:
    """One row per neuron of the first seed of each method."""
    parts, seen = [], set()
    for one, mcs in pairs(done):
        if one.label["method"] in seen:
            continue
        seen.add(one.label["method"])
        neurons = pd.read_csv(one.folder / "neurons.csv")
        kept = ["neuron", "max_activation", "z_score", "post_z_score", "frequency", "pre_frequency"]
        part = neurons[kept + (["cosine"] if "cosine" in neurons else [])].assign(
            method=one.label["method"], knob=one.label["knob"], seed=one.cell.seed, mcs=mcs,
            chance=chance_median(one.cell.training.neurons, int(one.result["rows"][0]["d"])),
        )  # fmt: skip
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Rank correlations of the Z-score, and the MCS of the neurons with the highest and the lowest."""
    rows = []
    for method, part in table[table["max_activation"] > 0].groupby("method", sort=False):
        top = part.nlargest(max(30, len(part) // 20), "z_score")
        rows.append(
            {"method": method, "neurons": len(part)}
            | {f"rank correlation with {name}": _rank(part["z_score"], part[column])
               for name, column in (("max", "max_activation"), ("frequency", "pre_frequency"), ("MCS", "mcs"))}
            | {"MCS of the top 5 %": top["mcs"].median(), "MCS of all": part["mcs"].median(),
               "chance": part["chance"].iloc[0]}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _rank(first: pd.Series, second: pd.Series) -> float:
    if first.nunique() < 2 or second.nunique() < 2:
        return np.nan
    return float(spearmanr(first, second)[0])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Rows: methods. Columns: maximum activation (both axes logarithmic), activation fraction, MCS."""
    methods = list(dict.fromkeys(table["method"]))
    figure, axes = new_figure(
        2 * len(methods), 6, width=1.9, height=2.0, squeeze=False,
        gridspec_kw={"width_ratios": [4, 1] * 3, "height_ratios": [1, 4] * len(methods)},
    )  # fmt: skip
    for row, method in enumerate(methods):
        part = table[(table["method"] == method) & (table["max_activation"] > 0)]
        panels = (
            ("max_activation", "maximum activation", True, True),
            ("pre_frequency", "activation fraction (y > 0)", False, True),
            ("mcs", "MCS with another seed", False, False),
        )
        for column, (name, label, log_x, log_y) in enumerate(panels):
            main, top, right = (
                axes[2 * row + 1, 2 * column], axes[2 * row, 2 * column], axes[2 * row + 1, 2 * column + 1],
            )  # fmt: skip
            axes[2 * row, 2 * column + 1].set_axis_off()
            _panel(main, top, right, part, name, log_x, log_y)
            main.set_ylabel(label, fontsize=8)
            if name == "mcs":
                main.axhline(part["chance"].iloc[0], color=ACCENT, ls="--", lw=1, label="chance: random W, median")
                main.legend(fontsize=7, frameon=False, loc="lower right")
            main.set_xlabel("Z-score", fontsize=8)
        told = f"{method} {part['knob'].iloc[0]}, {len(part):,} neurons that ever fire, seed {part['seed'].iloc[0]}"
        axes[2 * row, 0].set_title(told, fontsize=9, loc="left")
    save_figure(figure, path)


def _panel(main: Any, top: Any, right: Any, part: pd.DataFrame, name: str, log_x: bool, log_y: bool) -> None:
    """A scatter plot with the histogram of each axis beside it; a neuron that is a planted feature is darker."""
    shown = part[(part["z_score"] > 0) & (part[name] > 0)]
    if not len(shown):
        main.text(0.5, 0.5, "no neuron varies", ha="center", va="center", transform=main.transAxes, fontsize=8)
        return
    feature = shown["cosine"] > 0.9 if "cosine" in shown else pd.Series(True, index=shown.index)
    for kind, colour, label in ((~feature, LIGHT, "other"), (feature, DARK, "a planted feature (cosine > 0.9)")):
        told = label if name == "max_activation" else None
        main.plot(
            shown.loc[kind, "z_score"], shown.loc[kind, name], ".", color=colour, ms=2.5, rasterized=True, label=told
        )
    if name == "max_activation" and "cosine" in shown:
        main.legend(fontsize=7, frameon=False, loc="lower right", markerscale=3)
    for axis, values, log, across in ((top, shown["z_score"], log_x, False), (right, shown[name], log_y, True)):
        limits = values.min(), max(values.max(), values.min() * (1 + 1e-6))
        bins = np.geomspace(*limits, 41) if log else np.linspace(*limits, 41)
        axis.hist(values, bins, color=MIDDLE, orientation="horizontal" if across else "vertical")
        axis.tick_params(labelbottom=False, labelleft=False, length=0)
    for log, scale in ((log_x, "x"), (log_y, "y")):
        if log:
            for axis in (main, top if scale == "x" else right):
                getattr(axis, f"set_{scale}scale")("log")
                ticks = getattr(axis, f"{scale}axis")
                ticks.set_minor_locator(NullLocator())
                spread = np.ptp(np.log10(shown["z_score" if scale == "x" else name]))
                ticks.set_major_locator(LogLocator(subs=(1, 2, 5) if spread < 2 else (1,)))
                ticks.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    top.set_xlim(main.get_xlim())
    right.set_ylim(main.get_ylim())
    top.tick_params(labelbottom=False, labelleft=False)


def claims(table: pd.DataFrame) -> list[Claim]:
    """High Z-score goes with high MCS."""
    found = []
    for _, row in summarise(table).iterrows():
        gain = float(row["MCS of the top 5 %"] - row["MCS of all"])
        found.append(
            Claim(
                f"{row['method']}: a high Z-score goes with a high MCS (median of the top 5 % minus that of all)",
                gain, None, gain > 0.05,
                f"Median MCS {row['MCS of the top 5 %']:.2f} against {row['MCS of all']:.2f}; chance "
                f"{row['chance']:.2f}; rank correlation {row['rank correlation with MCS']:.2f}.",
            )
        )  # fmt: skip
    return found


EXPERIMENT = Experiment(
    "zscore", "Z-score against maximum activation, activation fraction and MCS", cells, summarise, draw, seeds=(0, 1),
    collect=collect, needs=(FIT,), claims=claims, on_activations=partial(cells, settings=real),
)  # fmt: skip
