"""Figure bias-adaptation: groups and targets, the gate of one trained neuron, and both while the run goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures.cells import FIT, Cell, Watch, evaluation_sample, load_fit
from figures.claims import Claim
from figures.experiments import Experiment, Finished, learned
from figures.style import ACCENT, DARK, LIGHT, MIDDLE, new_figure, save_figure
from simulator import GBA, Exactly, Sample, Training, World
from simulator.training import prepare

SHOWN = 20
"""Samples in the panel of pre-activations."""
PER_GROUP = 4
"""Neurons of each group that are watched."""


def cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    """GBA with the paper's range of targets; biases start at zero, as the paper has it."""
    n, d, M, steps, batch = (32, 16, 60, 100, 64) if size == "tiny" else (256, 64, 1_000, 6_000, 512)
    if size in ("paper", "full"):
        n, d, M, steps = 1_024, 128, 4_000, 20_000
    training = Training(GBA(0.1, 1e-3, 10, buffer=10 * batch), M, steps, batch, learning_rate=3e-3, decay=0.7)
    neurons = tuple(start + k for start, _ in training.group_bounds() for k in range(min(PER_GROUP, M // 10)))
    watch = Watch(neurons, every=max(1, steps // 150))
    return [({}, Cell(World(n, d, Exactly(3)), training, seed, samples=20_000, watch=watch)) for seed in seeds[:1]]


def collect(done: Sequence[Finished]) -> pd.DataFrame:
    """One table for all panels, told apart by `panel`."""
    parts = []
    done = learned(done)
    for one in done:
        targets = one.cell.training.targets()
        assert targets is not None
        neurons = pd.read_csv(one.folder / "neurons.csv")
        groups = np.unique(targets)[::-1]
        parts.append(
            pd.DataFrame(
                {"panel": "groups", "group": np.arange(1, len(groups) + 1), "target": groups,
                 "frequency": [neurons.loc[np.isclose(targets, p), "frequency"].median() for p in groups]}
            )
        )  # fmt: skip
        parts.append(pre_activations(one, neurons, targets))
        history = pd.read_csv(one.folder / "history.csv")
        assert one.cell.watch is not None
        for m in one.cell.watch.neurons:
            parts.append(
                pd.DataFrame(
                    {"panel": "history", "group": int(np.argmin(abs(groups - targets[m]))) + 1, "target": targets[m],
                     "neuron": m, "step": history["step"], "bias": history[f"bias_{m}"],
                     "frequency": history[f"frequency_{m}"]}
                )
            )  # fmt: skip
        parts[-1]["seed"] = one.cell.seed
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def pre_activations(one: Finished, neurons: pd.DataFrame, targets: np.ndarray) -> pd.DataFrame:
    """w . (x - b_pre) of one neuron on consecutive fresh samples, and its threshold -b.

    The neuron: of those that point at a feature (cosine > 0.9, or the best one), the one that is active on most
    of the samples shown; the first of equals.
    """
    drawn = evaluation_sample(one.cell, one.cell.source())
    assert isinstance(drawn, Sample)
    X, saved = prepare(drawn.X[:SHOWN], one.cell.training), load_fit(one.folder)
    z = (X - saved["b_pre"]) @ saved["W"].T
    active = (z + saved["b"] > 0).sum(axis=0)
    aligned = (neurons["cosine"] > min(0.9, neurons["cosine"].max() - 1e-9)).to_numpy()
    m = int(np.argmax(np.where(aligned, active, -1)))
    feature = int(neurons.loc[m, "feature"])
    has_feature = np.asarray(drawn.H[:SHOWN, [feature]].todense()).ravel() > 0
    return pd.DataFrame(
        {"panel": "pre-activations", "sample": np.arange(1, len(X) + 1), "pre_activation": z[:, m],
         "threshold": -float(saved["b"][m]), "neuron": m, "target": targets[m], "feature": feature,
         "has_feature": has_feature, "frequency": neurons.loc[m, "frequency"], "cosine": neurons.loc[m, "cosine"]}
    )  # fmt: skip


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Per group: target, median activation frequency after training, and final biases of the watched neurons."""
    groups = table[table["panel"] == "groups"][["group", "target", "frequency"]].reset_index(drop=True)
    history = table[table["panel"] == "history"]
    last = history[history["step"] == history["step"].max()].groupby("group")["bias"].agg(["min", "max"])
    last.columns = ["lowest bias", "highest bias"]
    return groups.merge(last.reset_index(), on="group")


def draw(table: pd.DataFrame, path: Path) -> None:
    """Four panels: targets of the groups, pre-activations with the threshold, bias and frequency over training."""
    figure, axes = new_figure(2, 2, width=5.2, height=3.3)
    _draw_groups(axes[0, 0], table[table["panel"] == "groups"])
    _draw_gate(axes[0, 1], table[table["panel"] == "pre-activations"])
    history = table[table["panel"] == "history"]
    shown = sorted(history["group"].unique())
    shown = [shown[i] for i in sorted({0, len(shown) // 2, len(shown) - 1})]
    for axis, column, label in (
        (axes[1, 0], "bias", "bias b"), (axes[1, 1], "frequency", "activation frequency"),
    ):  # fmt: skip
        for group, colour, style in zip(shown, (ACCENT, MIDDLE, DARK), ("-", "--", "-."), strict=False):
            part = history[history["group"] == group]
            for k, (_, line) in enumerate(part.groupby("neuron")):
                name = f"group {group:.0f}, target {line['target'].iloc[0]:.2g}" if k == 0 else None
                axis.plot(line["step"], line[column], color=colour, ls=style, lw=0.9, label=name)
            if column == "frequency":
                axis.axhline(part["target"].iloc[0], color=colour, lw=2.5, alpha=0.3)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
    axes[1, 1].set_yscale("log")
    axes[1, 1].set_title(f"{PER_GROUP} neurons of each group; the bars are the targets", fontsize=8, loc="left")
    axes[1, 0].legend(fontsize=7, frameon=False)
    save_figure(figure, path)


def _draw_groups(axis: Any, groups: pd.DataFrame) -> None:
    """Each group as a row of neurons beside its target frequency."""
    for _, row in groups.iterrows():
        axis.plot([row["target"]], [row["group"]], "s", color=DARK, ms=8)
        axis.plot([row["frequency"]], [row["group"]], "o", mfc="white", mec=ACCENT, ms=5, mew=1.2)
    axis.plot([], [], "s", color=DARK, label="target frequency")
    axis.plot([], [], "o", mfc="white", mec=ACCENT, label="median of the trained neurons")
    axis.set_xscale("log")
    axis.set_xlabel("activation frequency")
    axis.set_yticks(groups["group"], [f"$G_{{{k:.0f}}}$" for k in groups["group"]], fontsize=8)
    axis.invert_yaxis()
    axis.set_ylabel("neuron group")
    axis.legend(fontsize=7, frameon=False)


def _draw_gate(axis: Any, part: pd.DataFrame) -> None:
    """Bars of pre-activations; hatched where the neuron's feature is present."""
    threshold, value = float(part["threshold"].iloc[0]), part["pre_activation"]
    axis.axhspan(min(0, value.min()) - 0.05, threshold, color="#e8e8e8", zorder=0, label="region of no activation")
    axis.axhline(threshold, color="black", ls="--", lw=1, label=f"threshold -b = {threshold:.2f}")
    active = value > threshold
    for kind, colour, label in ((active, ACCENT, "activated"), (~active, LIGHT, "not activated")):
        axis.bar(part.loc[kind, "sample"], value[kind], color=colour, label=label, width=0.75)
    present = part["has_feature"].astype(bool)
    axis.plot(
        part.loc[present, "sample"], np.maximum(value[present], 0) + 0.05, "v", color=DARK, ms=4,
        label="its feature is present",
    )  # fmt: skip
    axis.set_xlabel("data stream (fresh samples)")
    axis.set_ylabel(r"$w^\top(x - b_{pre})$")
    axis.set_title(
        f"neuron {part['neuron'].iloc[0]:.0f}, cosine {part['cosine'].iloc[0]:.2f} with feature "
        f"{part['feature'].iloc[0]:.0f}, frequency {part['frequency'].iloc[0]:.3f}, 1 seed", fontsize=8, loc="left",
    )  # fmt: skip
    axis.set_xticks(range(1, len(part) + 1, 3))
    axis.legend(fontsize=6.5, framealpha=0.85, edgecolor="none", ncols=2, loc="lower left")


def claims(table: pd.DataFrame) -> list[Claim]:
    """The biases steer every neuron to its target; the rule as printed makes the target a ceiling."""
    groups = table[table["panel"] == "groups"]
    ratio = groups["frequency"] / groups["target"]
    return [
        Claim(
            "Each neuron fires at its target frequency (median over the groups of measured over target)",
            float(ratio.median()), 1.0, bool(0.8 <= ratio.median() <= 1.25),
            f"The groups' medians lie at {ratio.min():.2f} to {ratio.max():.2f} of their targets. The rule is "
            "one-sided: a target is a ceiling that is enforced, and below it a bias is only raised once the neuron is "
            "silent; a neuron that holds a feature fires at the feature's frequency.",
        )
    ]  # fmt: skip


EXPERIMENT = Experiment(
    "bias-adaptation", "Groups, the gate of a trained neuron, biases over training", cells, summarise, draw,
    seeds=(0,), collect=collect, needs=(FIT,), claims=claims,
)  # fmt: skip
