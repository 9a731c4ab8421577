"""Figure targets: which range of target frequencies GBA needs, and what a pilot finds without knowing f."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures.cells import Cell
from figures.experiments import Experiment, mean_and_interval
from figures.style import ACCENT, DARK, LIGHT, MARKERS, MIDDLE, new_figure, save_figure, seeds_text
from simulator import GBA, Bernoulli, Exactly, Given, Training, World, Zipf
from theory.targets import GROUPS, HIGHEST, LOWEST

SETTINGS = ("paper 0.1..0.001", "paper 0.5..0.001", "min f..sqrt max f", "oracle median f", "pilot")
"""Ranges compared; the third and fourth know the frequencies. `oracle median f` is the pilot's rule with the truth."""


def worlds(n: int, d: int) -> dict[str, World]:
    """Constant frequencies near the paper's range and far below it, two levels, Zipf, and log-normal ones."""
    two = np.where(np.arange(n) % 2 == 0, 1.0, 0.1)
    spread = np.exp(1.2 * np.random.default_rng(5).standard_normal(n))
    return {
        "constant": World(n, d, Exactly(3)),
        "constant, rare": World(4 * n, d, Exactly(2)),
        "two-level": World(n, d, Exactly(3, Given(two))),
        "zipf": World(n, d, Bernoulli(4, Zipf(0.75))),
        "log-normal": World(n, d, Bernoulli(4, Given(spread))),
        "dense mixture": World(n, d, Exactly(8)),
    }


def method(setting: str, world: World) -> GBA:
    """GBA with the range of a setting; of the pilot, what it starts from."""
    f = world.frequencies()
    middle = float(np.median(f))
    return {
        "paper 0.1..0.001": lambda: GBA(0.1, 1e-3, 10),
        "paper 0.5..0.001": lambda: GBA(0.5, 1e-3, 10),
        "min f..sqrt max f": lambda: GBA(min(0.5, float(f.max()) ** 0.5), float(f.min()), 10),
        "oracle median f": lambda: GBA(min(0.5, HIGHEST * middle), LOWEST * middle, GROUPS),
        "pilot": lambda: GBA(0.1, 1e-3, 10),
    }[setting]()


def cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    n, d, steps, batch, rate = (64, 24, 40, 128, 5e-3) if size == "tiny" else (256, 64, 600, 512, 5e-3)
    if size in ("paper", "full"):
        n, d, steps, batch, rate = 1_024, 128, 5_000, 1_024, 3e-3
    found = []
    for name, world in worlds(n, d).items():
        for M in (n, 4 * n):
            for setting in SETTINGS:
                training = Training(
                    method(setting, world), M, steps, batch, learning_rate=rate, decay=0.2, start_bias="quantile"
                )  # fmt: skip
                label = {"world": name, "M": M, "targets": setting}
                found += [
                    (label, Cell(world, training, seed, samples=10_000, references=False, pilot=setting == "pilot"))
                    for seed in seeds
                ]
    return found


COLUMNS = {
    "frr_090": "FRR 0.9", "frr_090_untrained": "untrained", "mcc": "MCC", "loss": "loss", "mean_l0": "L0",
}  # fmt: skip


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval per world, width and range."""
    short = mean_and_interval(table, ["world", "M", "targets"], COLUMNS)
    return short[["world", "M", "targets", "seeds", *COLUMNS.values(), "FRR 0.9 ±"]]


def draw(table: pd.DataFrame, path: Path) -> None:
    """FRR of every range, a row per world and width; equal samples, the pilot's own included."""
    short = mean_and_interval(table, ["world", "M", "targets"], {"frr_090": "rate"})
    rows = list(dict.fromkeys(zip(short["world"], short["M"], strict=True)))
    figure, axis = new_figure(width=6.4, height=0.9 + 0.34 * len(rows))
    colours = (DARK, MIDDLE, LIGHT, DARK, ACCENT)
    for k, setting in enumerate(SETTINGS):
        part = short[short["targets"] == setting]
        at = [rows.index(key) + 0.13 * (k - 2) for key in zip(part["world"], part["M"], strict=True)]
        rate, half = part["rate"].to_numpy(), part["rate ±"].fillna(0).to_numpy()
        axis.errorbar(
            rate, at, xerr=[np.minimum(half, rate), np.minimum(half, 1 - rate)], fmt=MARKERS[k], ms=4, lw=0.9,
            color=colours[k], mfc="white" if k == 3 else colours[k], label=setting,
        )  # fmt: skip
    axis.set_yticks(range(len(rows)), [f"{world}, M = {M}" for world, M in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel(f"features recovered, cosine > 0.9 ({seeds_text(table)})")
    figure.legend(fontsize=7, frameon=False, ncols=3, loc="outside upper center")
    save_figure(figure, path)


EXPERIMENT = Experiment(
    "targets",
    "GBA's target frequencies: the paper's ranges, ranges that know f, and a pilot that does not",
    cells,
    summarise,
    draw,
    # The pilot's rule was chosen on seeds 0 to 3.
    seeds=(10, 11, 12, 13, 14),
)
