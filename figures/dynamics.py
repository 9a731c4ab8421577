"""Figure dynamics: how single neurons turn towards features, and which of the nearest features wins."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures.cells import FIT, WORLD, Cell, Watch, load_fit
from figures.claims import Claim
from figures.experiments import Experiment, Finished, learned
from figures.style import ACCENT, DARK, LIGHT, MIDDLE, new_figure, save_figure, seeds_text
from simulator import BA, Exactly, Training, World
from simulator.storage import load_tensors
from simulator.training import start_directions
from theory.alignment import initial_rank

FOLLOWED = 8
"""Features that are followed for each watched neuron: the nearest ones before training."""
WATCHED = tuple(range(9))


def cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    """BA at p = 2 f; biases at their target's quantile, so that every neuron races from the first step."""
    n, d, M, steps = (24, 12, 48, 60) if size == "tiny" else (128, 42, 512, 3_000)
    if size in ("paper", "full"):
        n, d, M, steps = 1_024, 128, 4_096, 10_000
    training = Training(
        BA(2 * 3 / n), M, steps, 512, learning_rate=1e-3, decay=0.5, start_bias="quantile", start_scale=0.01
    )
    watch = Watch(WATCHED, FOLLOWED, max(1, steps // 150))
    world = World(n, d, Exactly(3))
    return [({}, Cell(world, training, seed, samples=2_000, references=False, watch=watch)) for seed in seeds]


def collect(done: Sequence[Finished]) -> pd.DataFrame:
    """Rows of three kinds: `race` (one neuron and one followed feature), `rate` (FRR over steps), `rank`."""
    parts = []
    done = learned(done)
    for one in done:
        history = pd.read_csv(one.folder / "history.csv")
        for tau in ("080", "090"):
            rate = {"kind": "rate", "seed": one.cell.seed, "step": history["step"], "tau": int(tau) / 100}
            parts.append(pd.DataFrame({**rate, "value": history[f"frr_{tau}"]}))
        if one is done[0]:
            parts += [_race(one, history, m) for m in WATCHED]
        V, W = load_tensors(one.folder / WORLD)[0]["V"].numpy(), load_fit(one.folder)["W"]
        start = start_directions(one.cell.seed, *W.shape, one.cell.training.dtype)
        rank, cosine = initial_rank(V, start, W)
        parts.append(pd.DataFrame({"kind": "rank", "seed": one.cell.seed, "rank": rank, "value": cosine}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _race(one: Finished, history: pd.DataFrame, m: int) -> pd.DataFrame:
    """Cosines of a neuron with the features that it was followed with, and the largest with any."""
    columns = [name for name in history if name.startswith(f"cosine_{m}_")]
    final = int(history[f"feature_{m}"].iloc[-1])
    lines = [
        pd.DataFrame(
            {"kind": "race", "seed": one.cell.seed, "step": history["step"], "neuron": m, "order": order,
             "feature": int(name.rsplit("_", 1)[1]), "value": history[name],
             "winner": int(name.rsplit("_", 1)[1]) == final}
        )
        for order, name in enumerate(columns)
    ]  # fmt: skip
    best = {"kind": "race", "seed": one.cell.seed, "step": history["step"], "neuron": m, "order": -1}
    lines.append(pd.DataFrame({**best, "feature": history[f"feature_{m}"], "value": history[f"best_{m}"]}))
    return pd.concat(lines, ignore_index=True)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Of the neurons that end on a feature (cosine > 0.9): where that feature stood among all before training."""
    ranks = table[table["kind"] == "rank"]
    rows = []
    for seed, part in ranks.groupby("seed"):
        own = part[part["value"] > 0.9]
        row = {"seed": int(seed), "neurons on a feature": len(own), "of": len(part)}
        for limit, name in ((1, "was nearest"), (3, "was among 3 nearest"), (10, "was among 10 nearest")):
            row[name] = float((own["rank"] < limit).mean()) if len(own) else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Nine neurons; features recovered over steps; rank before training of the feature that won."""
    races = table[table["kind"] == "race"]
    figure, axes = new_figure(3, 5, width=2.4, height=2.1, gridspec_kw={"width_ratios": [1, 1, 1, 0.05, 1.6]})
    for axis, (m, part) in zip(axes[:, :3].ravel(), races.groupby("neuron"), strict=True):
        for order, line in part.groupby("order"):
            if order == -1:
                continue
            won = bool(line["winner"].iloc[0])
            axis.plot(
                line["step"] + 1, line["value"], color=DARK if won else LIGHT, lw=1.4 if won else 0.7, zorder=1 + won
            )
        best = part[part["order"] == -1]
        axis.plot(best["step"] + 1, best["value"], color=ACCENT, ls=":", lw=1.2, zorder=3)
        axis.axhline(0.9, color=MIDDLE, lw=0.5)
        axis.set_xscale("log")
        axis.set_ylim(-0.45, 1.05)
        axis.set_title(f"neuron {m:.0f}", fontsize=7, loc="left", pad=2)
        axis.tick_params(labelsize=7)
    for axis in axes[2, :3]:
        axis.set_xlabel("step + 1", fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("cosine", fontsize=8)
    for axis in [*axes[:, 3], axes[2, 4]]:
        axis.set_axis_off()
    rate_axis, rank_axis, note = axes[0, 4], axes[1, 4], axes[2, 4]
    for tau, part in table[table["kind"] == "rate"].groupby("tau"):
        for k, (_, line) in enumerate(part.groupby("seed")):
            look = {"color": DARK if tau > 0.85 else LIGHT, "lw": 1.2, "label": f"cosine > {tau:g}" if k == 0 else None}
            rate_axis.plot(line["step"] + 1, line["value"], **look)
    rate_axis.set_xscale("log")
    rate_axis.set_xlabel("step + 1", fontsize=8)
    rate_axis.set_ylabel("features recovered", fontsize=8)
    rate_axis.legend(fontsize=7, frameon=False)
    ranks = table[(table["kind"] == "rank") & (table["value"] > 0.9)]["rank"] + 1
    if len(ranks):
        rank_axis.hist(ranks, np.geomspace(1, max(ranks.max(), 2) + 1, 16), color=MIDDLE)
    rank_axis.set_xscale("log")
    rank_axis.set_xlabel("rank before training of the winner", fontsize=8)
    rank_axis.set_ylabel("neurons", fontsize=8)
    who = f"neurons: seed {table['seed'].min():.0f}; right: {seeds_text(table).split(',')[0]}"
    told = (
        "dark: the feature the neuron ends at", f"light: others of its {FOLLOWED} nearest at step 0",
        "dotted: largest over all features", who,
    )  # fmt: skip
    note.text(0, 0.9, "\n".join(told), fontsize=8, va="top")
    save_figure(figure, path)


def claims(table: pd.DataFrame) -> list[Claim]:
    """The proof's picture: the feature that a neuron starts nearest to wins."""
    short = summarise(table)
    nearest = float(short["was nearest"].mean())
    among = float(short["was among 10 nearest"].mean())
    return [
        Claim(
            "A neuron ends at the feature that it started nearest to (share of the neurons that end on a feature)",
            nearest, None, None if np.isnan(nearest) else nearest > 0.5,
            f"In a share of {among:.2f} the winner was among the ten nearest of all features. The proof needs a neuron "
            "that starts well aligned; most neurons do not, and are carried by the features that switch them on "
            "together." if nearest <= 0.5 else "The race is decided at the start, as in the proof.",
        )
    ]  # fmt: skip


EXPERIMENT = Experiment(
    "dynamics", "How single neurons turn towards features", cells, summarise, draw, seeds=(0, 1, 2), collect=collect,
    needs=(FIT, WORLD), claims=claims,
)  # fmt: skip
