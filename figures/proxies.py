"""Figure proxies: what an autoencoder alone tells about the quantities of the theory, against the truth.

Worlds are drawn at random from the ranges of `worlds`, by one stream for those on which the estimators of
`llm_bridge.proxies` were chosen ("tuning") and by another for those that judge them ("held out"). GBA is told nothing
about f. Two seeds learn one V; the first is measured, the second serves for the MCS only.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.stats import rankdata, spearmanr

from figures.cells import FIT, WORLD, Cell, evaluation_sample, load_fit
from figures.experiments import Experiment, Finished, learned
from figures.style import ACCENT, DARK, LIGHT, MIDDLE, new_figure, save_figure
from llm_bridge.proxies import NAMES, TRUSTED, Proxies, coherence, proxies
from simulator import (
    GBA,
    Bernoulli,
    Coherent,
    Exactly,
    Exponential,
    HalfNormal,
    Paired,
    RequestError,
    Sample,
    Training,
    Uniform,
    World,
    Zipf,
    stream,
)
from simulator.sae import encode
from simulator.training import prepare
from theory.consistency import max_cosines

SETS = {"tuning": 4, "held out": 5}
"""Worlds of each kind."""
KINDS = {
    "exactly s": ("o", DARK), "independent": ("s", MIDDLE), "coherent": ("^", ACCENT), "paired": ("D", "#7a9a52"),
    "noise": ("v", "#b08a3e"), "coefficients": ("P", "#8a5a83"),
}  # fmt: skip
SIGNED = tuple(NAMES)[tuple(NAMES).index("H1") :]
"""Slacks: on linear axes, the rest on logarithmic ones."""


@functools.cache
def worlds(chosen: str) -> tuple[tuple[str, World, int], ...]:
    """Kind, world and M: n log-uniform in 64..512, d in 24..192 with 1.2 < n / d < 6, s from 2 to d / 6 or 16, M in
    768..2,048 whatever n is, so that neither M nor L0 gives n or s away; then what the kind varies."""
    draw, found = stream(tuple(SETS).index(chosen), "proxies/worlds"), []
    for kind in tuple(KINDS) * SETS[chosen]:
        n = 2 * round(2 ** draw.uniform(5, 8))
        d = round(math.exp(draw.uniform(math.log(max(24, n / 6)), math.log(min(192, n / 1.2)))))
        s = max(2, round(math.exp(draw.uniform(math.log(1.6), math.log(min(16, d / 6))))))
        dial = draw.random()
        M = 10 * round(2 ** draw.uniform(9.58, 11) / 10)
        zipf = float(draw.choice((0, 0.25, 0.5, 0.75)))
        found.append((kind, _world(kind, n, d, s, zipf, dial), M))
    return tuple(found)


def _world(kind: str, n: int, d: int, s: int, zipf: float, dial: float) -> World:
    """The world of a kind; `dial` in [0, 1) is what the kind varies."""
    if kind == "exactly s":
        return World(n, d, Exactly(s))
    if kind == "independent":
        return World(n, d, Bernoulli(s, Zipf(round(0.9 * dial, 2))))
    if kind == "paired":
        return World(n, d, Paired(s, round(0.1 + 0.5 * dial, 2)))
    free = Bernoulli(s, Zipf(zipf))
    if kind == "coherent":
        return World(n, d, free, Coherent(round(0.05 + 0.3 * dial, 2)))
    if kind == "noise":
        return World(n, d, free, noise=round(0.1 + 0.4 * dial, 2))
    laws = (Uniform(0.5, 1.5), Uniform(0.0, 2.0), HalfNormal(), Exponential())
    return World(n, d, free, coefficients=laws[int(4 * dial)])


def cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    """Two seeds of every world; at size tiny of the first held-out world of three kinds, shortly trained."""
    found = []
    for number, chosen in enumerate(SETS):
        some = list(enumerate(worlds(chosen)))
        if size == "tiny":
            some = [some[k] for k in (0, 3, 5)] if chosen == "held out" else []
        for k, (kind, world, M) in some:
            M, steps, batch, samples = (400, 400, 128, 4_000) if size == "tiny" else (M, 1_000, 512, 20_000)
            training = Training(GBA(), M, steps, batch, learning_rate=3e-3, decay=0.7, start_bias="quantile")
            label = {"set": chosen, "world": k, "kind": kind, "n": world.n, "d": world.d, "s": world.mean_active,
                     "M": M}  # fmt: skip
            for seed in seeds[:2]:
                cell = Cell(world, training, seed, samples=samples, references=False, dictionary_seed=number)
                found.append((label, cell))
    return found


def truth(world: World, sample: Sample, M: int) -> Proxies:
    """The same quantities of the law of the world and of V; only the quantile of s is that of the sample's H."""
    rho_2 = world.support.rho_2(world.n)
    assert rho_2 is not None
    # In these laws every feature but one has a partner that attains rho_2, so that the median is the maximum.
    return Proxies(
        n=world.n, s=world.mean_active, s_upper=float(np.quantile(np.diff(sample.H.indptr), 0.95)),
        frequencies=np.sort(world.frequencies())[::-1], rho_2=rho_2, co_occurrence=rho_2,
        **coherence(np.asarray(sample.V, np.float64)), d=world.d, M=M,
    )  # fmt: skip


