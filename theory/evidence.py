"""Many runs against "with probability at least 1 - delta": interval, power, seeds needed.

A statement promises that a run fails with probability at most delta. R seeds with K failures give an exact binomial
(Clopper-Pearson) interval for the true rate. The promise is refuted where the interval's lower end exceeds delta and
confirmed where its upper end is at most delta; else the runs do not decide.

Several cells share one level. Bonferroni gives each the same part of it. Holm's step-down (`assess_all`) starts with
the cell that is decided most clearly and gives the later ones more. Derived here: the m cells are 2 m one-sided
hypotheses "rate <= delta", "rate > delta", one of the two true in each cell, so Holm's part of the cell at place
k = 0, 1, .. is 2 level / (2 m - k), two-sided. Both corrections keep the chance of any false refutation or confirmation
<= level.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import bdtrc
from scipy.stats import beta as beta_law
from scipy.stats import binom

from simulator.checks import real, whole
from simulator.errors import RequestError

MOST_SEEDS = 200
"""A cell that would need more seeds than these is untestable."""
MOST_RUNS = 10_000
"""`seeds_needed` looks no further."""
POWER = 0.8
Outcome = Literal["confirmed", "refuted", "undecided"]
Correction = Literal["bonferroni", "holm"]


@dataclass(frozen=True)
class Evidence:
    """What R runs with K failures say about a promised failure rate.

    Attributes:
        runs, failures: R and K.
        promised: delta.
        low, high: exact interval of the true failure rate at `share`.
        level: chance of a false statement over all cells together, two-sided.
        cells: number of cells that share the level.
        correction: how they share it.
        share: the part of the level that this cell has.
    """

    runs: int
    failures: int
    promised: float
    low: float
    high: float
    level: float
    cells: int
    correction: Correction
    share: float

    @property
    def refuted(self) -> bool:
        """The whole interval lies above the promise."""
        return self.low > self.promised

    @property
    def consistent(self) -> bool:
        """Not refuted: says nothing where so few runs could not have refuted, see `detectable`."""
        return not self.refuted

    @property
    def confirmed(self) -> bool:
        """The whole interval lies within the promise."""
        return self.high <= self.promised

    @property
    def outcome(self) -> Outcome:
        """confirmed, refuted, or undecided."""
        return "refuted" if self.refuted else "confirmed" if self.confirmed else "undecided"

    @property
    def detectable(self) -> float | None:
        """The smallest true rate that so many runs refute with probability 0.8; None if there is none."""
        return detectable_rate(self.runs, self.promised, self.share)

    @property
    def testable(self) -> bool:
        """At most 200 seeds without a failure would confirm the promise at this level."""
        return seeds_to_confirm(self.promised, self.share) <= MOST_SEEDS

    def summary(self) -> str:
        """One line."""
        shown = "no true rate" if self.detectable is None else f"a true rate of {self.detectable:.3f}"
        shared = f" shared by {self.cells} cells ({self.correction.capitalize()})" if self.cells > 1 else ""
        needed = "" if self.testable else f"; untestable, to confirm it takes more than {MOST_SEEDS} seeds"
        return (
            f"{self.failures} of {self.runs} runs failed; rate in [{self.low:.3f}, {self.high:.3f}] at level "
            f"{self.level:g}{shared}, promised <= {self.promised:.3g}: {self.outcome}; {shown} would have been refuted "
            f"with probability {POWER:g}{needed}"
        )


def assess(
    runs: int,
    failures: int,
    promised: float,
    *,
    cells: int = 1,
    correction: Correction = "bonferroni",
    level: float = 0.05,
) -> Evidence:
    """The evidence of `failures` in `runs` against the promised failure probability.

    Args:
        runs: R >= 0.
        failures: 0 <= K <= R.
        promised: delta in [0, 1].
        cells: how many such tests share the level.
        correction: "bonferroni" for cells that are assessed one by one; Holm's needs all of them, `assess_all`.
        level: two-sided chance of a false statement over all of them.

    Raises:
        RequestError: numbers that do not fit, or "holm" for one of several cells.
    """
    whole("cells", cells, 1)
    if _known(correction) == "holm" and cells > 1:
        raise RequestError(f"Holm's correction of {cells} cells orders all of them; give them together to assess_all")
    return _evidence((runs, failures, promised), level, cells, correction, _level(level) / cells)


def assess_all(
    results: Sequence[tuple[int, int, float]], *, correction: Correction = "bonferroni", level: float = 0.05
) -> tuple[Evidence, ...]:
    """`assess` for every (runs, failures, promised), all sharing the level; in their order.

    Raises:
        RequestError: no result, or numbers that do not fit.
    """
    count = len(results)
    if not count:
        raise RequestError("no result to assess; give at least one (runs, failures, promised)")
    shares = np.full(count, _level(level) / count)
    if _known(correction) == "holm":
        p_values = [_p_value(*_counts(*result)) for result in results]
        order = np.argsort(p_values, kind="stable")
        for place, cell in enumerate(order):
            # Where the descent stops no later cell is decided either: they all have larger p-values.
            shares[order[place:]] = 2 * level / (2 * count - place)
            if p_values[cell] > shares[cell] / 2:
                break
    return tuple(
        _evidence(result, level, count, correction, float(share)) for result, share in zip(results, shares, strict=True)
    )


def interval(runs: int, failures: int, level: float) -> tuple[float, float]:
    """Clopper-Pearson interval of a binomial rate: each end is missed with probability at most level / 2."""
    _counts(runs, failures, 0.0)
    _level(level)
    low = float(beta_law.ppf(level / 2, failures, runs - failures + 1)) if failures else 0.0
    high = float(beta_law.ppf(1 - level / 2, failures + 1, runs - failures)) if failures < runs else 1.0
    return low, high


def fewest_refuting_failures(runs: int, promised: float, level: float = 0.05) -> int | None:
    """The smallest K that refutes the promise, P(Bin(R, delta) >= K) < level / 2; None if not even K = R does."""
    whole("runs", runs, 0)
    real("promised failure rate", promised, 0, 1)
    needed = int(_fewest(np.array([runs]), promised, _level(level))[0])
    return needed if needed <= runs else None


def refutation_power(runs: int, promised: float, true_rate: float, level: float = 0.05) -> float:
    """Probability that R runs refute the promise when runs fail at `true_rate`."""
    real("true failure rate", true_rate, 0, 1)
    needed = fewest_refuting_failures(runs, promised, level)
    return 0.0 if needed is None else float(bdtrc(needed - 1, runs, true_rate))


def detectable_rate(runs: int, promised: float, level: float = 0.05, power: float = POWER) -> float | None:
    """The smallest true failure rate that R runs refute with this power; None if not even rate 1 is."""
    real("power", power, 0, 1, open_low=True, open_high=True)
    needed = fewest_refuting_failures(runs, promised, level)
    # P(Bin(R, q) >= K) = P(Beta(K, R - K + 1) <= q), so q is a quantile.
    return None if needed is None else float(beta_law.ppf(power, needed, runs - needed + 1))


def seeds_needed(promised: float, true_rate: float, level: float = 0.05, power: float = POWER) -> int | None:
    """The fewest runs that refute the promise with this power if runs fail at `true_rate`; None above 10,000.

    A few runs more can have a little less power, since failures are counted in whole numbers.
    """
    real("promised failure rate", promised, 0, 1)
    real("true failure rate", true_rate, 0, 1)
    real("power", power, 0, 1, open_low=True, open_high=True)
    if true_rate <= promised:
        return None
    runs = np.arange(1, MOST_RUNS + 1)
    needed = _fewest(runs, promised, _level(level))
    enough = (needed <= runs) & (binom.sf(needed - 1, runs, true_rate) >= power)
    return int(runs[enough.argmax()]) if enough.any() else None


def seeds_to_confirm(promised: float, level: float = 0.05) -> float:
    """Runs without any failure whose interval lies within the promise: (1 - delta)^R <= level / 2.

    With failures it takes more. A promise of delta = 0 is never confirmed: infinity.
    """
    real("promised failure rate", promised, 0, 1)
    _level(level)
    if promised in (0, 1):
        return 0 if promised else math.inf
    return math.ceil(math.log(level / 2) / math.log1p(-promised) - 1e-9)


def _fewest(runs: np.ndarray, promised: float, level: float) -> np.ndarray:
    """Smallest K with P(Bin(R, delta) >= K) < level / 2, which may be R + 1."""
    needed = binom.isf(level / 2, runs, promised).astype(np.int64) + 1
    # isf is defined by <=; where equality holds one failure more is needed.
    return needed + (binom.sf(needed - 1, runs, promised) >= level / 2)


def _p_value(runs: int, failures: int, promised: float) -> float:
    """The smaller one-sided p-value of "rate <= delta" and "rate > delta"."""
    above = float(binom.sf(failures - 1, runs, promised))
    return min(above, float(binom.cdf(failures, runs, promised)))


def _evidence(
    result: tuple[int, int, float], level: float, cells: int, correction: Correction, share: float
) -> Evidence:
    runs, failures, promised = _counts(*result)
    low, high = interval(runs, failures, share)
    return Evidence(runs, failures, promised, low, high, level, cells, correction, share)


def _counts(runs: int, failures: int, promised: float) -> tuple[int, int, float]:
    whole("runs", runs, 0)
    whole("failures", failures, 0)
    if failures > runs:
        raise RequestError(f"{failures} failures in {runs} runs; there cannot be more failures than runs")
    return int(runs), int(failures), real("promised failure rate", promised, 0, 1)


def _known(correction: str) -> str:
    if correction not in ("bonferroni", "holm"):
        raise RequestError(f"correction = {correction!r} is unknown; take 'bonferroni' or 'holm'")
    return correction


def _level(level: float) -> float:
    return real("level", level, 0, 1, open_low=True, open_high=True)
