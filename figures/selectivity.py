"""Figure selectivity: recovery over the plane of dimension d and target frequency p, one group of neurons.

Sizes: paper is the authors' map (n = 65,536, `figures.heat_map`); small an eighth of it (n = 8,192, M = 4 n) over a
wider plane, on both sides of d = sqrt(n). Drawn on top: the contour at 0.9, f, the asymptotic band
f <~ p <~ min(sqrt f, f d) with its upper end at finite s, and the contour of the finite-size predictor of
`theory.resonance`, which has seen neither map.

The maps start every bias at its target's quantile and adapt it some 200 times. Size small has two controls for the
lower edge: at one d the biases start at zero, as the paper prints it; and a smaller world (n = 1,024) in which they
start at zero and are adapted 5,000 times, with a buffer of f B = 1.17 as in the map (and in the paper, if its buffer is
the 25,600 of its language-model runs).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures import heat_map
from figures.cells import Cell
from figures.claims import Claim
from figures.experiments import Experiment, Finished
from figures.resonance_cells import adaptations
from figures.style import ACCENT, DARK, LIGHT, new_figure, save_figure
from simulator import BA, Exactly, Training, World
from theory.bounds import frequency_upper_dimension, frequency_upper_sparsity, resonance_band_limit
from theory.resonance import Setting, predict

S = 3
SMALL_N = 8_192
SMALL_D = (24, 37, 58, 74, 91, 128, 181)
"""91 is sqrt(n)."""
SMALL_P = (0.35, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
"""p / f."""
PAPER_FLOOR = 84.4
"""Smallest d of the authors' map with a cell of 0.9 or more."""
CONTROL_D, CONTROL_P = 128, (0.35, 1.0, 2.8)
"""Where biases also start at zero."""
FROM_ZERO = "biases start at zero"
LONG_N, LONG_D, LONG_P = 1_024, (72, 96), (0.35, 1.0, 1.4, 2.0, 2.8)
"""The world whose biases are adapted many times."""
MANY = "5,000 adaptations"
COLUMNS = (
    "control", "n", "d", "M", "p", "p / f", "regime", "seed", "frr_080", "frr_090", "frr_080_untrained",
    "frr_090_untrained", "predicted", "paper", "f", "band low", "band high", "band high, s = 3", "mean_l0", "dead",
    "status", "seconds", "cell",
)  # fmt: skip


def cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    """One cell per d, p and seed, bottom row first."""
    if size in ("paper", "full"):
        full = heat_map.SIZES["full"]
        return [
            ({"control": ""}, heat_map.cell_of(d, p, full, seed))
            for p in heat_map.P
            for d in heat_map.D
            for seed in seeds
        ]
    n, dimensions, multiples = (64, (8, 16), (1.0, 4.0)) if size == "tiny" else (SMALL_N, SMALL_D, SMALL_P)
    own = heat_map.SIZES["tiny" if size == "tiny" else "eighth"]
    found = []
    for multiple in multiples:
        for d in dimensions:
            training = Training(
                BA(multiple * S / n, buffer=own.buffer), 4 * n, own.steps, own.batch, learning_rate=own.learning_rate,
                decay=own.decay, start_bias="quantile",
            )  # fmt: skip
            world = World(n, d, Exactly(S))
            starts = {"": training}
            if d == (16 if size == "tiny" else CONTROL_D) and multiple in CONTROL_P:
                starts[FROM_ZERO] = replace(training, start_bias="zero")
            found += [
                ({"control": control}, Cell(world, chosen, seed, samples=2_000, references=False))
                for control, chosen in starts.items()
                for seed in seeds
            ]
    return found + long_cells(seeds, size)


def long_cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    """The control with many adaptations: 20,000 steps of 100 samples, a buffer of 400."""
    n, dimensions, multiples = (48, (12,), (1.0, 4.0)) if size == "tiny" else (LONG_N, LONG_D, LONG_P)
    M, steps, buffer = (96, 50, 32) if size == "tiny" else (4 * n, 20_000, 400)
    found = []
    for d in dimensions:
        for multiple in multiples:
            training = Training(BA(multiple * S / n, buffer=buffer), M, steps, 100, learning_rate=3e-3, decay=0.5)
            world = World(n, d, Exactly(S))
            found += [
                ({"control": MANY}, Cell(world, training, seed, samples=2_000, references=False)) for seed in seeds
            ]
    return found