def collect(done: Sequence[Finished]) -> pd.DataFrame:
    """One row per world and proxy. A world without two consistent features has no estimate: NaN."""
    groups: dict[tuple[str, int], list[Finished]] = {}
    for one in learned(done):
        groups.setdefault((one.label["set"], one.label["world"]), []).append(one)
    rows = []
    for first, *others in groups.values():
        if not others:
            continue
        cell, world = first.cell, first.cell.world
        assert world is not None
        fit, other = load_fit(first.folder), load_fit(others[0].folder)
        sample = evaluation_sample(cell, cell.source())
        assert isinstance(sample, Sample)
        X = prepare(sample.X, cell.training)
        codes = encode(X, fit["W"], fit["b"], fit["b_pre"], cell.training.gate)
        exact = truth(world, sample, len(fit["W"])).values()
        try:
            found = proxies(fit["W"], codes, max_cosines(fit["W"], other["W"]), mean=X.mean(axis=0))
            estimates, coverage = found.values(), found.coverage
        except RequestError:
            estimates, coverage = dict.fromkeys(NAMES, np.nan), np.nan
        shared = {**first.label, "seed": cell.seed, "coverage": coverage}
        shared |= {name: first.result[name] for name in ("frr_090", "mean_l0")}
        rows += [{**shared, "proxy": name, "estimate": estimates[name], "truth": exact[name]} for name in NAMES]
    return pd.DataFrame(rows)


def correlation(part: pd.DataFrame) -> float:
    """Spearman rank correlation of estimate and truth over the worlds with an estimate; NaN for fewer than three."""
    part = part.loc[part["estimate"].notna()]
    if len(part) < 3 or part["truth"].nunique() < 2 or part["estimate"].nunique() < 2:
        return np.nan
    return float(spearmanr(part["estimate"], part["truth"])[0])


def control(part: pd.DataFrame) -> float:
    """Largest |rank correlation| of the truth with d, M and mean L0."""
    found = [abs(correlation(part.assign(estimate=part[name].astype(float)))) for name in ("d", "M", "mean_l0")]
    return float(np.nanmax(found)) if np.isfinite(found).any() else np.nan


