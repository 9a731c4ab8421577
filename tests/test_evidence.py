"""Evidence against promised failure rates: false alarms and power by enumeration of the binomial, no simulation."""

import math
from itertools import product

import pytest
from scipy.stats import binom, binomtest

from simulator.errors import RequestError
from theory.evidence import (
    assess,
    assess_all,
    detectable_rate,
    fewest_refuting_failures,
    interval,
    refutation_power,
    seeds_needed,
    seeds_to_confirm,
)


def pmf(runs: int, failures: int, rate: float) -> float:
    return math.comb(runs, failures) * rate**failures * (1 - rate) ** (runs - failures)


def test_worked_example():
    """No failure in 10: the upper end is 1 - .025^{1/10} = .3085; all fail: the mirror image."""
    assert interval(10, 0, 0.05) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert interval(10, 10, 0.05) == (pytest.approx(0.025**0.1), 1.0)
    # One run: P(K >= 1) = delta < level / 2 is needed to refute with one failure.
    assert assess(1, 1, 0.02).refuted and not assess(1, 1, 0.03).refuted


@pytest.mark.parametrize("runs", [1, 7, 40])
def test_the_interval_is_that_of_an_independent_implementation(runs):
    for failures in range(runs + 1):
        other = binomtest(failures, runs).proportion_ci(0.99, "exact")
        assert interval(runs, failures, 0.01) == pytest.approx((other.low, other.high), abs=1e-12)


@pytest.mark.parametrize("runs", [1, 5, 12, 60])
@pytest.mark.parametrize("promised", [0.0, 0.02, 0.2, 0.5, 0.9])
def test_false_alarms_by_enumeration(runs, promised):
    """At every true rate within the promise it is refuted with probability <= level / 2, most at the promise itself;
    beyond it, confirmed with probability <= level / 2."""
    found = [assess(runs, failures, promised, cells=3, level=0.1) for failures in range(runs + 1)]
    share = 0.1 / 3
    for rate in (0.0, 0.3 * promised, promised):
        assert sum(pmf(runs, k, rate) for k, one in enumerate(found) if one.refuted) <= share / 2
    for rate in (promised + 1e-6, (1 + promised) / 2, 1.0):
        assert sum(pmf(runs, k, rate) for k, one in enumerate(found) if one.confirmed) <= share / 2


def test_the_interval_covers_and_is_not_vacuous():
    for runs, rate in product((4, 23), (0.01, 0.17, 0.5, 0.83)):
        ends = [interval(runs, k, 0.2) for k in range(runs + 1)]
        assert sum(pmf(runs, k, rate) for k, (low, high) in enumerate(ends) if low <= rate <= high) >= 0.8
    # One failure fewer would break the level: the test is as sharp as whole numbers allow.
    needed = fewest_refuting_failures(60, 0.2, 0.05)
    assert needed is not None
    assert (
        sum(pmf(60, k, 0.2) for k in range(needed, 61)) < 0.025 <= sum(pmf(60, k, 0.2) for k in range(needed - 1, 61))
    )


@pytest.mark.parametrize("promised", [0.0, 0.05, 0.3, 0.5])
def test_fewest_failures_agree_with_assess(promised):
    for runs, level in product((0, 1, 2, 9, 30), (0.05, 0.5)):
        refuting = [k for k in range(runs + 1) if assess(runs, k, promised, level=level).refuted]
        assert fewest_refuting_failures(runs, promised, level) == (refuting[0] if refuting else None)


def test_equality_does_not_refute():
    """P(Bin(1, 1/2) >= 1) = 1/2 is not below level / 2 = 1/4, P(Bin(2, 1/2) >= 2) = 1/4 is not either."""
    assert fewest_refuting_failures(2, 0.5, 0.5) is None
    assert fewest_refuting_failures(3, 0.5, 0.5) == 3


def test_power_by_enumeration():
    for runs, promised, rate in ((12, 0.1, 0.4), (60, 0.1, 0.25), (30, 0.0, 0.05)):
        refuting = [k for k in range(runs + 1) if assess(runs, k, promised).refuted]
        expected = sum(pmf(runs, k, rate) for k in refuting)
        assert refutation_power(runs, promised, rate) == pytest.approx(expected, abs=1e-12)
    assert refutation_power(2, 0.5, 1.0) == 0.0


def test_detectable_rate_has_exactly_the_power():
    for runs, promised, power in ((12, 0.1, 0.8), (60, 0.21, 0.8), (9, 0.0, 0.5)):
        rate = detectable_rate(runs, promised, power=power)
        assert rate is not None
        assert refutation_power(runs, promised, rate) == pytest.approx(power)
        assert refutation_power(runs, promised, rate - 0.01) < power
    assert detectable_rate(1, 0.5) is None and detectable_rate(0, 0.0) is None


def test_detectable_rate_falls_with_runs_and_grows_with_cells():
    rates = [detectable_rate(runs, 0.1) for runs in (5, 20, 80, 320)]
    assert rates == sorted(rates, reverse=True) and rates[-1] > 0.1
    one, many = assess(60, 3, 0.1), assess(60, 3, 0.1, cells=20)
    assert one.detectable < many.detectable
    assert many.low < one.low and one.high < many.high


