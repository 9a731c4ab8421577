"""Many runs against "with probability at least 1 - delta": interval, power, seeds needed.

A statement promises that a run fails with probability at most delta. R seeds with K failures give an exact binomial
(Clopper-Pearson) interval for the true rate. The promise is refuted where the interval's lower end exceeds delta and
confirmed where its upper end is at most delta; else the runs do not decide. With several cells the level is divided
by their number (Bonferroni), so that the chance of any false refutation among them is at most `level`.
"""

import math
from dataclasses import dataclass
from typing import Literal

from scipy.special import bdtrc
from scipy.stats import beta as beta_law

from simulator.checks import real, whole
from simulator.errors import RequestError

MOST_SEEDS = 200
"""A cell that would need more seeds than these is untestable."""
Outcome = Literal["confirmed", "refuted", "undecided"]


@dataclass(frozen=True)
class Evidence:
    """What R runs with K failures say about a promised failure rate.

    Attributes:
        runs, failures: R and K.
        promised: delta.
        low, high: exact interval of the true failure rate at the corrected level.
        level: false-alarm rate over all cells together, two-sided.
        cells: number of cells that the level is shared by.
        correction: how.
    """

    runs: int
    failures: int
    promised: float
    low: float
    high: float
    level: float
    cells: int
    correction: str = "Bonferroni"

    @property
    def outcome(self) -> Outcome:
        """confirmed: high <= promised; refuted: low > promised; else undecided."""
        if self.low > self.promised:
            return "refuted"
        return "confirmed" if self.high <= self.promised else "undecided"

    @property
    def detectable(self) -> float | None:
        """The smallest true rate that so many runs refute with probability 0.8; None if there is none."""
        return detectable_rate(self.runs, self.promised, self.level / self.cells)

    @property
    def testable(self) -> bool:
        """At most 200 seeds without a failure would confirm the promise at this level."""
        return seeds_to_confirm(self.promised, self.level / self.cells) <= MOST_SEEDS

    def summary(self) -> str:
        """One line."""
        shown = "none" if self.detectable is None else f"{self.detectable:.3f}"
        return (
            f"{self.failures} of {self.runs} runs failed; rate in [{self.low:.3f}, {self.high:.3f}] at level "
            f"{self.level:g} over {self.cells} cells ({self.correction}), promised <= {self.promised:.3g}: "
            f"{self.outcome}; a true rate of {shown} would have been refuted with probability 0.8"
        )


def assess(runs: int, failures: int, promised: float, *, cells: int = 1, level: float = 0.05) -> Evidence:
    """The evidence of `failures` in `runs` against the promised failure probability.

    Args:
        runs: R >= 0.
        failures: 0 <= K <= R.
        promised: delta in [0, 1].
        cells: how many such tests share the level.
        level: two-sided false-alarm rate over all of them.

    Raises:
        RequestError: numbers that do not fit.
    """
    whole("runs", runs, 0)
    whole("failures", failures, 0)
    if failures > runs:
        raise RequestError(f"{failures} failures in {runs} runs; there cannot be more failures than runs")
    real("promised failure rate", promised, 0, 1)
    low, high = interval(runs, failures, _share(level, cells))
    return Evidence(runs, failures, promised, low, high, level, cells)


def interval(runs: int, failures: int, level: float) -> tuple[float, float]:
    """Clopper-Pearson interval of a binomial rate: each end is missed with probability at most level / 2."""
    if runs == 0:
        return 0.0, 1.0
    low = float(beta_law.ppf(level / 2, failures, runs - failures + 1)) if failures else 0.0
    high = float(beta_law.ppf(1 - level / 2, failures + 1, runs - failures)) if failures < runs else 1.0
    return low, high


def fewest_refuting_failures(runs: int, promised: float, level: float) -> int | None:
    """The smallest K whose interval lies above the promise; None if even K = R does not."""
    for failures in range(runs + 1):
        if interval(runs, failures, level)[0] > promised:
            return failures
    return None


def refutation_power(runs: int, promised: float, true_rate: float, level: float = 0.05) -> float:
    """Probability that R runs refute the promise when runs fail at `true_rate`."""
    needed = fewest_refuting_failures(runs, promised, level)
    if needed is None:
        return 0.0
    return 1.0 if needed == 0 else float(bdtrc(needed - 1, runs, true_rate))


def detectable_rate(runs: int, promised: float, level: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest true failure rate that R runs refute with this power; None if none is."""
    needed = fewest_refuting_failures(runs, promised, level)
    if needed is None:
        return None
    # P(Bin(R, q) >= k) = P(Beta(k, R - k + 1) <= q), so q is a quantile.
    return float(beta_law.ppf(power, needed, runs - needed + 1)) if needed else 0.0


def seeds_needed(promised: float, true_rate: float, level: float = 0.05, power: float = 0.8) -> int | None:
    """The fewest runs that refute the promise with this power if runs fail at `true_rate`; None above 10,000."""
    if true_rate <= promised:
        return None
    runs = 1
    while runs <= 10_000:
        if refutation_power(runs, promised, true_rate, level) >= power:
            return runs
        runs += max(1, runs // 50)
    return None


def seeds_to_confirm(promised: float, level: float = 0.05) -> int:
    """Runs without a failure whose interval lies below the promise, (level/2)^{1/R} >= 1 - delta; 10^9 at delta = 0."""
    real("promised failure rate", promised, 0, 1)
    if promised >= 1:
        return 0
    if promised == 0:
        return 10**9
    return math.ceil(math.log(level / 2) / math.log1p(-promised) - 1e-9)


def _share(level: float, cells: int) -> float:
    return real("level", level, 0, 1, open_low=True, open_high=True) / whole("cells", cells, 1)