def collect(done: Sequence[Finished]) -> pd.DataFrame:
    """One row per cell, with what theory says about it."""
    settings = [setting_of(one.cell) for one in done]
    predicted = predict(settings).recovered if settings else []
    rows = []
    for one, setting, expected in zip(done, settings, predicted, strict=True):
        n, d, f, p = setting.n, setting.d, setting.frequency, setting.p
        low, high = resonance_band_limit(f, d)
        finite = min(frequency_upper_sparsity(n, S), frequency_upper_dimension(n, d, 0.0))
        rows.append(
            one.row()
            | {"n": n, "d": d, "M": setting.M, "p": p, "p / f": p / f, "f": f, "predicted": expected}
            | {"regime": "light, d > sqrt n" if d > n**0.5 else "heavy, d < sqrt n", "paper": _paper(n, d, p)}
            | {"band low": low, "band high": high, "band high, s = 3": finite}
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def setting_of(cell: Cell) -> Setting:
    """The cell as the predictor takes it."""
    assert cell.world is not None
    assert isinstance(cell.training.method, BA)
    method, training = cell.training.method, cell.training
    moves = adaptations(method.buffer, training.steps, training.batch)
    return Setting(
        cell.world.n, cell.world.d, S, training.neurons, method.p, buffer=method.buffer, adaptations=moves
    )  # fmt: skip


def _paper(n: int, d: int, p: float) -> float:
    """The authors' value at the cell of equal d and p, if theirs is this map."""
    if n != heat_map.SIZES["full"].n:
        return np.nan
    column = int(np.argmin([abs(round(x) - d) for x in heat_map.D]))
    return float(heat_map.PAPER[int(np.argmin([abs(x - p) for x in heat_map.P])), column])


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """FRR at 0.9, one row per p / f (largest first), one column per d, and the control beside them."""
    control, long = (
        part.assign(**{"p / f": part["p / f"].round(3), "frr_090": part["frr_090"].astype(float)})
        for part in (of_control(table), of_control(table, MANY))
    )
    table = of_map(table)
    wide = table.assign(**{"p / f": table["p / f"].round(3)})
    wide = wide.pivot_table(index="p / f", columns="d", values="frr_090", aggfunc="mean").sort_index(ascending=False)
    wide.columns = [f"d = {d}" for d in wide.columns]
    if len(control):
        name = f"d = {control['d'].iloc[0]}, {FROM_ZERO}"
        wide[name] = control.groupby("p / f")["frr_090"].mean()
    for d, part in long.groupby("d"):
        wide[f"n = {part['n'].iloc[0]:,}, d = {d}, {MANY}"] = part.groupby("p / f")["frr_090"].mean()
    return wide.reset_index()


def of_map(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the map."""
    return table[~table["control"].isin((FROM_ZERO, MANY))]


def of_control(table: pd.DataFrame, which: str = FROM_ZERO) -> pd.DataFrame:
    """The rows of a control."""
    return table[table["control"] == which]


def grid(table: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """d, p / f and the mean over seeds of a column on that grid (NaN where there is no cell)."""
    rounded = table.assign(multiple=table["p / f"].round(4), value=table[column].astype(float))
    wide = rounded.pivot_table(index="multiple", columns="d", values="value", aggfunc="mean", dropna=False)
    return wide.columns.to_numpy(float), wide.index.to_numpy(float), wide.to_numpy(float)


def edges(values: np.ndarray) -> np.ndarray:
    """Borders of the cells of a logarithmic axis."""
    logs = np.log(values)
    if len(logs) == 1:
        return np.exp(np.array([logs[0] - 0.3, logs[0] + 0.3]))
    middle = (logs[1:] + logs[:-1]) / 2
    return np.exp(np.r_[2 * logs[0] - middle[0], middle, 2 * logs[-1] - middle[-1]])


def draw(table: pd.DataFrame, path: Path) -> None:
    """The map at cosine 0.9 (and 0.8) with contours, f and the bands; the untrained share is in the title."""
    table = of_map(table)
    figure, axes = new_figure(1, 2, width=5.0, height=4.6, sharey=True, squeeze=True)
    n, f = int(table["n"].iloc[0]), float(table["f"].iloc[0])
    for axis, column, tau in zip(axes, ("frr_090", "frr_080"), ("0.9", "0.8"), strict=True):
        d, multiples, share = grid(table, column)
        mesh = axis.pcolormesh(edges(d), edges(multiples), share, cmap="cividis", vmin=0, vmax=1)
        for i, j in np.argwhere(np.isfinite(share)):
            colour = "black" if share[i, j] > 0.5 else "white"
            text = f"{share[i, j]:.2f}".replace("1.00", "1").removeprefix("0")
            axis.text(d[j], multiples[i], text, ha="center", va="center", fontsize=6, color=colour)
        _contour(axis, d, multiples, share, ACCENT, "-", "measured 0.9")
        if tau == "0.9":
            _contour(axis, d, multiples, grid(table, "predicted")[2], "white", "--", "predicted 0.9")
        line = table.groupby("d")[["band low", "band high", "band high, s = 3"]].mean() / f
        axis.plot(line.index, line["band low"], color=DARK, lw=1.6, label="f, the band's lower end")
        axis.plot(line.index, line["band high"], color=DARK, lw=1.2, ls="--", label="min(√f, f d), the asymptotic band")
        axis.plot(line.index, line["band high, s = 3"], color=DARK, lw=1.2, ls=":", label="the same at s = 3")
        axis.axvline(n**0.5, color=LIGHT, lw=1.5, label="d = √n: light superposition to the right")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlim(edges(d)[[0, -1]])
        axis.set_ylim(edges(multiples)[0], max(edges(multiples)[-1], line.to_numpy().max() * 1.3))
        axis.set_xticks(d, [f"{x:g}" for x in d], fontsize=7)
        axis.set_yticks(multiples, [f"{x:.3g}" for x in multiples], fontsize=7)
        axis.minorticks_off()
        axis.set_xlabel("dimension d")
        axis.set_title(f"cosine > {tau}", fontsize=9, loc="left")
    axes[0].set_ylabel("target frequency p / f")
    figure.colorbar(mesh, ax=axes, shrink=0.6, label="features recovered")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    seeds, cells_done = table["seed"].nunique(), len(table)
    untrained = table["frr_090_untrained"].astype(float).max()
    figure.suptitle(
        f"n = {n:,}, M = {int(table['M'].iloc[0]):,}, s = {S}, f = {f:.2e}; {cells_done} cells, seeds: {seeds}; "
        f"untrained networks: at most {untrained:.3f} at 0.9", fontsize=9,
    )  # fmt: skip
    save_figure(figure, path)


def _contour(axis: Any, d: np.ndarray, p: np.ndarray, share: np.ndarray, colour: str, style: str, label: str) -> None:
    """The line at 0.9, between the centres of the cells."""
    known = np.isfinite(share)
    if min(share.shape) < 2 or not known.all() or not (share.min() < 0.9 < share.max()):
        return
    axis.contour(d, p, share, [0.9], colors=colour, linestyles=style, linewidths=1.8)
    axis.plot([], [], color="#888888" if colour == "white" else colour, ls=style, lw=1.8, label=label)


def claims(table: pd.DataFrame) -> list[Claim]:
    """Recovery only inside the band; best above f, not at f; a floor in d."""
    control, long, table = of_control(table), of_control(table, MANY), of_map(table)
    mean = table.assign(frr=table["frr_090"].astype(float), ratio=table["p / f"].round(3))
    mean = mean.groupby(["d", "ratio"], as_index=False)[["frr", "predicted", "band high, s = 3", "f"]].mean()
    low = mean[mean["ratio"] < 0.9]
    below = float(low["frr"].max()) if len(low) else None
    upper = mean[mean["ratio"] > mean["band high, s = 3"] / mean["f"]]
    above = float(upper["frr"].max()) if len(upper) else None
    best = mean.groupby("ratio")["frr"].mean()
    at_f = float(mean.loc[(mean["ratio"] - 1).abs() < 0.05, "frr"].mean())
    over = float(best[(best.index > 1.3) & (best.index < 4.7)].max())
    good = mean[mean["frr"] >= 0.9]
    error, bias = float((mean["frr"] - mean["predicted"]).abs().mean()), float((mean["predicted"] - mean["frr"]).mean())
    floor = float(good["d"].min()) if len(good) else None
    return [
        Claim(
            "Nothing is recovered below f (largest share at p < 0.9 f)", below, 0.03,
            None if below is None else below < 0.5,
            "There is no lower edge where biases start at their targets' quantiles: neurons that fire below f already "
            "point somewhere when the rule begins to act, and it never raises a bias that still fires. "
            + told_control(control)
            if below is not None and below >= 0.5 else "Recovery fades below f, as in the paper.",
        ),
        Claim(
            "Nothing is recovered above the theorem's upper end at s = 3, min(n^-2/3, d / n)", above, None,
            None if above is None else above < 0.5,
            "The measured upper edge moves with d, from below f to beyond the largest p of the map; the bound does "
            "not. The authors' map ends below it.",
        ),
        Claim(
            "Recovery is best at p above f, not at f (mean over d of the best p in 1.4 f .. 4 f, minus that at f)",
            over - at_f, None, over - at_f > 0.05 if over == over and at_f == at_f else None,
            "Where the lower edge is missing, p = f recovers as much as p above f." if over - at_f <= 0.05
            else "p somewhat above f recovers more than p = f.",
        ),
        Claim(
            "Features are recovered only where d is large enough (smallest d with a share of 0.9 at any p)",
            floor, PAPER_FLOOR, None if floor is None else 1 / 1.5 < floor / PAPER_FLOOR < 1.5,
            told_floor(floor, table),
        ),
        Claim(
            "With many adaptations recovery is best above f, not at f (share at the best p from 1.9 f on minus that at "
            f"f, largest over d; n = {LONG_N:,}, {MANY} from zero)", *told_long(long),
        ),
        Claim(
            "The finite-size band of this toolkit says where (mean absolute error of the predicted share)",
            error, None, error < 0.1,
            f"Frozen before this map was computed, and made for another training (batch 512, rate 3e-3, 1,500 steps); "
            f"it predicts {'too much' if bias > 0 else 'too little'} here (mean error {bias:+.2f}), the edge at too "
            f"{'small' if bias > 0 else 'large'} a d.",
        ),
    ]  # fmt: skip


def told_long(long: pd.DataFrame) -> tuple[float | None, float | None, bool | None, str]:
    """Gain of the best p above f over f with many adaptations, the paper's, agreement and the shares in words."""
    shares = long.assign(ratio=long["p / f"].round(3), frr=long["frr_090"].astype(float))
    wide = shares.pivot_table(index="d", columns="ratio", values="frr")
    if 1.0 not in wide or not len(wide):
        return None, None, None, "Not run at this size."
    gain = float((wide[[x for x in wide if x > 1.9]].max(axis=1) - wide[1.0]).max())
    told = "; ".join(
        f"d = {d}: " + ", ".join(f"{share:.2f} at {ratio:g} f" for ratio, share in row.items())
        for d, row in wide.iterrows()
    )
    return (
        gain, 0.92, gain > 0.05,
        f"Share recovered at cosine 0.9 by p: {told}; at 0.8 at least {long['frr_080'].astype(float).min():.2f} "
        "everywhere. So the edge comes with many adaptations: the rule compares counts, p acts through the whole "
        "part of p B only (1 at f and at 1.4 f, 2 at 2 f), and a threshold that is pushed up thousands of times by "
        "single counts leaves the neuron a part of its feature's samples and an oblique direction. With B = 25,600 the "
        "authors' edge lies where the whole part of p B goes from 1 to 2 as well; theirs is deeper.",
    )  # fmt: skip


def told_floor(floor: float | None, table: pd.DataFrame) -> str:
    """The floor in d beside the paper's, in units of sqrt n and of s."""
    if floor is None:
        return "No cell reaches 0.9."
    n = int(table["n"].iloc[0])
    return (
        f"In units of sqrt n the floor is {floor / n**0.5:.2f} here and {PAPER_FLOOR / 256:.2f} in the paper, in units "
        f"of s {floor / S:.0f} and {PAPER_FLOOR / S:.0f}: with n = {n:,} against 65,536 it is d / s "
        "that the two maps share."
    )


def told_control(control: pd.DataFrame) -> str:
    """The control in words."""
    if not len(control):
        return ""
    shares = ", ".join(f"{row['frr_090']:.2f} at {row['p / f']:.2g} f" for _, row in control.iterrows())
    alike = float(control["frr_090"].astype(float).max()) < 0.5
    return f"Started at zero instead (d = {control['d'].iloc[0]}) the share recovered is {shares}" + (
        ": at this budget the biases arrive when the learning rate is falling already, at every p alike. So the start "
        "decides how long a run must be, not where recovery begins; runs of 128 features that are long enough recover "
        "much the same from both starts (the README's first table). Settings that do have a lower edge (many "
        "adaptations) stand below and there under Resonance."
        if alike
        else "."
    )


EXPERIMENT = Experiment(
    "selectivity", "Recovered share over dimension d and target frequency p", cells, summarise, draw, seeds=(0,),
    collect=collect, claims=claims,
)  # fmt: skip