def test_seeds_needed_is_the_fewest():
    for promised, rate in ((0.1, 0.6), (0.1, 0.3), (0.0, 0.3), (0.38, 0.76)):
        needed = seeds_needed(promised, rate)
        assert needed is not None
        powers = [refutation_power(runs, promised, rate) for runs in range(needed + 1)]
        assert powers[-1] >= 0.8 > max(powers[:-1])
    # delta = 0 is refuted by one failure: 1 - .7^R >= .8 at R = 5.
    assert seeds_needed(0.0, 0.3) == 5
    assert seeds_needed(0.3, 0.3) is None and seeds_needed(0.3, 0.2) is None and seeds_needed(0.3, 0.301) is None
    assert seeds_needed(0.1, 0.3) < seeds_needed(0.1, 0.2)


def test_seeds_to_confirm():
    for promised in (0.02, 0.1, 0.21, 0.5, 0.94):
        needed = seeds_to_confirm(promised)
        assert isinstance(needed, int)
        assert assess(needed, 0, promised).confirmed and not assess(needed - 1, 0, promised).confirmed
    # (1 - .1)^R <= .025: R = 36. At 2 % it takes 183, at 1 % 368 seeds.
    assert [seeds_to_confirm(delta) for delta in (0.1, 0.02, 0.01)] == [36, 183, 368]
    assert seeds_to_confirm(0.0) == math.inf and seeds_to_confirm(1.0) == 0
    assert assess(5, 0, 0.02).testable and not assess(5, 0, 0.01).testable
    assert not assess(5, 0, 0.02, cells=2).testable


@pytest.mark.parametrize(
    ("runs", "failures", "promised", "outcome"),
    [
        (0, 0, 0.0, "undecided"),
        (0, 0, 0.5, "undecided"),
        (0, 0, 1.0, "confirmed"),  # nothing was promised
        (9, 9, 1.0, "confirmed"),
        (9, 0, 0.0, "undecided"),  # a rate of exactly 0 is never shown
        (9, 1, 0.0, "refuted"),
        (9, 9, 0.5, "refuted"),
        (100, 0, 0.5, "confirmed"),
    ],
)
def test_edges(runs, failures, promised, outcome):
    found = assess(runs, failures, promised)
    assert found.outcome == outcome
    assert (found.refuted, found.confirmed) == (outcome == "refuted", outcome == "confirmed")
    assert found.consistent == (outcome != "refuted")
    assert "\n" not in found.summary() and outcome in found.summary()


def test_summary_names_the_correction_and_what_could_have_been_seen():
    text = assess(12, 0, 0.005, cells=8).summary()
    for part in ("0 of 12", "8 cells (Bonferroni)", "undecided", "probability 0.8", "untestable"):
        assert part in text
    assert "untestable" not in assess(12, 3, 0.1).summary()
    assert "no true rate" in assess(1, 1, 0.5).summary()


def test_holm_starts_at_bonferroni_and_never_decides_less():
    results = [(60, 11, 0.1), (60, 20, 0.1), (40, 0, 0.1), (48, 11, 0.1)]
    plain, holm = assess_all(results), assess_all(results, correction="holm")
    assert [one.outcome for one in plain] == ["undecided", "refuted", "undecided", "undecided"]
    # In order of p-values: 20/60, 11/48, 0/40, 11/60, with shares 2 level / 8, / 7, / 6, / 5.
    assert [one.outcome for one in holm] == ["undecided", "refuted", "undecided", "refuted"]
    assert [one.share for one in plain] == [pytest.approx(0.0125)] * 4
    assert [one.share for one in holm] == pytest.approx([0.1 / 6, 0.1 / 8, 0.1 / 6, 0.1 / 7])
    assert {one.correction for one in holm} == {"holm"} and holm[0].cells == 4


@pytest.mark.parametrize("correction", ["bonferroni", "holm"])
def test_familywise_false_statements_by_enumeration(correction):
    """Three cells, every outcome: any false refutation or confirmation has probability <= level. Rates at the promise
    (a confirmation is true there), just above it (confirmation false, refutation true) and far away."""
    runs, promised, level = 8, 0.3, 0.3
    outcomes = {
        counts: assess_all([(runs, k, promised) for k in counts], correction=correction, level=level)
        for counts in product(range(runs + 1), repeat=3)
    }
    worst = 0.0
    for rates in [(0.3, 0.3, 0.3), (0.31, 0.31, 0.31), (0.3, 0.31, 0.95), (0.3, 0.3, 0.95), (0.01, 0.3, 0.31)]:
        wrong = 0.0
        for counts, found in outcomes.items():
            if any(
                (one.refuted and rate <= promised) or (one.confirmed and rate > promised)
                for one, rate in zip(found, rates, strict=True)
            ):
                wrong += math.prod(pmf(runs, k, rate) for k, rate in zip(counts, rates, strict=True))
        worst = max(worst, wrong)
    assert 0 < worst <= level


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: assess(3, 4, 0.1), "4 failures in 3 runs"),
        (lambda: assess(3, -1, 0.1), "failures = -1"),
        (lambda: assess(3, 1, 1.1), "promised failure rate"),
        (lambda: assess(3, 1, 0.1, level=0.0), "level"),
        (lambda: assess(3, 1, 0.1, cells=0), "cells"),
        (lambda: assess(3, 1, 0.1, cells=2, correction="holm"), "assess_all"),
        (lambda: assess_all([]), "no result"),
        (lambda: seeds_needed(0.1, 1.2), "true failure rate"),
        (lambda: detectable_rate(10, 0.1, power=1.0), "power"),
        (lambda: interval(3, 4, 0.1), "4 failures"),
    ],
)
def test_what_cannot_be_assessed(call, message):
    with pytest.raises(RequestError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_helper_is_the_binomial_law():
    assert pmf(9, 4, 0.3) == pytest.approx(binom.pmf(4, 9, 0.3))
