"""Theorems as objects: hypotheses with signed slack, a conclusion, a failure probability, a verdict.

A verdict is one of four quadrants: hypotheses and conclusion hold: `confirmed`; hypotheses hold, conclusion fails:
`counterexample` (the only thing that a theorem forbids); hypotheses fail, conclusion holds: `beyond`; both fail:
`outside`. Where the runs do not decide it is `undecided`. A cell speaks for a theorem only if the promised failure rate
is at most 1/2 and fewer than half of the features are recovered before training; else it is vacuous.

Asymptotic symbols have finite surrogates: constants hidden in <~ are 1, and 1 - o(1) is the cosine `tau` of the case. A
counterexample to a surrogate is none to the asymptotic theorem; the verdict is `fragile` where a constant halved or
doubled would flip it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from simulator.checks import real, whole
from simulator.errors import RequestError
from simulator.modified import ModifiedBA
from theory import bounds
from theory.conditions import Conditions, Slack, measure
from theory.evidence import Evidence
from theory.one_step import missed_share

Quadrant = Literal["confirmed", "counterexample", "beyond", "outside", "undecided"]
VACUOUS = 0.5
"""Promised failure rates above this, or recovery before training from this on, say nothing."""
RESONANCE_PROMISE = 0.5
"""Failure rate that the conjecture is held to: the notes give none (chosen here)."""


@dataclass(frozen=True)
class Case:
    """One question to a theorem about recovery.

    Attributes:
        n, d, s: features, dimensions, active features (Gaussian V, uniform supports).
        M: neurons.
        p: target frequency.
        sigma: 1 / sigma steps are taken.
        tau: cosine that stands for 1 - o(1).
        delta: failure rate asked for, where the statement leaves it open.
    """

    n: int
    d: int
    s: int
    M: int
    p: float
    sigma: float = 0.5
    tau: float = 0.9
    delta: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("n", 2), ("d", 2), ("s", 1), ("M", 1)):
            whole(name, getattr(self, name), least)
        if self.s >= self.n:
            raise RequestError(f"s = {self.s} active features of n = {self.n}; take s < n")
        real("target frequency p", self.p, 0, 0.5, open_low=True, open_high=True)
        real("sigma", self.sigma, 0, 1, open_low=True)
        for name in ("tau", "delta"):
            real(name, getattr(self, name), 0, 1, open_low=True, open_high=True)

    @property
    def frequency(self) -> float:
        """f = s / n."""
        return self.s / self.n


@dataclass(frozen=True)
class Verdict:
    """What runs say about a theorem at one case.

    Attributes:
        theorem: its name.
        quadrant: see the module docstring.
        hypotheses: with their signed slack.
        promised: failure probability.
        evidence: runs against it.
        untrained: share of features recovered before training, mean over runs.
        vacuous: whether the case cannot speak for the theorem.
        fragile: whether the verdict would flip with a constant halved or doubled.
    """

    theorem: str
    quadrant: Quadrant
    hypotheses: tuple[Slack, ...]
    promised: float
    evidence: Evidence
    untrained: float
    vacuous: bool
    fragile: bool

    @property
    def slack(self) -> float:
        """The smallest slack."""
        return min(hypothesis.slack for hypothesis in self.hypotheses)


def quadrant(hold: bool, conclusion: bool | None) -> Quadrant:
    """The four-quadrant verdict; `conclusion` None is undecided."""
    if conclusion is None:
        return "undecided"
    if hold:
        return "confirmed" if conclusion else "counterexample"
    return "beyond" if conclusion else "outside"


@dataclass(frozen=True)
class Theorem:
    """A statement about recovery.

    Attributes:
        name, title: how it is called.
        status: proved in the paper, a finite-size statement of our own, or a conjecture.
        statement: in one sentence, surrogates included.
        algorithm: the method it speaks of.
        hypotheses: signed slacks of a case.
        promise: failure probability of a case.
    """

    name: str
    title: str
    status: str
    statement: str
    algorithm: str
    hypotheses: Callable[[Case], tuple[Slack, ...]]
    promise: Callable[[Case], float]

    def judge(self, case: Case, evidence: Evidence, untrained: float) -> Verdict:
        """The verdict; a run failed if its conclusion did not hold.

        Where the hypotheses hold the promise is tested exactly. Where they fail nothing is promised: the conclusion
        counts as holding if at most half of the runs failed.
        """
        hypotheses, promised = self.hypotheses(case), self.promise(case)
        hold = all(hypothesis.holds for hypothesis in hypotheses)
        if not evidence.runs:
            conclusion = None
        elif hold:
            conclusion = {"confirmed": True, "refuted": False, "undecided": None}[evidence.outcome]
        else:
            conclusion = evidence.failures <= evidence.runs / 2
        nearest = min(hypothesis.slack for hypothesis in hypotheses)
        return Verdict(
            self.name, quadrant(hold, conclusion), hypotheses, promised, evidence, untrained,
            promised > VACUOUS or untrained >= VACUOUS, abs(nearest) < math.log(2),
        )  # fmt: skip

    def refuse_other(self, method: Any) -> None:
        """RequestError unless `method` is the one that the theorem speaks of."""
        if self.algorithm == "Modified BA" and not isinstance(method, ModifiedBA):
            raise RequestError(
                f"theorem {self.name} speaks of {self.algorithm}, not of {type(method).__name__}; run ModifiedBA"
            )


def _at_most(name: str, measured: float, limit: float, surrogate: str) -> Slack:
    slack = math.log(limit / measured) if measured > 0 else math.inf
    return Slack(name, slack, slack, slack, measured, limit, True, surrogate)


def recovery_hypotheses(case: Case) -> tuple[Slack, ...]:
    """Width and frequency bounds of the recovery theorem at eps -> 0 (with eps > 0 width and interference tighten)."""
    width = bounds.log_width_power_form(case.n, case.p, case.s, 0.0)
    slack = math.log(case.M) - width
    return (
        Slack("width", slack, slack, slack, math.exp(min(width, 700.0)), case.M, True, "n p^{-s} <= M (eps -> 0)"),
        _at_most("lower", bounds.frequency_lower(case.n), case.p, "1 / n <= p"),
        _at_most("sparsity", case.p, bounds.frequency_upper_sparsity(case.n, case.s), "p <= n^{-(1 + 1/s)/2}"),
        _at_most(
            "interference", case.p, bounds.frequency_upper_interference(case.n, case.s, 0.0), "p <= n^{-2/s} (eps -> 0)"
        ),
        _at_most(
            "dimension", case.p, bounds.frequency_upper_dimension(case.n, case.d, case.sigma), "p <= d^{1 - sigma} / n"
        ),
    )  # fmt: skip


def recovery_epsilon(case: Case) -> float | None:
    """The largest eps that satisfies all hypotheses (power form); None where there is none."""
    return bounds.largest_epsilon(case.n, case.d, case.s, case.M, case.p, case.sigma)


def recovery_promise(case: Case) -> float:
    """n^{-4 eps} at the largest eps; 1 where there is none."""
    eps = recovery_epsilon(case)
    return 1.0 if eps is None else bounds.failure_probability(case.n, eps)


def finite_hypotheses(case: Case) -> tuple[Slack, ...]:
    """n E[(1 - pi)^M] <= delta, see `theory.one_step`."""
    missed = case.n * missed_share(case.n, case.d, case.s, case.M, case.p, case.tau)
    return (_at_most("missed", missed, case.delta, "expected number of missed features n E[(1 - pi)^M] <= delta"),)


def resonance_hypotheses(case: Case) -> tuple[Slack, ...]:
    """f <= p <= min(sqrt f, f d)."""
    low, high = bounds.resonance_band_limit(case.frequency, case.d)
    return (_at_most("lower", low, case.p, "f <= p"), _at_most("upper", case.p, high, "p <= min(sqrt f, f d)"))


@dataclass(frozen=True)
class IdentifiabilityVerdict:
    """The identifiability theorem at one pair of factorisations.

    Attributes:
        quadrant: confirmed where the class conditions hold for both and V' turns into V, and so on.
        truth, alternative: the conditions of (H, V) and (H', V').
        comparison: the decision procedure's result, `theory.identifiability.Identifiability`.
    """

    quadrant: Quadrant
    truth: Conditions
    alternative: Conditions
    comparison: Any

    @property
    def slack(self) -> float:
        """The smallest slack of the eight."""
        return min(condition.slack for both in (self.truth, self.alternative) for condition in both)


@dataclass(frozen=True)
class IdentifiabilityTheorem:
    """If H1, H2, H3, V1 hold for every (H', V') of a class, V is eps-identifiable in it with eps = o(1)."""

    name: str = "identifiability"
    title: str = "Identifiability (Chen et al. 2025)"
    status: str = "proved in the paper; the surrogates of theory.conditions stand for the asymptotic symbols"
    statement: str = (
        "If X = HV = H'V' and both factorisations satisfy H1, H2, H3 and V1, the rows of V' can be split into n groups "
        "with a convex combination in each that is within epsilon of a row of V."
    )

    def judge(self, H: Any, V: Any, H_prime: Any, V_prime: Any, *, tolerance: float = 0.05) -> IdentifiabilityVerdict:
        """The verdict for one pair; hypotheses count as holding where all eight slacks are positive."""
        from theory.identifiability import compare

        truth, alternative = measure(H, V), measure(H_prime, V_prime)
        comparison = compare(V, V_prime, tolerance=tolerance, draws=0)
        forward = comparison.forward
        conclusion = True if forward.eps_upper <= tolerance else False if forward.eps_lower > tolerance else None
        return IdentifiabilityVerdict(
            quadrant(truth.satisfied and alternative.satisfied, conclusion), truth, alternative, comparison
        )


@dataclass(frozen=True)
class Theorems:
    """All statements."""

    identifiability: IdentifiabilityTheorem = field(default_factory=IdentifiabilityTheorem)
    recovery: Theorem = Theorem(
        "recovery",
        "Feature recovery by Modified BA (Chen et al. 2025)",
        "proved in the paper (known from readers' notes); finite surrogates chosen here",
        "If n p^{-s/(1-eps)^2} <= M and 1/n <= p <= min(n^{-(1+1/s)/2}, n^{-2(1+eps)^2/s}, d^{1-sigma}/n), then after "
        "1/sigma large steps, with probability >= 1 - n^{-4 eps}, every feature has a neuron at cosine > tau.",
        "Modified BA",
        recovery_hypotheses,
        recovery_promise,
    )
    finite_recovery: Theorem = Theorem(
        "finite-recovery",
        "Recovery in one step at finite size",
        "a statement of our own, derived in theory.one_step; one approximation (neurons independent given ||v_i||)",
        "If n E[(1 - pi)^M] <= delta, then after one step w <- g / ||g|| of centred Modified BA with the population "
        "gradient, with probability >= 1 - delta, every feature has a neuron at cosine > tau.",
        "Modified BA",
        finite_hypotheses,
        lambda case: case.delta,
    )
    resonance: Theorem = Theorem(
        "resonance",
        "Resonance band f <~ p <~ min(sqrt f, f d)",
        "a conjecture: the notes' s = infinity reading of the theorem, applied to trained BA",
        "If f <= p <= min(sqrt f, f d), trained BA recovers at least half of the features at cosine > tau.",
        "BA",
        resonance_hypotheses,
        lambda case: RESONANCE_PROMISE,
    )

    def __getitem__(self, name: str) -> Theorem | IdentifiabilityTheorem:
        found = {theorem.name: theorem for theorem in vars(self).values()}
        if name not in found:
            raise RequestError(f"unknown theorem {name!r}; there are {', '.join(found)}")
        return found[name]


THEOREMS = Theorems()
