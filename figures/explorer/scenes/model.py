"""Page 1: features as directions in two or three dimensions, mixtures of them, coherence and its law."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.stats import beta

from figures.explorer.scenes.scene import Scene, panel
from figures.style import ACCENT, DARK, LIGHT, MIDDLE
from simulator import Exactly, RequestError, Uniform, UnitSphere, World
from theory.conditions import largest_cosine, of_world

SAMPLES = 400
"""Mixtures drawn as dots."""
DIMENSIONS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
"""At which the law of the coherence is drawn."""


def cosine_density(c: np.ndarray, d: int) -> np.ndarray:
    """Density of the cosine of two isotropic directions in d dimensions.

    (1 + c) / 2 ~ Beta((d-1)/2, (d-1)/2): the arcsine law for d = 2, uniform for d = 3.
    """
    return beta.pdf((1 + c) / 2, (d - 1) / 2, (d - 1) / 2) / 2


@lru_cache(maxsize=4096)
def coherence_law(n: int, d: int) -> tuple[float, float, float]:
    """Typical max |cos| of n isotropic directions in d dimensions; ends of an interval with probability 0.95."""
    V1 = of_world(World(n, d, Exactly(1), UnitSphere())).V1
    return V1.measured, V1.limit * math.exp(-V1.high), V1.limit * math.exp(-V1.low)


def show(n: int, d: int, s: int, seed: int = 0, noise: float = 0.0) -> Scene:
    """n features in d dimensions, mixtures of s of them, their cosines, their coherence beside its law.

    Raises:
        RequestError: d other than 2 or 3, fewer than two features, or s > n.
    """
    if d not in (2, 3):
        raise RequestError(f"d = {d} cannot be drawn; take 2 or 3")
    if n < 2:
        raise RequestError("one feature has no angle to another; take n >= 2")
    world = World(n, d, Exactly(s), UnitSphere(), Uniform(), unit_rows=False, noise=noise)
    sample = world.sample(SAMPLES, seed)
    X, V = sample.X, sample.V
    first, second, third = panel(None if d == 2 else "3d"), panel(), panel()
    _draw_mixtures(first[1], X, V)
    cosines = (V @ V.T)[np.triu_indices(n, 1)]
    _draw_cosines(second[1], cosines, d)
    coherence = largest_cosine(V.astype(float))
    typical, low, high = coherence_law(n, d)
    _draw_law(third[1], n, d, coherence)
    crowded = (
        f"**Superposition**: {n} features share {d} dimensions, so they cannot all be orthogonal."
        if n > d
        else f"{n} features fit into {d} dimensions; nothing forces them together."
    )
    text = (
        f"{crowded} Every dot is $x = \\sum_i h_i v_i$ with {s} of the {n} features active.\n\n"
        f"Coherence of this dictionary, the largest |cos| of two features: **{coherence:.3f}**. The law says "
        f"{typical:.3f}, and between {low:.3f} and {high:.3f} with probability 0.95. "
        f"Co-occurrence of two features: P(j active | i active) = (s - 1)/(n - 1) = {(s - 1) / (n - 1):.2f}."
    )
    numbers = {"coherence": coherence, "typical": typical, "low": low, "high": high, "samples": len(X)}
    return Scene((first[0], second[0], third[0]), text, numbers)


def _draw_mixtures(axis: Any, X: np.ndarray, V: np.ndarray) -> None:
    reach = 1.05 * max(1.0, float(np.abs(X).max()))
    if V.shape[1] == 2:
        axis.plot(X[:, 0], X[:, 1], ".", ms=2.5, color=MIDDLE, alpha=0.6)
        for v in V:
            axis.annotate("", v, (0, 0), arrowprops={"arrowstyle": "->", "color": ACCENT, "lw": 1.4})
        axis.set_aspect("equal")
        axis.set_ylim(-reach, reach)
    else:
        axis.plot(X[:, 0], X[:, 1], X[:, 2], ".", ms=2, color=MIDDLE, alpha=0.5)
        for v in V:
            axis.plot(*np.stack([np.zeros(3), v], axis=1), color=ACCENT, lw=1.4)
        axis.set_ylim(-reach, reach)
        axis.set_zlim(-reach, reach)
        axis.tick_params(labelsize=6)
    axis.set_xlim(-reach, reach)
    axis.set_title("features (red) and mixtures of them", fontsize=10)


def _draw_cosines(axis, cosines: np.ndarray, d: int) -> None:
    axis.hist(
        cosines, bins=np.linspace(-1, 1, 25), density=True, histtype="stepfilled", color=LIGHT, label="these features"
    )
    c = np.linspace(-0.995, 0.995, 400)
    axis.plot(c, cosine_density(c, d), color=DARK, lw=1.4, label="law of random directions")
    axis.set_ylim(0, max(2.5, min(8.0, axis.get_ylim()[1])))
    axis.set_xlabel("cosine of two features")
    axis.set_ylabel("density")
    axis.set_title(f"cosines in d = {d}", fontsize=10)
    axis.legend(fontsize=8, frameon=False)


def _draw_law(axis, n: int, d: int, coherence: float) -> None:
    laws = np.array([coherence_law(n, other) for other in DIMENSIONS])
    axis.fill_between(DIMENSIONS, laws[:, 1], laws[:, 2], color=LIGHT, label="95 % interval")
    axis.plot(DIMENSIONS, laws[:, 0], color=DARK, lw=1.4, label="typical")
    axis.plot([d], [coherence], "o", color=ACCENT, ms=6, label="this dictionary")
    axis.set_xscale("log")
    axis.set_xlabel("dimension d")
    axis.set_ylabel("coherence max |cos|")
    axis.set_ylim(0, 1.05)
    axis.set_title(f"coherence of n = {n} features", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
