"""Figure frequency-spread: which group learns which feature, where feature frequencies follow Zipf's law."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures.cells import Cell
from figures.claims import Claim
from figures.experiments import Experiment, Finished, learned
from figures.style import ACCENT, DARK, LIGHT, new_figure, save_figure, seeds_text
from simulator import GBA, Bernoulli, Training, World, Zipf

BINS = 8
"""Of the feature frequencies, of equal width in logarithm."""


def cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    n, d, M, steps, batch, active = (48, 24, 90, 60, 64, 3) if size == "tiny" else (512, 128, 4_000, 3_000, 512, 5)
    if size in ("paper", "full"):
        n, d, M, steps, batch = 8_192, 512, 65_536, 10_000, 2_048
    training = Training(
        GBA(0.3, 3e-4, 10), M, steps, batch, learning_rate=3e-3, decay=0.7, start_bias="quantile"
    )  # fmt: skip
    world = World(n, d, Bernoulli(active, Zipf(1.0)))
    return [({}, Cell(world, training, seed, samples=20_000, references=False)) for seed in seeds]


def collect(done: Sequence[Finished]) -> pd.DataFrame:
    """Rows of two kinds: every neuron with a feature above cosine 0.8 (`neuron`), every feature (`feature`)."""
    parts = []
    done = learned(done)
    for one in done:
        neurons, features = (pd.read_csv(one.folder / f"{name}.csv") for name in ("neurons", "features"))
        group = np.unique(-neurons["target"], return_inverse=True)[1] + 1
        frequency = features["frequency"].to_numpy()
        parts.append(
            pd.DataFrame(
                {"kind": "neuron", "seed": one.cell.seed, "group": group, "target": neurons["target"],
                 "neuron frequency": neurons["frequency"], "cosine": neurons["cosine"],
                 "feature frequency": frequency[neurons["feature"].clip(lower=0)]}
            )[neurons["cosine"] > 0.8]
        )  # fmt: skip
        parts.append(
            pd.DataFrame({"kind": "feature", "seed": one.cell.seed, "cosine": features["cosine"],
                          "feature frequency": frequency})
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Per group: how many neurons found a feature (cosine > 0.9), and the quartiles of those features' frequencies."""
    found = table[(table["kind"] == "neuron") & (table["cosine"] > 0.9)]
    rows = []
    for (group, target), part in found.groupby(["group", "target"]):
        low, middle, high = part["feature frequency"].quantile([0.25, 0.5, 0.75])
        rows.append(
            {"group": int(group), "target": target, "neurons on a feature": len(part), "f, lower quartile": low,
             "f, median": middle, "f, upper quartile": high, "own frequency": part["neuron frequency"].median()}
        )  # fmt: skip
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Neuron frequency against feature frequency; the groups' share of the finders; recovery by frequency."""
    found = table[(table["kind"] == "neuron") & (table["cosine"] > 0.9)]
    features = table[table["kind"] == "feature"]
    figure, (left, middle, right) = new_figure(1, 3, width=3.9, height=3.5)
    limits = features["feature frequency"].min() / 1.5, features["feature frequency"].max() * 1.5
    points = left.scatter(
        found["feature frequency"],
        found["neuron frequency"],
        c=found["group"],
        cmap="cividis",
        s=5,
        vmin=1,
        vmax=10,
        rasterized=True,
    )
    left.plot(limits, limits, color=ACCENT, lw=1, ls="--", label="equal")
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("frequency f of the feature")
    left.set_ylabel("activation frequency of its neurons")
    left.legend(fontsize=7, frameon=False)
    figure.colorbar(points, ax=left, label="group (1: highest target)")
    borders = np.geomspace(*limits, BINS + 1)
    groups = sorted(table["group"].dropna().unique())
    share = np.zeros((len(groups), BINS))
    for i, group in enumerate(groups):
        share[i] = np.histogram(found.loc[found["group"] == group, "feature frequency"], borders)[0]
    share /= np.maximum(share.sum(axis=0), 1)
    middle.pcolormesh(borders, np.arange(len(groups) + 1) + 0.5, share, cmap="cividis", vmin=0, vmax=1)
    targets = table.dropna(subset=["group"]).groupby("group")["target"].first()
    middle.plot(targets, targets.index, "o", mfc="white", mec=ACCENT, ms=4, label="target = f")
    middle.set_xscale("log")
    middle.set_xlim(*limits)
    middle.invert_yaxis()
    middle.set_xlabel("frequency f of the feature")
    middle.set_ylabel("group of the neurons that found it")
    middle.legend(fontsize=7, loc="lower left")
    for k, tau in enumerate((0.8, 0.9)):
        place = np.digitize(features["feature frequency"], borders) - 1
        rate = [(features["cosine"][place == b] > tau).mean() if (place == b).any() else np.nan for b in range(BINS)]
        centres = np.sqrt(borders[1:] * borders[:-1])
        right.plot(centres, rate, ("o--", "s-")[k], color=(LIGHT, DARK)[k], label=f"cosine > {tau}")
    right.set_xscale("log")
    right.set_ylim(-0.03, 1.05)
    right.set_xlabel("frequency f of the feature")
    right.set_ylabel("features recovered")
    right.legend(fontsize=7, frameon=False)
    text = seeds_text(table).replace(", 95 % intervals", " together")
    left.set_title(f"neurons at cosine > 0.9 with a feature; {text}", fontsize=8, loc="left")
    save_figure(figure, path)


def claims(table: pd.DataFrame) -> list[Claim]:
    """Resonance: a neuron finds features of a frequency near, and rather below, its target."""
    found = table[(table["kind"] == "neuron") & (table["cosine"] > 0.9)]
    if len(found) < 10 or found["feature frequency"].nunique() < 2:
        return [Claim("Neurons find features near their target frequency", None, None, None, "Too few were found.")]
    ratio = float((found["target"] / found["feature frequency"]).median())
    inside = float(
        ((found["target"] / found["feature frequency"]).between(1, 1 / found["feature frequency"] ** 0.5)).mean()
    )
    correlation = float(np.corrcoef(np.log(found["target"]), np.log(found["feature frequency"]))[0, 1])
    return [
        Claim(
            "Groups resonate with features of their frequency (correlation of log target and log f over the neurons "
            "that found a feature)", correlation, None, correlation > 0.3,
            f"The median target is {ratio:.2g} times the feature's frequency.",
        ),
        Claim(
            "The target lies in f .. sqrt(f) (share of the neurons that found a feature)", inside, None, inside > 0.5,
            "With the one-sided rule a target is a ceiling: neurons with a target above f come to fire at about f, and "
            "neurons with a target below f find features too.",
        ),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    "frequency-spread", "Which group learns which feature", cells, summarise, draw, seeds=(0, 1, 2), collect=collect,
    claims=claims,
)  # fmt: skip
