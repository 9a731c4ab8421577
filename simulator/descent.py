"""Supports and coefficients under a hierarchy, drawn from the roots down: only children of active parents count."""

from collections.abc import Callable

import numpy as np
import scipy.special
from jaxtyping import Float

from simulator.coefficients import Coefficients, positive_share
from simulator.copula import Copula, Latent
from simulator.draws import Rows, as_rows
from simulator.hierarchy import Hierarchy
from simulator.rng import stream
from simulator.supports import Bernoulli

# Latent numbers over which frequencies are averaged, and how many of them at once.
_LATENTS = 4096
_LATENTS_AT_ONCE = 64


def descending_sampler(
    support: Copula | Bernoulli, coefficients: Coefficients, hierarchy: Hierarchy, n: int
) -> Callable[[int, np.random.Generator], tuple[Rows, Float[np.ndarray, " entries"]]]:
    """The prepared sampler (N, rng) to the supports and coefficients that the hierarchy leaves, see `Hierarchy`.

    Given the latent numbers of a copula the features are independent, so whether a child would be active needs to
    be drawn only where its parent is active after all. The law is that of drawing all supports and
    coefficients first and then deactivating level by level, but where children are much more frequent given
    their parents than at all, most of what would be drawn would be thrown away.
    """
    from simulator.copula_kernels import active_children, winners

    latent = Latent.of(support, n, hierarchy.levels[0])
    first_child, children = hierarchy.children
    siblings = np.diff(first_child)
    groups, scaled, means = hierarchy.groups, hierarchy.scaled, hierarchy.means
    exclusive = [bool((groups[level] >= 0).any()) for level in hierarchy.levels]
    scaling = [bool(scaled[level].any()) for level in hierarchy.levels]

    def compete(row: np.ndarray, feature: np.ndarray, rng: np.random.Generator, sort: bool) -> np.ndarray:
        """The entries that are left by mutual exclusion; members of a group stand together, or else `sort`."""
        group = groups[feature]
        contests = np.where(group >= 0, row * n + group, -1)
        order = np.argsort(contests, kind="stable") if sort else np.arange(contests.size)
        keep = np.empty(contests.size, dtype=bool)
        winners(contests[order], rng, keep)
        return order[keep]

    def block(numbers: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The places row * n + feature of the block's entries, ascending, and their coefficients."""
        indptr, feature = latent.walk(numbers, rng)
        row = np.repeat(np.arange(len(numbers)), np.diff(indptr))
        value = coefficients.draw(feature, rng)
        places, values = [], []
        for depth in range(len(hierarchy.levels)):
            left = np.flatnonzero(value > 0)
            if exclusive[depth]:
                left = left[compete(row[left], feature[left], rng, sort=depth == 0)]
            row, feature, value = row[left], feature[left], value[left]
            places.append(row * n + feature)
            values.append(value)
            if depth + 1 < len(hierarchy.levels):
                parent, child = (np.empty(int(siblings[feature].sum()), dtype=np.int64) for _ in range(2))
                count = active_children(
                    row, feature, first_child, children, numbers, latent.weights, rng, parent, child
                )
                parent, child = parent[:count], child[:count]
                of_child = coefficients.draw(child, rng)
                if scaling[depth + 1]:
                    of_child = of_child * np.where(scaled[child], value[parent] / means[feature[parent]], 1.0)
                row, feature, value = row[parent], child, of_child
        place = np.concatenate(places)
        order = np.argsort(place)
        return place[order], np.concatenate(values)[order]

    def draw(N: int, rng: np.random.Generator) -> tuple[Rows, np.ndarray]:
        indptr, features, values = np.zeros(N + 1, dtype=np.int64), [], []
        for start, numbers in latent.blocks(N, rng):
            place, value = block(numbers, rng)
            row, feature = np.divmod(place, n)
            ends = np.cumsum(np.bincount(row, minlength=len(numbers)))
            indptr[start + 1 : start + len(numbers) + 1] = indptr[start] + ends
            features.append(feature.astype(np.int32))
            values.append(value)
        return as_rows(indptr, np.concatenate(features)), np.concatenate(values)

    return draw


def remaining_frequencies(
    support: Copula | Bernoulli, coefficients: Coefficients, hierarchy: Hierarchy, n: int
) -> Float[np.ndarray, " n"]:
    """f_i = P(feature i is active under the hierarchy).

    Exact for independent features (`Hierarchy.frequencies`). With a copula that formula, given the latent numbers z,
    is averaged over 4,096 fixed quasi-random z (a Sobol sequence, shifted), and each tree is scaled so that its root
    has its frequency, which is known. Features without parent and group are exact; for `synth_sae_bench` (1,024
    features) the standard error of the others is 0.3 % in the median and at most 1.3 %, that of the sum 0.003 %.
    """
    share = positive_share(coefficients, n)
    if isinstance(support, Bernoulli):
        return hierarchy.frequencies(support.feature_frequencies(n) * share)
    # Imported where it is needed: it would double the time that importing the simulator takes.
    from scipy.stats.qmc import Sobol

    latent = Latent.of(support, n)
    rank = latent.weights.shape[1] - 1
    shift = stream(0, "frequencies").random(rank)
    uniform = (Sobol(rank, scramble=False).random(_LATENTS) + shift) % 1
    numbers = np.column_stack([scipy.special.ndtri(np.clip(uniform, 1e-12, 1 - 1e-12)), np.ones(_LATENTS)])
    total = np.zeros(n)
    for start in range(0, _LATENTS, _LATENTS_AT_ONCE):
        given = latent.probabilities(numbers[start : start + _LATENTS_AT_ONCE]) * share
        total += hierarchy.frequencies(given).sum(axis=0)
    correction, roots = np.ones(n), hierarchy.levels[0]
    roots = roots[(hierarchy.groups[roots] < 0) & (total[roots] > 0)]
    correction[roots] = (support.feature_frequencies(n) * share)[roots] * _LATENTS / total[roots]
    for level in hierarchy.levels[1:]:
        correction[level] = correction[hierarchy.parents[level]]
    return total * correction / _LATENTS
