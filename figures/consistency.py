"""Figure consistency: are the same neurons found again by another seed, and are those that are found the right ones?

The MCS of a run is the mean over the other seeds. The seeds share those pairs, so that the intervals over seeds are
somewhat too narrow.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures.cells import FIT, Cell, load_fit
from figures.claims import Claim
from figures.experiments import Experiment, Finished, learned, mean_and_interval
from figures.planted import Planted, planted, real
from figures.style import ACCENT, DARK, MARKERS, MIDDLE, line_with_interval, new_figure, save_figure, seeds_text
from theory.consistency import FEWEST, chance_share, max_cosines, top_neurons

THRESHOLDS = (0.6, 0.7, 0.8, 0.9)
SCORES = {"max_activation": "maximum activation", "z_score": "Z-score"}
PAPER_ALPHAS = (0.003, 0.0005)
WIDE_ALPHA = 0.05
"""Shown instead of the paper's second share where both of the paper's would be the same few neurons."""
COLOURS = {"GBA": DARK, "TopK": MIDDLE, "L1": ACCENT}
# Per cent of neurons above MCS 0.8 in the authors' figure: (score, share) -> GBA, TopK, L1.
PAPER_080 = {
    ("max_activation", 0.003): (52, 46, 64), ("max_activation", 0.0005): (85, 21, 64),
    ("z_score", 0.003): (68, 52, 82), ("z_score", 0.0005): (82, 73, 94),
}  # fmt: skip


def cells(
    seeds: Sequence[int], size: str, settings: Callable[[str], Planted] = planted
) -> list[tuple[dict[str, Any], Cell]]:
    """The same cells as in figure loss-sparsity, where both have the seed."""
    own = settings(size)
    return [
        ({"method": name, "knob": knob}, own.cell(method, seed))
        for name, knob, method in own.chosen()
        for seed in seeds
    ]


def alphas(M: int) -> tuple[float, ...]:
    """The shares looked at: the paper's, or one of them and a wider one where both would mean `FEWEST` neurons."""
    return PAPER_ALPHAS if round(PAPER_ALPHAS[0] * M) >= FEWEST else (PAPER_ALPHAS[0], WIDE_ALPHA)


def pairs(done: Sequence[Finished]) -> list[tuple[Finished, np.ndarray]]:
    """Every finished cell with the MCS of its neurons, mean over the other seeds of its method."""
    done = learned(done)
    arrays = [load_fit(one.folder)["W"] for one in done]
    found = []
    for i, one in enumerate(done):
        others = [
            max_cosines(arrays[i], arrays[j]) for j, other in enumerate(done) if j != i and other.label == one.label
        ]
        if others:
            found.append((one, np.mean(others, axis=0)))
    return found


