"""One large step of centred Modified BA at finite size: the probability that a feature is missed by all neurons.

Derived here, in the spirit of the one-step argument behind Chen et al. 2025 (arXiv:2506.14002). World: v_j ~
N(0, I_d), uniformly exactly s of n features active, coefficients h = 1 / sqrt(s). A neuron w is uniform on the sphere
and independent of V, so zeta_j = <w, v_j> ~ N(0, 1). JumpReLU: psi(u) = 2 u 1(u > beta), beta = Phibar^{-1}(p).
The population gradient on centred inputs is g = sum_j alpha_j v_j with

    alpha_j = h (E[psi(u) 1(j active)] - (s / n) E[psi(u)]),   u = h (sum_{j in S} zeta_j - (s / n) sum_j zeta_j),

an average over all C(n, s) supports S: given zeta it is exact. Split v_j = zeta_j w + v_j' with v_j' independent of
zeta. Then, exactly in law given zeta,

    g = (S + alpha_i zeta_i) w + alpha_i v_i' + r,  S = sum_{j != i} alpha_j zeta_j,   r ~ N(0, ||alpha_-i||^2 I_{d-1}),

and the cosine of g with v_i follows from zeta_i, ||v_i||, alpha_i, S, ||alpha_-i|| and the overlap
r v_i' / (||alpha_-i|| ||v_i'||) ~ N(0, 1). A neuron starts at cosine c with v_i, where c^2 ~ Beta(1/2, (d-1)/2), and
ends above tau with probability pi(||v_i||); all M neurons miss the feature with probability E[(1 - pi)^M].

The only approximation is that neurons count as independent given ||v_i|| (they share V); the laws of zeta and of
||v_i|| are integrated on fixed grids and draws.
"""

import itertools
import math

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.special import ndtr, ndtri
from scipy.stats import beta as beta_law
from scipy.stats import chi2

from simulator.checks import real, whole
from simulator.errors import RequestError
from simulator.rng import stream

DRAWS = 256
"""Vectors of zeta_j of the other features: always the same."""
LEVELS = 14
"""Quantiles of ||v_i||, dense where v_i is short: there features are missed."""
STARTS = 48
"""Starting cosines between 0 and 1."""
MOST_SUPPORTS = 50_000
_OVERLAPS = np.linspace(-8, 8, 161)


def missed_share(n: int, d: int, s: int, M: int, p: float, tau: float) -> float:
    """E[(1 - pi)^M]: probability that one feature is missed by all M neurons after one step of size infinity.

    Args:
        n, d, s: features, dimensions, active features.
        M: neurons, uniform on the sphere.
        p: target frequency; the threshold is beta = Phibar^{-1}(p).
        tau: cosine in (0, 1) above which the feature counts as recovered.

    Raises:
        RequestError: a number out of its range, or more than 50,000 supports.
    """
    for name, value, least in (("n", n, 2), ("d", d, 3), ("s", s, 1), ("M", M, 1)):
        whole(name, value, least)
    if s >= n:
        raise RequestError(f"s = {s} active features of n = {n}; take s < n")
    if math.comb(n, s) > MOST_SUPPORTS:
        raise RequestError(f"C({n}, {s}) = {math.comb(n, s)} supports are too many to enumerate; at most 50,000")
    real("p", p, 0, 0.5, open_low=True, open_high=True)
    real("tau", tau, 0, 1, open_low=True, open_high=True)
    edges = np.concatenate(
        [[0.0], np.geomspace(1e-2 / n, 0.5, LEVELS // 2), 1 - np.geomspace(0.35, 1e-2, LEVELS // 2 - 1), [1.0]]
    )
    norms = np.sqrt(chi2.ppf((edges[:-1] + edges[1:]) / 2, d))
    zetas = np.linspace(0, norms.max(), 2 * STARTS // 3)
    terms = step_terms(n, s, p, zetas)
    missed = [(1 - _turned_share(terms, zetas, d, tau, float(norm))) ** M for norm in norms]
    return float(np.diff(edges) @ missed)


def step_terms(
    n: int, s: int, p: float, zetas: Float[np.ndarray, " Z"]
) -> tuple[Float[np.ndarray, "Z draws"], Float[np.ndarray, "Z draws"], Float[np.ndarray, "Z draws"]]:
    """(alpha_i, S, ||alpha_-i||) of the step for every zeta_i and every draw of the other zeta_j."""
    h, beta = 1 / math.sqrt(s), -float(ndtri(p))
    supports = np.array(list(itertools.combinations(range(n), s)))
    count = len(supports)
    member = sparse.csr_array((np.ones(count * s), supports.ravel(), np.arange(0, count * s + 1, s)), shape=(count, n))
    others = stream(0, "one step", n).standard_normal((DRAWS, n - 1))
    found = np.empty((3, len(zetas), DRAWS))
    for k, zeta in enumerate(zetas):
        scores = np.column_stack([np.full(DRAWS, zeta), others])
        u = h * (member @ scores.T - s / n * scores.sum(axis=1))
        psi = np.where(u > beta, 2 * u, 0.0)
        alpha = h * ((member.T @ psi).T / count - s / n * psi.mean(axis=0)[:, None])
        found[0, k] = alpha[:, 0]
        found[1, k] = np.einsum("kj,kj->k", alpha[:, 1:], others)
        found[2, k] = np.sqrt(np.einsum("kj,kj->k", alpha[:, 1:], alpha[:, 1:]))
    return found[0], found[1], found[2]


def _turned_share(terms: tuple[np.ndarray, ...], zetas: np.ndarray, d: int, tau: float, norm: float) -> float:
    """pi: share of random neurons that one step turns to within cosine tau of a feature of length `norm`."""
    starts = np.linspace(0, 1, STARTS + 1)
    tails = beta_law.sf(starts**2, 0.5, (d - 1) / 2) / 2
    total = 0.0
    for k in np.flatnonzero(tails[:-1] > 1e-14):
        start = (starts[k] + starts[k + 1]) / 2
        place = np.interp(start * norm, zetas, np.arange(len(zetas)))
        low = min(int(place), len(zetas) - 2)
        part = place - low
        alpha_i, along, noise = ((1 - part) * term[low] + part * term[low + 1] for term in terms)
        total += (tails[k] - tails[k + 1]) * _chance(alpha_i, along, noise, d, norm, start, tau)
    return total


def _chance(
    alpha_i: np.ndarray, along: np.ndarray, noise: np.ndarray, d: int, norm: float, start: float, tau: float
) -> float:
    """P(cos(g, v_i) > tau) over draws and overlap, for neurons at cosine `start`."""
    alpha_i, noise = alpha_i[:, None], noise[:, None]
    along = along[:, None] + alpha_i * start * norm
    side = norm * math.sqrt(1 - start * start)
    with_feature = along * start + alpha_i * side * side / norm + noise * _OVERLAPS * side / norm
    length = along**2 + (alpha_i * side) ** 2 + (d - 1) * noise**2 + 2 * alpha_i * noise * side * _OVERLAPS
    enough = with_feature > tau * np.sqrt(np.maximum(length, 0))
    # The cosine grows with the overlap wherever it matters: the first overlap that suffices decides.
    return float(np.where(enough.any(axis=1), ndtr(-_OVERLAPS[enough.argmax(axis=1)]), 0.0).mean())
