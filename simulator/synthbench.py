"""The world of SynthSAEBench, rebuilt from its recipe, and the same recipe with fewer features."""

import numpy as np
from jaxtyping import Float

from simulator.checks import real, whole
from simulator.coefficients import ClippedNormal
from simulator.copula import Copula, RandomFactors
from simulator.dictionaries import Dictionary, Orthogonalised
from simulator.errors import RequestError
from simulator.hierarchy import trees
from simulator.rng import stream
from simulator.world import World

# Features per tree of the recipe: 128 trees at n = 16,384.
_PER_TREE = 128


def scaled_zipf(n: int, exponent: float, largest: float, least: float) -> Float[np.ndarray, " n"]:
    """Frequencies (i + 1)^-exponent, i = 0..n-1, mapped linearly to [least, largest]: the first feature is the most
    frequent.

    Raises:
        RequestError: n < 1, an exponent <= 0, or ends that are not 0 < least < largest <= 1.
    """
    n, exponent = whole("number of features n", n, 1), real("Zipf exponent", exponent, 0, open_low=True)
    least = real("least frequency", least, 0, 1, open_low=True, open_high=True)
    largest = real("largest frequency", largest, least, 1, open_low=True)
    if n == 1:
        return np.array([largest])
    powers = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    return least + (largest - least) * (powers - powers[-1]) / (powers[0] - powers[-1])


def synth_sae_bench(
    n: int = 16_384,
    d: int = 768,
    *,
    scale_children: bool = True,
    structure: int = 0,
    dictionary: Dictionary | None = None,
) -> World:
    """The recipe of SynthSAEBench-16k (Chanin and Garriga-Alonso; sae_lens.synthetic), or with other n and d.

    Wanted frequencies: Zipf with exponent 0.5, mapped to [5e-4, 0.4]. n / 128 trees of branching 4 and depth 3 over
    the first features, siblings exclusive, frequencies compensated for both (`Hierarchy.compensated`). Gaussian
    copula of rank 25 and scale 0.1. Coefficients max(0, N(m_i, s_i^2)) with m_i from 5 to 4 by rank and s_i =
    |N(0.5, 0.5^2)|. Dictionary `Orthogonalised`, 100 steps; a bias of norm 0.5; no noise. The true L0 is 34.5 at
    n = 16,384 and 7.3 at 1,024 (8 trees). It is the same law with other random structure (factors, s_i, V), not the
    published artefact: `read_synthetic_model` reads that. There children are not scaled, while the script that is said
    to have made it scales them; hence `scale_children`.

    Args:
        n: number of features, at least 128: one tree.
        d: dimension.
        scale_children: whether coefficients are scaled by coefficient of parent / mean of parent.
        structure: number of the draw of factors and s_i.
        dictionary: another law of V.

    Raises:
        RequestError: n < 128 or d out of range.
    """
    n = whole("number of features n", n, 1)
    if n < _PER_TREE:
        raise RequestError(f"n = {n} features are too few for one tree of the recipe; choose n >= {_PER_TREE}")
    means = np.linspace(5.0, 4.0, n)
    spreads = np.abs(0.5 + 0.5 * stream(structure, "coefficient spreads").standard_normal(n))
    hierarchy = trees(n, n // _PER_TREE, 4, 3, scaled=scale_children, means=means)
    drawn = hierarchy.compensated(scaled_zipf(n, 0.5, 0.4, 5e-4))
    return World(
        n,
        d,
        Copula.of(drawn, RandomFactors(25, 0.1, structure)),
        Orthogonalised() if dictionary is None else dictionary,
        ClippedNormal(means, spreads),
        unit_rows=False,
        hierarchy=hierarchy,
        bias=0.5,
    )
