"""The displayed formulas of the recovery theorem, one pure function each.

Source: Chen et al. 2025 (arXiv:2506.14002). [N]: known from readers' notes, every exponent derived again. [D]:
derived here. The theorem: V Gaussian (n x d), H uniformly s-sparse, M neurons, target frequency p, constants eps and
sigma in (0, 1):

    width       M >~ n p^{-s / (1 - eps)^2}
    frequency   1/n <~ p <~ min{ n^{-(1 + 1/s)/2}, n^{-2 (1 + eps)^2 / s}, d^{1 - sigma} / n }
    conclusion  after 1 / sigma steps, with probability >= 1 - n^{-4 eps}, every feature has a neuron with
                cos(w, v_i) >= 1 - o(1).

Where a constant is hidden it is taken as 1. Widths are given as natural logarithms: the power form asks for 1e17
neurons where a machine has 1e5. What the o(1) hides at finite size is in `theory.finite`.

Arguments everywhere: n features, d dimensions, s active features a sample, M neurons, p the target activation
frequency in (0, 1/2) (a Gaussian score above its median is no detector). Numbers outside their range raise
RequestError.
"""

import math
from typing import Literal, NamedTuple

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtri

from simulator.checks import real, whole
from simulator.errors import RequestError

Width = Literal["power", "exact"]
"""Which of the two width formulas: they differ by powers of log(1/p) and are never mixed."""


def threshold(p: float) -> float:
    """beta = Phibar^{-1}(p), the threshold that a N(0, 1) score exceeds with probability p. [D]"""
    real("target frequency p", p, 0, 0.5, open_low=True, open_high=True)
    return -float(ndtri(p))


def log_width_power_form(n: int, p: float, s: int, eps: float) -> float:
    """log of the theorem's width n p^{-s / (1 - eps)^2}. [N]"""
    _shape(n, s, p)
    real("eps", eps, 0, 1, open_high=True)
    return math.log(n) - s / (1 - eps) ** 2 * math.log(p)


def log_width_exact_tail(n: int, p: float, s: int, eps: float, log_factor: bool = True) -> float:
    """log of n log n / Phibar(beta sqrt(s) / (1 - eps)): each feature has a neuron that it switches on by itself. [D]

    `log_factor` False leaves the factor log n out. Without it this is never above the power form: -log Phibar(sqrt(t))
    is concave in t and positive at 0, so Phibar(beta sqrt(k)) >= Phibar(beta)^k = p^k for k >= 1, with equality at
    s = 1, eps = 0. The two differ by powers of log(1/p), at small p by orders of magnitude.
    """
    _shape(n, s, p)
    real("eps", eps, 0, 1, open_high=True)
    tail = float(log_ndtr(-threshold(p) * math.sqrt(s) / (1 - eps)))
    return math.log(n) + (math.log(math.log(n)) if log_factor else 0.0) - tail


def frequency_lower(n: int) -> float:
    """1 / n. [N]"""
    return 1 / whole("n", n, 2)


def frequency_upper_sparsity(n: int, s: int) -> float:
    """n^{-(1 + 1/s)/2}: other features' noise n p^{2s/(s+1)} stays below 1. [N]; as s -> infinity n^{-1/2}."""
    _shape(n, s)
    return n ** (-(1 + 1 / s) / 2)


def frequency_upper_interference(n: int, s: int, eps: float) -> float:
    """n^{-2 (1 + eps)^2 / s}: no other feature switches a chosen neuron on. [N]

    From beta sqrt(s) >= 2 (1 + eps) sqrt(log n) with beta^2 ~ 2 log(1/p).
    """
    _shape(n, s)
    real("eps", eps, 0, 1)
    return n ** (-2 * (1 + eps) ** 2 / s)


def frequency_upper_dimension(n: int, d: int, sigma: float) -> float:
    """d^{1 - sigma} / n: the overlap grows by d^sigma a step. [N]"""
    whole("n", n, 2)
    whole("d", d, 1)
    real("sigma", sigma, 0, 1)
    return d ** (1 - sigma) / n


class Band(NamedTuple):
    """Allowed target frequencies, empty if low > high, and which upper bound binds."""

    low: float
    high: float
    binding: str


def frequency_band(n: int, d: int, s: int, eps: float, sigma: float) -> Band:
    """The theorem's interval for p."""
    uppers = {
        "sparsity": frequency_upper_sparsity(n, s),
        "interference": frequency_upper_interference(n, s, eps),
        "dimension": frequency_upper_dimension(n, d, sigma),
    }
    binding = min(uppers, key=lambda name: uppers[name])
    return Band(frequency_lower(n), uppers[binding], binding)


def resonance_band_limit(f: float, d: int) -> tuple[float, float]:
    """The notes' s = infinity reading: f <~ p <~ min{sqrt(f), f d}, with f the feature frequency. [N]"""
    real("f", f, 0, 1, open_low=True)
    whole("d", d, 1)
    return f, min(math.sqrt(f), f * d)


