"""Resonance: which share of the features BA recovers at target frequency p, predicted for finite n, d, s, M.

Derived here; not a statement of Chen et al. 2025 (arXiv:2506.14002), whose bands stand in `theory.bounds`. The
prediction has three parts.

1. Exact tails. x has scale sqrt(d) per feature: a unit neuron at cosine c with feature i sees
   u | i ~ N(c mu, 1 - 1/s) with mu = ||v_i|| / sqrt(s) where feature i is active, and u ~ N(0, 1) elsewhere. With
   threshold beta it fires on the share `own` = Phibar((beta - c mu) / sqrt(1 - 1/s)) of its feature's samples and
   on other samples with probability `spurious` = (1 - f) Phibar(beta). ||v_i||^2 ~ chi^2_d, so features with a
   short v_i are recovered last; the predicted share is the mean over this law.
2. Count balance. The rule sees a number of activations ~ Poisson(lambda B), lambda = f own + spurious, in a buffer of
   B samples. The expected drift of the threshold per adaptation is
   gamma (P(count > p B) - P(count is too low)) (largest u in the buffer - beta),
   where "too low" is count = 0 for the one-sided rule and count < p B for the two-sided one.
3. Population dynamics of the angle. Spurious activations disturb the direction, own ones hold it:
   tan^2 = g(M / n) spurious / (f own (c mu)^2) + kappa (1 - own) + chi d s / n;   c = cos(angle).
   The first term is the ratio of energies that the neuron collects from others and from its own feature. Why
   g grows with M / n is not derived: it is fitted. The second says that a neuron that sees only a part of
   its feature's samples learns a biased direction. c follows this value while the learning rate lasts.

The dynamics start at c = 1: they ask whether a recovered feature stays recovered, not how it is found. In runs
features are found as long as such a state exists, since the residual of the features that are already learned
leaves the others to the spare neurons.

Every constant is listed with its origin in `CONSTANTS`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import betaincc, hyp1f1, ndtr, ndtri, pdtr
from scipy.stats import chi2

from simulator.checks import real, whole
from simulator.errors import RequestError


@dataclass(frozen=True)
class Constant:
    """A number of the predictor and where it comes from."""

    value: float
    origin: str


FITTED = "fitted to 313 runs at n = 256 and 512, s = 3 and 4 (development cells), one-sided rule"
CONSTANTS = {
    "gamma": Constant(0.01, "the rule's step, as the authors report"),
    "epsilon": Constant(1e-6, "the rule's lower frequency, as the authors report"),
    "decay": Constant(0.7, "training: last share of the steps over which the learning rate falls to 0"),
    "noise_factor": Constant(0.48, FITTED + ": g(r) = noise_factor r^noise_power"),
    "noise_power": Constant(0.613, FITTED),
    "partial": Constant(0.187, FITTED + ": kappa, disturbance of a neuron that sees a part of its feature"),
    "crowding": Constant(0.006, FITTED + ": chi, disturbance ~ s d / n"),
    "follow": Constant(21.0, FITTED + ": how often the angle could follow at the full learning rate"),
    "spread": Constant(0.022, FITTED + ": standard deviation of the cosine between features of one norm"),
    "coverage": Constant(3.2, FITTED + ": share of the features that some neuron takes, 1 - exp(-coverage M / n)"),
}  # fmt: skip
"""All numbers of the predictor. "Fitted" ones were chosen by looking at recovery maps."""


@dataclass(frozen=True)
class Setting:
    """One cell of a recovery map.

    Attributes:
        n, d, s: features, dimensions, active features per sample (uniform supports, f = s / n, Gaussian V).
        M: neurons.
        p: target activation frequency, biases started at its quantile.
        rule: one-sided (the paper's) or two-sided.
        buffer: B, samples per adaptation.
        adaptations: number of adaptations in the run.
    """

    n: int
    d: int
    s: int
    M: int
    p: float
    rule: Literal["one-sided", "two-sided"] = "one-sided"
    buffer: int = 5_120
    adaptations: int = 150

    def __post_init__(self) -> None:
        for name in ("n", "d", "s", "M", "buffer", "adaptations"):
            whole(name, getattr(self, name), 1)
        real("target frequency p", self.p, 0, 0.5, open_low=True, open_high=True)
        if self.s > self.n:
            raise RequestError(f"s = {self.s} active features of n = {self.n}; take s <= n")
        if self.d < 2:
            raise RequestError("d = 1 leaves no angle to predict; take d >= 2")
        if self.rule not in ("one-sided", "two-sided"):
            raise RequestError(f"rule = {self.rule!r} is unknown; take one-sided or two-sided")

    @property
    def frequency(self) -> float:
        """f = s / n."""
        return self.s / self.n


@dataclass(frozen=True)
class Prediction:
    """What is predicted for each of S settings.

    Attributes:
        recovered: share of features with some neuron at cosine > tau.
        cosine: cosine of the neuron of a feature with median norm.
        own: share of the feature's samples on which that neuron fires.
        spurious: frequency of its other activations.
        tau: the threshold.
    """

    recovered: Float[np.ndarray, " S"]
    cosine: Float[np.ndarray, " S"]
    own: Float[np.ndarray, " S"]
    spurious: Float[np.ndarray, " S"]
    tau: float


NORMS = 15
"""Quantiles of ||v_i||^2 over which features are averaged."""
STEPS = 100
"""Time steps of the dynamics, whatever the number of adaptations."""
SUBSTEPS = 12
"""Moves of the threshold in each of them."""


def predict(settings: Sequence[Setting], tau: float = 0.9) -> Prediction:
    """Share of recovered features of every setting; the module docstring has the model.

    Args:
        settings: cells, all computed together.
        tau: cosine in (0, 1) above which a feature counts as recovered.

    Raises:
        RequestError: no setting, or tau outside (0, 1).
    """
    if not settings:
        raise RequestError("no setting to predict; give at least one")
    real("tau", tau, 0, 1, open_low=True, open_high=True)
    value = {name: constant.value for name, constant in CONSTANTS.items()}

    def column(name: str) -> np.ndarray:
        return np.array([getattr(setting, name) for setting in settings], dtype=float)[:, None]

    n, d, s, M, p, B, T = (column(name) for name in ("n", "d", "s", "M", "p", "buffer", "adaptations"))
    two_sided = np.array([setting.rule == "two-sided" for setting in settings])[:, None]
    f, ratio, other = s / n, M / n, np.sqrt(np.maximum(1 - 1 / s, 1e-4))
    noise = value["noise_factor"] * ratio ** value["noise_power"]
    mu = np.sqrt(chi2.ppf((np.arange(NORMS) + 0.5) / NORMS, d) / s)
    # Largest of B standard normal numbers, and of the f B on the feature's own samples, by their quantiles.
    top_all, top_own = -ndtri(1 / (B + 2)), -ndtri(1 / (f * B + 2))
    above, below = np.floor(p * B + 1e-9), np.ceil(p * B - 1e-9) - 1
    silent = np.floor(value["epsilon"] * B)
    cosine = np.ones_like(mu)
    threshold = np.maximum(-ndtri(p), 0) + np.zeros_like(mu)

    def firing() -> tuple[np.ndarray, np.ndarray]:
        own = np.maximum(ndtr((cosine * mu - threshold) / other), 1e-12)
        return own, (1 - f) * ndtr(-threshold)

    for step in range(STEPS):
        own, spurious = firing()
        tangent = noise * spurious / (f * own * (cosine * mu) ** 2)
        tangent += value["partial"] * (1 - own) + value["crowding"] * s * d / n
        rate = min(1.0, (1 - (step + 0.5) / STEPS) / value["decay"])
        cosine += -np.expm1(-value["follow"] * rate / STEPS) * (1 / np.sqrt(1 + tangent) - cosine)
        for _ in range(SUBSTEPS):  # the threshold moves faster than the direction
            own, spurious = firing()
            rate_of_counts = B * (f * own + spurious)
            too_low = np.where(
                two_sided, np.where(below >= 0, pdtr(np.maximum(below, 0), rate_of_counts), 0.0),
                pdtr(silent, rate_of_counts),
            )  # fmt: skip
            drift = value["gamma"] * T / STEPS / SUBSTEPS * (1 - pdtr(above, rate_of_counts) - too_low)
            margin = np.maximum(np.maximum(cosine * mu + other * top_own, top_all) - threshold, 0)
            # Repeated small steps towards the largest u never pass it.
            moved = np.where(drift > 0, -np.expm1(-drift), np.maximum(drift, -1))
            threshold = np.clip(threshold + margin * moved, 0, np.sqrt(d))
    own, spurious = firing()
    recovered = ndtr((cosine - tau) / value["spread"]) * -np.expm1(-value["coverage"] * ratio)
    tail = betaincc(0.5, (d - 1) / 2, tau * tau) / 2
    by_chance = -np.expm1(M * np.log1p(-tail))[:, 0]
    middle = NORMS // 2
    return Prediction(
        1 - (1 - recovered.mean(axis=1)) * (1 - by_chance),
        cosine[:, middle],
        own[:, middle],
        np.broadcast_to(spurious, own.shape)[:, middle],
        tau,
    )


def held_activations(target_count: float) -> float:
    """l = lambda B at which the one-sided rule with equal gammas holds a neuron.

    P(Pois(l) > floor(p B)) = P(Pois(l) = 0): 0.69, 1.15, 1.57, 1.98, 2.38, 2.77 for floor(p B) = 0 .. 5. A neuron that
    would fire more often is lowered more often than it is raised until it fires l times in a buffer of B samples;
    `target_count` is p B.
    """
    whole_count = math.floor(real("p B", target_count, 0) + 1e-9)

    def balance(x: float) -> float:
        # log P(Pois(x) > k) - log P(Pois(x) = 0), with P(Pois(x) > k) = x^{k+1} e^{-x} / (k+1)! 1F1(1; k+2; x): both
        # sides can be far below what a float holds.
        k = whole_count
        return (k + 1) * math.log(x) - math.lgamma(k + 2) + math.log(hyp1f1(1, k + 2, x))

    return float(brentq(balance, 1e-9, whole_count + 2.0))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rectangle:
    """The plainest picture of a resonance: recovered inside low < p / f < high and d / s > small, else not."""

    low: float
    high: float
    small: float

    def predict(self, settings: Sequence[Setting]) -> Float[np.ndarray, " S"]:
        """1 inside, 0 outside."""
        inside = [
            self.low < setting.p / setting.frequency < self.high and setting.d / setting.s > self.small
            for setting in settings
        ]
        return np.array(inside, dtype=float)


def fit_rectangle(settings: Sequence[Setting], recovered: Float[np.ndarray, " S"]) -> Rectangle:
    """The rectangle with the smallest mean absolute error, edges half-way between values that occur."""
    ratios = _cuts([setting.p / setting.frequency for setting in settings])
    sizes = _cuts([setting.d / setting.s for setting in settings])
    relative = np.array([setting.p / setting.frequency for setting in settings])
    dimension = np.array([setting.d / setting.s for setting in settings])
    best, chosen = np.inf, Rectangle(0.0, np.inf, 0.0)
    for i, low in enumerate(ratios):
        for high in ratios[i + 1 :]:
            inside = (relative > low) & (relative < high)
            for small in sizes:
                error = np.abs((inside & (dimension > small)) - recovered).mean()
                if error < best - 1e-12:
                    best, chosen = error, Rectangle(float(low), float(high), float(small))
    return chosen


def _cuts(values: Sequence[float]) -> np.ndarray:
    """Below, between (geometrically) and above the values that occur."""
    distinct = np.unique(np.asarray(values, dtype=float))
    return np.concatenate([[distinct[0] / 2], np.sqrt(distinct[1:] * distinct[:-1]), [distinct[-1] * 2]])