def collect(done: Sequence[Finished]) -> pd.DataFrame:
    """One row per cell, score, share and threshold, over the neurons of that cell."""
    rows = []
    for one, mcs in pairs(done):
        neurons = pd.read_csv(one.folder / "neurons.csv")
        M, d = one.cell.training.neurons, load_fit(one.folder)["W"].shape[1]
        for score in SCORES:
            for alpha in alphas(M):
                chosen = top_neurons(neurons[score].to_numpy(), alpha, (neurons["frequency"] > 0).to_numpy())
                found = mcs[chosen.neurons]
                for threshold in THRESHOLDS:
                    consistent = found > threshold
                    correct = np.nan
                    if "cosine" in neurons and consistent.any():
                        cosine = neurons["cosine"].to_numpy()[chosen.neurons]
                        correct = float((cosine[consistent] > threshold).mean())
                    rows.append(
                        {**one.label, "seed": one.cell.seed, "score": score, "alpha": alpha, "M": M,
                         "neurons": len(found), "extended": chosen.extended, "threshold": threshold,
                         "consistent": float(consistent.mean()) if len(found) else np.nan, "correct": correct,
                         "chance": chance_share(M, d, threshold)}
                    )  # fmt: skip
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds; `correct` over those seeds that have a consistent neuron."""
    by = ["score", "alpha", "neurons", "method", "threshold"]
    short = mean_and_interval(table, by, {"consistent": "consistent", "chance": "chance"})
    correct = table.groupby(by, sort=False)["correct"].mean().reset_index()
    return short.drop(columns="chance ±").merge(correct, on=by, how="left")


def draw(table: pd.DataFrame, path: Path) -> None:
    """Upper row: share of the top neurons that another seed has too. Lower row: how many of those are features."""
    short = summarise(table)
    known = short["correct"].notna().any()
    panels = list(dict.fromkeys(zip(short["score"], short["alpha"], strict=True)))
    figure, axes = new_figure(2 if known else 1, len(panels), width=2.9, height=2.6, squeeze=False, sharey="row")
    for column, (score, alpha) in enumerate(panels):
        part = short[(short["score"] == score) & (short["alpha"] == alpha)]
        for k, (method, line) in enumerate(part.groupby("method", sort=False)):
            look = {"color": COLOURS[method], "marker": MARKERS[k], "label": method}
            line_with_interval(axes[0, column], line, "threshold", "consistent", **look)
            if known:
                axes[1, column].plot(line["threshold"], line["correct"], ms=4.5, lw=1.1, **look)
        axes[0, column].plot(
            part["threshold"], part["chance"], color="#999999", ls=":", lw=1.5, label="chance, random W"
        )
        rows = table[(table["score"] == score) & (table["alpha"] == alpha)]
        top = f"top {rows['neurons'].max()}" + (f" ({FEWEST} at least)" if rows["extended"].any() else "")
        axes[0, column].set_title(f"{SCORES[score]}\nalpha = {alpha:.2%}, {top}", fontsize=8, loc="left")
        for axis in axes[:, column]:
            axis.set_ylim(-0.03, 1.05)
            axis.set_xticks(THRESHOLDS)
        axes[-1, column].set_xlabel("threshold of the cosine")
    axes[0, 0].set_ylabel("top neurons with MCS\nabove the threshold")
    axes[0, 0].legend(fontsize=7, frameon=False, loc="lower left")
    if known:
        axes[1, 0].set_ylabel("of those, share that is\na planted feature")
    figure.suptitle(f"consistency over {seeds_text(table)}; MCS: mean over the other seeds", fontsize=9)
    save_figure(figure, path)


def claims(table: pd.DataFrame) -> list[Claim]:
    """GBA against TopK at MCS > 0.8, L1 ahead elsewhere, and what the paper could not see."""
    short = summarise(table)
    at = short[(short["threshold"] == 0.8)].set_index(["score", "alpha", "method"])
    found, ahead = [], []
    for score, alpha in dict.fromkeys((row[0], row[1]) for row in at.index):
        methods = ("GBA", "TopK", "L1")
        gba, topk, l1 = (float(at.loc[(score, alpha, method), "consistent"]) for method in methods)
        half = sum(float(at.loc[(score, alpha, method), "consistent ±"]) for method in methods[:2])
        paper = PAPER_080.get((score, alpha))
        difference = None if paper is None else (paper[0] - paper[1]) / 100
        told = f"GBA {gba:.2f}, TopK {topk:.2f}, half-widths of their intervals together {half:.2f}."
        if gba == topk == 1:
            told += " Both are at the ceiling: this world is too easy to tell them apart."
        found.append(
            Claim(
                f"GBA is more consistent than TopK at MCS > 0.8 ({SCORES[score]}, alpha = {alpha:.2%}; "
                "difference of shares)",
                gba - topk, difference, gba > topk if abs(gba - topk) > half else None, told,
            )
        )  # fmt: skip
        ahead.append(l1 > max(gba, topk))
    correct = at.groupby("method")["correct"].mean()
    found.append(
        Claim(
            "L1 is ahead in consistency elsewhere (share of panels that it leads at MCS > 0.8)",
            float(np.mean(ahead)), 0.75, bool(np.mean(ahead) > 0.5),
            "At this budget L1 learns few features of the planted world, and its neurons differ from seed to seed."
            if np.mean(ahead) <= 0.5 else "As in the paper.",
        )
    )  # fmt: skip
    if correct.notna().any():
        least = float(correct.min())
        found.append(
            Claim(
                "Consistent neurons are features (not in the paper: smallest share of correct ones over the methods, "
                "MCS > 0.8)", least, None, least > 0.9,
                "; ".join(f"{method} {value:.2f}" for method, value in correct.items() if value == value) + (
                    ". A direction that other seeds find too need not be a planted feature, and a low loss does not "
                    "show it." if least <= 0.9 else ". Consistency is a safe sign in this world."
                ),
            )
        )  # fmt: skip
    return found


EXPERIMENT = Experiment(
    "consistency", "Share of the top neurons that another seed finds too", cells, summarise, draw, seeds=(0, 1, 2),
    collect=collect, needs=(FIT,), claims=claims, on_activations=partial(cells, settings=real),
)  # fmt: skip
