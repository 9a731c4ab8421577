"""Presets robustness-*: recovery against the violation of each assumption of the statistical model.

One dial per assumption, everything else as in the base world (n = 256 Gaussian features in d = 64, s = 3, equal
frequencies and coefficients, no noise). BA knows f (p = 2 f), GBA does not.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures.cells import Cell
from figures.experiments import Experiment, mean_and_interval
from figures.style import ACCENT, DARK, LIGHT, MARKERS, MIDDLE, new_figure, save_figure
from simulator import (
    BA,
    GBA,
    Bernoulli,
    Coherent,
    ConstantCoefficients,
    Exactly,
    Exponential,
    Gaussian,
    HalfNormal,
    HeavyTailed,
    Hub,
    OnePair,
    Paired,
    Rademacher,
    SparseGaussian,
    Training,
    Uniform,
    World,
    Zipf,
)

SHAPES = {256: (64, 1_024), 1_024: (128, 4_096), 4_096: (256, 8_192)}
"""n: (d, M) of the co-occurrence experiment."""
RHOS = {
    256: (0.015, 0.03, 0.06, 0.1, 0.2, 0.3, 0.45, 0.6),
    1_024: (0.015, 0.03, 0.1, 0.3, 0.45, 0.6),
    4_096: (0.0156, 0.1, 0.3, 0.45, 0.6),
}
NEAR_ONE = (0.8, 0.9, 0.97, 1.0)
"""Further values for the one pair, at n = 256 and 1,024: pairs all over cannot reach them with s = 3."""
STRUCTURES = {"one pair": OnePair, "pairs": Paired, "hub": Hub}
TINY = {"steps": 30, "batch": 64}


def training(method: BA | GBA, M: int, size: str) -> Training:
    run = TINY if size == "tiny" else {"steps": 1_500, "batch": 512}
    return Training(method, M, learning_rate=3e-3, decay=0.7, start_bias="quantile", **run)


def cooccurrence_cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    """rho_2 by one pair, by pairs all over (blocks of two), by a hub; two seeds at n = 1,024, one at 4,096."""
    found = []
    shapes = {256: (12, 32)} if size == "tiny" else SHAPES
    for n, (d, M) in shapes.items():
        n_used = 16 if size == "tiny" else n
        for structure, law in STRUCTURES.items():
            if n == 4_096 and structure != "pairs":
                continue
            more = NEAR_ONE if structure == "one pair" else ()
            for rho in (0.2,) if size == "tiny" else RHOS[n] + more:
                support = law(3, rho)
                rho_2 = support.rho_2(n_used)
                label = {
                    "structure": structure, "n": n_used, "rho": rho, "rho_2": rho_2,
                    "sqrt(n) rho_2": n_used**0.5 * rho_2,
                }  # fmt: skip
                world, method = World(n_used, d, support), BA(6 / n_used if size != "tiny" else 0.3)
                kept = seeds if n < 1_000 else seeds[: 2 if n == 1_024 else 1]
                found += [(label, _cell(world, method, M, seed, size)) for seed in kept]
    return found


def _cell(world: World, method: BA | GBA, M: int, seed: int, size: str) -> Cell:
    return Cell(world, training(method, M, size), seed, samples=2_000, references=False)


def _both(dial: str, worlds: Sequence[tuple[str, float, Any]], seeds: Sequence[int], size: str):
    """Cells of a dial for BA and GBA; `worlds` are (law, value of the dial, changes of the base world)."""
    n, d, M = (16, 12, 32) if size == "tiny" else (256, 64, 1_024)
    found = []
    for law, value, changes in worlds[:2] if size == "tiny" else worlds:
        world = World(n, d, changes.pop("support", Exactly(3)), **changes)
        for name, method in (("BA 2 f", BA(min(0.4, 6 / n))), ("GBA 0.1..0.001", GBA())):
            label = {"method": name, "law": law, dial: value}
            found += [(label, _cell(world, method, M, seed, size)) for seed in seeds]
    return found


def coherence_cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    """Features that lean to a common direction."""
    values = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    return _both("mean cosine", [("coherent", c, {"dictionary": Coherent(c)}) for c in values], seeds, size)


def dictionary_cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    """V that is not Gaussian; the dial is the kurtosis of its entries (3: Gaussian; infinite for t with df <= 4)."""
    laws = [("Gaussian", 3.0, Gaussian()), ("Rademacher", 1.0, Rademacher())]
    laws += [(f"sparse {density:g}", 3 / density, SparseGaussian(density)) for density in (0.5, 0.2, 0.1, 0.05)]
    laws += [("Student t, 5", 9.0, HeavyTailed(5.0)), ("Student t, 3", np.inf, HeavyTailed(3.0))]
    return _both("kurtosis", [(law, value, {"dictionary": V}) for law, value, V in laws], seeds, size)


def frequencies_cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    """Zipf frequencies, with exactly s active features and with independent ones."""
    worlds = [("exactly", z, {"support": Exactly(3, Zipf(z))}) for z in (0.0, 0.25, 0.5, 0.75)]
    worlds += [("Bernoulli", z, {"support": Bernoulli(3, Zipf(z))}) for z in (0.0, 0.5, 0.75)]
    return _both("Zipf exponent", worlds, seeds, size)


def coefficients_cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    """Spread of the coefficients: standard deviation over mean before rows are scaled."""
    laws = [("constant", 0.0, ConstantCoefficients()), ("uniform 0.5..1.5", 0.289, Uniform(0.5, 1.5))]
    laws += [("uniform 0..2", 0.577, Uniform(0.0, 2.0)), ("half-normal", 0.756, HalfNormal())]
    laws += [("exponential", 1.0, Exponential())]
    worlds = [(law, value, {"coefficients": coefficients}) for law, value, coefficients in laws]
    return _both("coefficient of variation", worlds, seeds, size)


def noise_cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    """Gaussian noise; the dial is its norm over that of the signal."""
    return _both("noise / signal", [("Gaussian", x, {"noise": x}) for x in (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)], seeds, size)


def pair_columns(folder: Path) -> dict[str, float]:
    """What became of features 0 and 1, the pair (or the hub and one of its partners)."""
    cosine = pd.read_csv(folder / "features.csv")["cosine"]
    return {"cosine of 0": float(cosine[0]), "cosine of 1": float(cosine[1])}


COLUMNS = {
    "frr_090": "FRR 0.9",
    "frr_080": "FRR 0.8",
    "frr_090_untrained": "untrained",
    "neuron_precision_090": "precision",
}


def draw_cooccurrence(table: pd.DataFrame, path: Path) -> None:
    """Share recovered against sqrt(n) rho_2, and the cosine of the features concerned against rho_2 itself."""
    figure, (left, right) = new_figure(1, 2)
    for k, ((structure, n), part) in enumerate(table.groupby(["structure", "n"], sort=False)):
        mean = part.groupby("rho_2")[["sqrt(n) rho_2", "frr_090", "cosine of 0", "cosine of 1"]].mean().reset_index()
        style = {"marker": MARKERS[k % 5], "ms": 4, "lw": 1, "color": (DARK, ACCENT, MIDDLE)[k % 3]}
        style["ls"] = ("-", "--", ":")[k // 3 % 3]
        left.plot(mean["sqrt(n) rho_2"], mean["frr_090"], label=f"{structure}, n = {n}", **style)
        concerned = mean["cosine of 0"] if structure == "hub" else mean[["cosine of 0", "cosine of 1"]].min(axis=1)
        right.plot(mean["rho_2"], concerned, **style)
    for axis, name in ((left, "sqrt(n) rho_2"), (right, "rho_2")):
        axis.set_xscale("log")
        axis.set_xlabel(name)
        axis.set_ylim(-0.03, 1.05)
    left.axvline(1, color=LIGHT, lw=1)
    left.set_ylabel("features recovered, cosine > 0.9")
    left.legend(fontsize=7, frameon=False, loc="lower left")
    right.set_ylabel("cosine of the pair (smaller), of the hub")
    right.set_title(f"mean over {table['seed'].nunique()} seeds (n = 1,024: 2, 4,096: 1)", fontsize=8, loc="left")
    save_figure(figure, path)


def _experiment(name: str, title: str, cells: Any, by: tuple[str, ...], dial: str, measure: Any = None) -> Experiment:
    extra = {"cosine of 0": "cosine of 0", "cosine of 1": "cosine of 1"} if measure else {}

    def summarise(table: pd.DataFrame) -> pd.DataFrame:
        short = mean_and_interval(table, by, COLUMNS | extra)
        return short.drop(columns=[f"{name} ±" for name in ("untrained", "precision", *extra)])

    def draw(table: pd.DataFrame, path: Path) -> None:
        if name == "cooccurrence":
            draw_cooccurrence(table, path)
            return
        groups = [column for column in by if column not in (dial, "rho", "rho_2", "law")]
        groups += ["law"] if name == "frequencies" else []
        axis = "law" if name == "dictionary" else dial
        draw_dial(summarise(table), groups, axis, title, path)

    return Experiment(f"robustness-{name}", title, cells, summarise, draw, (0, 1, 2), measure)


def draw_dial(short: pd.DataFrame, groups: list[str], dial: str, title: str, path: Path) -> None:
    """FRR at 0.9 against the dial (or the names of the laws), one line per group with its 95 % interval."""
    figure, axis = new_figure(width=5.4, height=3.6)
    names = list(dict.fromkeys(short[dial])) if dial == "law" else []
    for k, (label, part) in enumerate(short.groupby(groups, sort=False)):
        x = part[dial].map(names.index) if names else part[dial]
        order = np.argsort(x.to_numpy(float), kind="stable")
        rate, half = part["FRR 0.9"].to_numpy()[order], part["FRR 0.9 ±"].fillna(0).to_numpy()[order]
        ends = np.minimum(half, rate), np.minimum(half, 1 - rate)
        axis.errorbar(
            x.to_numpy()[order], rate, yerr=ends, marker=MARKERS[k % len(MARKERS)], ms=4, lw=1, capsize=2,
            color=(DARK, ACCENT, MIDDLE)[k % 3], ls=("-", "--", ":")[k // 3 % 3], label=", ".join(map(str, label)),
        )  # fmt: skip
    if names:
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axis.set_xlabel("" if names else dial)
    axis.set_ylabel("features recovered, cosine > 0.9")
    axis.set_ylim(-0.03, 1.05)
    axis.set_title(f"{title}; seeds: {int(short['seeds'].max())}", fontsize=8, loc="left")
    axis.legend(fontsize=7, frameon=False)
    save_figure(figure, path)


EXPERIMENTS = {
    "cooccurrence": _experiment(
        "cooccurrence", "co-occurrence rho_2", cooccurrence_cells, ("structure", "n", "rho", "rho_2", "sqrt(n) rho_2"),
        "sqrt(n) rho_2", pair_columns,
    ),
    "coherence": _experiment(
        "coherence", "coherent features", coherence_cells, ("method", "law", "mean cosine"), "mean cosine"
    ),
    "dictionary": _experiment(
        "dictionary", "features that are not Gaussian", dictionary_cells, ("method", "law", "kurtosis"), "kurtosis"
    ),
    "frequencies": _experiment(
        "frequencies", "unequal frequencies", frequencies_cells, ("method", "law", "Zipf exponent"), "Zipf exponent"
    ),
    "coefficients": _experiment(
        "coefficients", "spread of the coefficients", coefficients_cells, ("method", "law", "coefficient of variation"),
        "coefficient of variation",
    ),
    "noise": _experiment("noise", "noise", noise_cells, ("method", "law", "noise / signal"), "noise / signal"),
}  # fmt: skip