def interval(part: pd.DataFrame) -> tuple[float, float]:
    """95 % interval of the rank correlation by 2,000 resamples of the worlds with an estimate."""
    values = part.loc[part["estimate"].notna(), ["estimate", "truth"]].to_numpy(float)
    if len(values) < 3:
        return np.nan, np.nan
    chosen = stream(0, "proxies/bootstrap").integers(0, len(values), (2_000, len(values)))
    ranks = rankdata(values[chosen], axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.square(ranks).sum(axis=1).prod(axis=1))
    found = ranks.prod(axis=2).sum(axis=1)[spread > 0] / spread[spread > 0]
    if not len(found):
        return np.nan, np.nan
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """One row per proxy. Interval and `trusted` by the held-out worlds; error: median of estimate - truth of a slack;
    control: the largest |rank correlation| of the truth with what no proxy is needed for, d, M or mean L0."""
    rows = []
    for name in NAMES:
        part = table[table["proxy"] == name]
        held, tuning = (part[part["set"] == chosen] for chosen in ("held out", "tuning"))
        low, high = interval(held)
        known = held[held["estimate"].notna()]
        signed = name in SIGNED
        ratio = np.nan if signed or not len(known) else float((known["estimate"] / known["truth"]).median())
        error = float((known["estimate"] - known["truth"]).median()) if signed and len(known) else np.nan
        rows.append(
            {"proxy": NAMES[name], "worlds": len(held), "no estimate": len(held) - len(known),
             "rank correlation": correlation(held), "low": low, "high": high, "on tuning worlds": correlation(tuning),
             "estimate / truth": ratio, "error": error, "control": control(held),
             "trusted": bool(correlation(held) >= TRUSTED)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Estimate against truth, a panel per proxy; full: held-out worlds, hollow: tuning worlds."""
    columns = 5
    figure, axes = new_figure(-(-len(NAMES) // columns), columns, width=2.35, height=2.3, squeeze=False)
    for axis, name in zip(axes.flat, NAMES, strict=False):
        part = table[(table["proxy"] == name) & np.isfinite(table["estimate"]) & np.isfinite(table["truth"])]
        if name not in SIGNED:
            part = part[(part["estimate"] > 0) & (part["truth"] > 0)]
        value = correlation(table[(table["proxy"] == name) & (table["set"] == "held out")])
        grey = not value >= TRUSTED
        for kind, (marker, colour) in KINDS.items():
            for chosen in SETS:
                some = part[(part["kind"] == kind) & (part["set"] == chosen)]
                held = chosen == "held out"
                look = {"mec": LIGHT if grey else colour, "mfc": (LIGHT if grey else colour) if held else "none"}
                axis.plot(some["truth"], some["estimate"], marker, ms=4.5 if held else 4, mew=0.7, ls="none",
                          label=kind if held else None, **look)  # fmt: skip
        if len(part):
            _square(axis, part, name in SIGNED)
        told = f"{value:.2f}" + (", greyed" if grey else "")
        axis.set_title(f"{NAMES[name]}\nrank correlation {told}", fontsize=7.5, color="#999999" if grey else "black")
    for axis in axes.flat[len(NAMES) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("estimate", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("truth", fontsize=8)
    handles = [axes.flat[0].plot([], [], marker, color=colour, ls="none", ms=5)[0] for marker, colour in KINDS.values()]
    figure.legend(handles, list(KINDS), loc="outside lower center", ncols=len(KINDS), fontsize=8, frameon=False)
    counts = table.drop_duplicates(["set", "world"])["set"].value_counts()
    told = (
        "full: {held out} held-out worlds, which give the rank correlation; hollow: {tuning} on which the estimators "
    )
    figure.suptitle(
        (told + "were chosen").format(**{chosen: counts.get(chosen, 0) for chosen in SETS}), fontsize=9
    )  # fmt: skip
    save_figure(figure, path)


def _square(axis: Any, part: pd.DataFrame, signed: bool) -> None:
    """Equal limits on both axes and the diagonal."""
    values = part[["estimate", "truth"]].to_numpy(float)
    low, high = values.min(), values.max()
    if signed:
        margin = 0.06 * (high - low) or 1.0
        low, high = low - margin, high + margin
    else:
        axis.set_xscale("log")
        axis.set_yscale("log")
        low, high = low / 1.2, high * 1.2
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 30 else (1,)))
            scale.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            scale.set_minor_formatter(NullFormatter())
    axis.plot([low, high], [low, high], color="#999999", lw=0.8, zorder=0)
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    axis.tick_params(labelsize=7)


EXPERIMENT = Experiment(
    "proxies", "Quantities of the theory estimated without V and H, against the truth", cells, summarise, draw,
    seeds=(0, 1), collect=collect, needs=(FIT, WORLD),
)  # fmt: skip
