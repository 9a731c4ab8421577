"""One step of Modified BA at finite size in closed form: what the o(1) of the recovery theorem hides.

Derived here, after the one-step argument behind Chen et al. 2025 (arXiv:2506.14002). World: x = h sum_{j in S} v_j with
S uniform of size s, h = 1 / sqrt(s), v_j ~ N(0, I_d); JumpReLU, psi(u) = 2 u 1(u > beta), beta = Phibar^{-1}(p). A unit
neuron w that is independent of V sees zeta_j = <w, v_j> ~ N(0, 1) and u = <w, x> ~ N(0, 1), and the gradient is

    g = E[psi(u) x] = S w + sum_j alpha_j v_j_perp,   alpha_j = f h E[psi(u) | j in S],   S = E[psi(u) u],

v_j_perp the part of v_j across w and f = s / n. With sg^2 = 1 - h^2:

    A(mu)          = E[2 u 1(u > beta)], u ~ N(mu, sg^2)  =  2 [mu Phibar((beta - mu)/sg) + sg phi((beta - mu)/sg)]
    alpha_i        = f h A(h zeta_i)
    S              = 2 (p + beta phi(beta)) + alpha_i zeta_i
    ||alpha_-i||^2 = (n - 1) (f^2 h^2 Int A(h z)^2 phi(z) dz + rho_2^2 alpha_i^2),   rho_2 = (s - 1)/(n - 1).

Centred inputs x - E x replace A by A - E[psi(u)] = A - 2 phi(beta) and rho_2 by rho_2 - f = -(n - s)/(n (n - 1)): the
common direction of all features and nearly all interference of co-occurring ones drop out.

What is assumed: w independent of V (true at the start only: later steps of `trajectory` are a guess), many features
(sums over j are replaced by their means, the share of feature i in E x by 0), the cross term of the two parts of
||alpha_-i||^2 left out. Against sums over all supports (s = 2, p = 0.05, 200 draws, zeta_i = 4 at n = 600 and 3 at
n = 64) the formulas for S, alpha_i and ||alpha_-i||^2 agree within their errors of 1, 0, 2 % and 3, 1, 6 %; on
centred inputs they are too large, by 4, 1, 7 % at n = 600 and 12, 8, 33 % at n = 64. At small p few features carry
||alpha_-i||, and most draws lie below its mean. `theory.one_step` sums over supports and draws where the world is
small enough.

Arguments everywhere: n, d, s, M, p as in `theory.bounds`; lengths in units in which every v_j has length sqrt(d).
Numbers outside their range raise RequestError.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import betaincc, betainccinv, log_ndtr, ndtr

from simulator.checks import real, whole
from simulator.errors import RequestError
from theory.bounds import threshold, uniform_co_occurrence

GRID = 4_001
"""Points of the trapezoid rule: the integrand and all its derivatives vanish at both ends, so that the error is at
the level of float64."""


def untrained_share(d: int, M: int, tau: float) -> float:
    """Expected share of features within cosine tau of one of M random neurons: 1 - (1 - P(c > tau))^M.

    The cosine c of a uniform unit vector with a fixed one has c^2 ~ Beta(1/2, (d-1)/2) and is symmetric.
    """
    whole("d", d, 2)
    real("tau", tau, 0, 1, open_low=True, open_high=True)
    return -math.expm1(whole("M", M, 1) * math.log1p(-betaincc(0.5, (d - 1) / 2, tau * tau) / 2))


def best_start(d: int, M: int) -> float:
    """The cosine c with P(cos > c) = 1 / M: where the best of M random unit vectors starts, c^2 ~ Beta(1/2, (d-1)/2).

    About sqrt(2 log(M) / d) where that is small. M >= 2, since a cosine is above its quantile 1 / 1 always.
    """
    return math.sqrt(betainccinv(0.5, (whole("d", d, 2) - 1) / 2, 2 / whole("M", M, 2)))


def log_starting_neurons(M: int, p: float, s: int, eps: float) -> float:
    """log of M Phibar(beta sqrt(s) / (1 - eps)): expected number of neurons that a feature switches on by itself.

    They have h zeta_i >= beta / (1 - eps) at the start; the width condition asks for some.
    """
    margin = threshold(p) * math.sqrt(whole("s", s, 1)) / (1 - real("eps", eps, 0, 1, open_high=True))
    return math.log(whole("M", M, 1)) + float(log_ndtr(-margin))


def mean_direction_norm(n: int, d: int, s: int) -> float:
    """sqrt(s d / n): root mean square over V of ||E x|| = f h ||sum_j v_j||, exact for any n.

    To be read against ||x|| ~ sqrt(d). All neurons see this direction; it attracts them unless inputs are centred.
    """
    return math.sqrt(_active(n, s) * whole("d", d, 1) / n)


def interference_ceiling(n: int, s: int) -> float:
    """1 / sqrt(1 + (s-1)^2 / (n-1)): cosine of a step to which only feature i contributes, on inputs not centred.

    The n - 1 others occur with i in the share rho_2 of its samples and stay in the gradient with weight
    rho_2 alpha_i each. .889, .941, .970 for s = 3 at n = 16, 32, 64.
    """
    return 1 / math.sqrt(1 + (n - 1) * uniform_co_occurrence(n, s) ** 2)


def activation_mean(mu: float, p: float, s: int) -> float:
    """A(mu): mean of psi(u) = 2 u 1(u > beta) for u ~ N(mu, 1 - 1/s), the law of u where a feature is active."""
    whole("s", s, 1)
    return float(_activation_mean(np.float64(real("mu", mu)), threshold(p), s))


def feature_gain(zeta: float, n: int, s: int, p: float) -> float:
    """alpha_i = f h A(h zeta_i): weight of a feature with overlap zeta_i = <w, v_i> in the gradient."""
    h = 1 / math.sqrt(_active(n, s))
    return s / n * h * activation_mean(h * zeta, p, s)


def self_gain(p: float) -> float:
    """E[2 u^2 1(u > beta)] = 2 (p + beta phi(beta)) for u ~ N(0, 1): S of a neuron that knows no feature."""
    beta = threshold(p)
    return 2 * (p + beta * _density(beta))


def growth(zeta: float, n: int, d: int, s: int, p: float) -> float:
    """kappa - 1 = d alpha_i / (S zeta_i): relative growth of the overlap zeta_i > 0 in one large step."""
    real("zeta", zeta, 0, open_low=True)
    gain = feature_gain(zeta, n, s, p)
    return whole("d", d, 1) * gain / ((self_gain(p) + gain * zeta) * zeta)


def growth_limit(n: int, d: int, p: float) -> float:
    """d / (n p beta^2): `growth` for rare activations, beta >> 1, h zeta_i > beta and p n >> zeta_i^2 / beta^2."""
    return whole("d", d, 1) / (whole("n", n, 2) * p * threshold(p) ** 2)


@dataclass(frozen=True)
class Step:
    """The three numbers of the gradient that decide where w turns.

    Attributes:
        along: S, component along w.
        gain: alpha_i, weight of the feature.
        noise: ||alpha_-i||, root sum of squares of the other weights.
    """

    along: float
    gain: float
    noise: float


def population_step(zeta: float, n: int, s: int, p: float, *, centred: bool = False) -> Step:
    """S, alpha_i and ||alpha_-i|| of a neuron with overlap zeta_i = `zeta`; formulas in the module docstring."""
    h, f = 1 / math.sqrt(_active(n, s)), s / n
    beta = threshold(p)
    offset = 2 * _density(beta) if centred else 0.0
    shared = -(n - s) / (n * (n - 1)) if centred else uniform_co_occurrence(n, s)
    gain = feature_gain(zeta, n, s, p) - f * h * offset
    squared = f**2 / s * _mean_square(beta, s, offset) + shared**2 * gain**2
    return Step(self_gain(p) + gain * zeta, gain, math.sqrt((n - 1) * squared))


def cosine_after_step(
    cosine: float,
    n: int,
    d: int,
    s: int,
    p: float,
    *,
    centred: bool = False,
    step_size: float = math.inf,
    deviation: float = 0.0,
) -> float:
    """cos(w', v_i) after w' = (w + eta g) / ||w + eta g||, for a neuron at `cosine` with a v_i of length sqrt(d).

    With zeta = cosine sqrt(d) and D = d - zeta^2, the squared length of v_i across w:

        cos(w', v_i) = (S zeta + alpha_i D + delta ||alpha_-i|| sqrt(D))
                       / sqrt(d (S^2 + alpha_i^2 D + 2 delta alpha_i ||alpha_-i|| sqrt(D) + (d-1) ||alpha_-i||^2)).

    The usual form with d in place of D and d - 1 is its leading order; it can pass 1 as zeta^2 nears d, this cannot.

    Args:
        cosine: of w with v_i before the step, in [-1, 1].
        n, d, s, p: the world and the target frequency.
        centred: whether the mean is taken off the inputs.
        step_size: eta; infinity, the regime of the theorem, is w' = g / ||g||.
        deviation: delta, the overlap of the other features' noise with v_i in standard deviations; 0 is typical.

    Raises:
        RequestError: a number out of its range.
    """
    whole("d", d, 2)
    zeta = real("cosine", cosine, -1, 1) * math.sqrt(d)
    real("deviation", deviation, -math.sqrt(d - 1), math.sqrt(d - 1))
    if not step_size > 0:
        raise RequestError(f"step_size = {step_size!r} moves nothing; it must be > 0, infinity included")
    step = population_step(zeta, n, s, p, centred=centred)
    along = step.along + 1 / step_size
    across = math.sqrt(max(d - zeta**2, 0.0))
    mixed = deviation * step.noise * across
    length = along**2 + (step.gain * across) ** 2 + 2 * step.gain * mixed + (d - 1) * step.noise**2
    return (along * zeta + step.gain * across**2 + mixed) / math.sqrt(d * length)


def trajectory(
    n: int, d: int, s: int, M: int, p: float, steps: int, *, centred: bool = False, step_size: float = math.inf
) -> Float[np.ndarray, " T"]:
    """Predicted cosines of a feature's best neuron: `best_start`, then `cosine_after_step` again and again.

    The first step is what the formulas are for. Later ones treat w as still independent of all other features, which
    it no longer is: on inputs that are not centred it has turned towards the mean direction by then.

    Returns:
        T = `steps` + 1 cosines, the start first.
    """
    found = [best_start(d, M)]
    for _ in range(whole("steps", steps, 0)):
        found.append(cosine_after_step(found[-1], n, d, s, p, centred=centred, step_size=step_size))
    return np.array(found)


def _active(n: int, s: int) -> int:
    whole("s", s, 1, whole("n", n, 2))
    return s


def _density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _activation_mean(mu: np.ndarray | float, beta: float, s: int) -> np.ndarray | np.float64:
    if s == 1:  # u is mu itself
        return np.where(mu > beta, 2 * mu, 0.0)
    spread = math.sqrt(1 - 1 / s)
    z = (mu - beta) / spread
    return 2 * (mu * ndtr(z) + spread * np.exp(-z * z / 2) / math.sqrt(2 * math.pi))


def _mean_square(beta: float, s: int, offset: float) -> float:
    """Int (A(h z) - offset)^2 phi(z) dz."""
    if s == 1:  # A jumps at z = beta: Int 4 z^2 over z > beta, and Int A = 2 phi(beta)
        tail = float(ndtr(-beta))
        return 4 * (tail + beta * _density(beta)) - 4 * offset * _density(beta) + offset**2
    # A(h z)^2 phi(z) peaks at z = 2 h beta / (1 + h^2) <= beta with width below 1.
    z = np.linspace(-10.0, beta + 10.0, GRID)
    value = (_activation_mean(z / math.sqrt(s), beta, s) - offset) ** 2 * np.exp(-z * z / 2)
    return float(value.sum() * (z[1] - z[0])) / math.sqrt(2 * math.pi)