def light_superposition_border(n: int, s: int | None = None) -> float:
    """The d above which superposition is light, n^{(1 - 1/s)/2}: there n^{-(1+1/s)/2} = d / n. None: sqrt(n). [N/D]"""
    whole("n", n, 2)
    return n ** ((1 - (0.0 if s is None else 1 / whole("s", s, 1))) / 2)


def steps(sigma: float) -> int:
    """Number of steps 1 / sigma, rounded up. [N]"""
    return math.ceil(1 / real("sigma", sigma, 0, 1, open_low=True) - 1e-12)


def smallest_sigma(number_of_steps: int) -> float:
    """1 / T: the smallest sigma, so the weakest bound d^{1 - sigma} / n on p, for which T steps suffice. [N]"""
    return 1 / whole("number of steps", number_of_steps, 1)


def failure_probability(n: int, eps: float) -> float:
    """n^{-4 eps}. [N]"""
    return whole("n", n, 2) ** (-4 * real("eps", eps, 0, 1))


def largest_epsilon(n: int, d: int, s: int, M: int, p: float, sigma: float, *, width: Width = "power") -> float | None:
    """The largest eps in (0, 1) at which all hypotheses hold; None where there is none. [D]

    Width and interference tighten as eps grows and the other bounds on p do not move, so the end is the root of a
    decreasing function. `width` names the width formula: the theorem's power form or the exact tail.
    """
    _shape(n, s, p)
    whole("M", M, 1)
    if width not in ("power", "exact"):
        raise RequestError(f"width = {width!r} is no width formula; take 'power' or 'exact'")
    others = min(frequency_upper_sparsity(n, s), frequency_upper_dimension(n, d, sigma))
    if not frequency_lower(n) <= p <= others:
        return None
    log_width = log_width_power_form if width == "power" else log_width_exact_tail

    def slack(eps: float) -> float:
        return min(
            math.log(M) - log_width(n, p, s, eps), math.log(frequency_upper_interference(n, s, eps)) - math.log(p)
        )

    # At eps -> 1 the width diverges, so there is a root unless even eps -> 0 fails.
    return None if slack(0.0) <= 0 else float(brentq(slack, 0.0, 1 - 1e-9, xtol=1e-12))  # type: ignore[arg-type]


def frequency_of_largest_epsilon(n: int, d: int, s: int, M: int, sigma: float) -> tuple[float, float] | None:
    """(p, eps): the allowed p at which eps is largest (power form); None where no p is allowed. [D]

    Width asks for (1 - eps)^2 >= s L / log(M/n) and interference for (1 + eps)^2 <= s L / (2 log n) with
    L = log(1/p): both are met with equality at (1 + eps) / (1 - eps) = sqrt(log(M/n) / (2 log n)). Where that p lies
    outside the other bounds the nearest bound is best, since eps falls to both sides.
    """
    _shape(n, s)
    if whole("M", M, 1) <= n:
        return None
    ratio = math.sqrt(math.log(M / n) / (2 * math.log(n)))
    eps = (ratio - 1) / (ratio + 1)
    p = math.exp(-2 * (1 + max(eps, 0)) ** 2 * math.log(n) / s)
    p = min(max(p, frequency_lower(n)), frequency_upper_sparsity(n, s), frequency_upper_dimension(n, d, sigma))
    if p >= 0.5:
        return None
    found = largest_epsilon(n, d, s, M, p, sigma)
    return None if found is None else (p, found)


def no_other_feature_slack(n: int, s: int, p: float, eps: float) -> float:
    """log of beta sqrt(s) / (2 (1 + eps) sqrt(log n)): >= 0 where no other feature switches a chosen neuron on. [D]

    With beta^2 ~ 2 log(1/p) it is the bound `frequency_upper_interference`, up to logarithms of log(1/p).
    """
    _shape(n, s, p)
    real("eps", eps, 0, 1)
    return math.log(threshold(p) * math.sqrt(s) / (2 * (1 + eps) * math.sqrt(math.log(n))))


def other_features_noise(n: int, s: int, p: float) -> float:
    """n p^{2s/(s+1)}: far below 1 the other features' noise does not drown the step; 1 at p = n^{-(1 + 1/s)/2}. [D]"""
    _shape(n, s, p)
    return n * p ** (2 * s / (s + 1))


def co_occurrence_mass(n: int, rho_2: float) -> float:
    """sqrt(n) rho_2: off-diagonal row mass of H^T H relative to its diagonal; why H3 says n^{-1/2}. [D]"""
    return math.sqrt(whole("n", n, 1)) * real("rho_2", rho_2, 0, 1)


def uniform_co_occurrence(n: int, s: int) -> float:
    """rho_2 = (s - 1) / (n - 1) of uniform s-sparse supports. [D]"""
    _shape(n, s)
    return (s - 1) / (n - 1)


def _shape(n: int, s: int, p: float | None = None) -> None:
    whole("n", n, 2)
    whole("s", s, 1)
    if s > n:
        raise RequestError(f"s = {s} active features of n = {n}; take s <= n")
    if p is not None:
        real("target frequency p", p, 0, 0.5, open_low=True, open_high=True)
