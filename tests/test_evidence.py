"""Evidence: coverage and power by exact enumeration of the binomial, no simulation."""

import numpy as np
import pytest
from scipy.stats import binom

from simulator.errors import RequestError
from theory.evidence import (
    assess,
    detectable_rate,
    fewest_refuting_failures,
    interval,
    refutation_power,
    seeds_needed,
    seeds_to_confirm,
)


@pytest.mark.parametrize("runs", [1, 7, 30])
@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.93])
def test_interval_covers_at_its_level(runs, rate):
    missed = 0.0
    for failures in range(runs + 1):
        low, high = interval(runs, failures, 0.05)
        if not low <= rate <= high:
            missed += binom.pmf(failures, runs, rate)
    assert missed <= 0.05 + 1e-12


@pytest.mark.parametrize("promised", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("cells", [1, 8])
def test_a_kept_promise_is_refuted_no_more_often_than_the_level(promised, cells):
    runs = 40
    refuted = sum(
        binom.pmf(failures, runs, promised)
        for failures in range(runs + 1)
        if assess(runs, failures, promised, cells=cells).outcome == "refuted"
    )
    assert refuted <= 0.025 / cells + 1e-12


def test_power_is_the_binomial_tail():
    runs, promised = 25, 0.1
    needed = fewest_refuting_failures(runs, promised, 0.05)
    assert needed is not None
    assert assess(runs, needed, promised).outcome == "refuted"
    assert assess(runs, needed - 1, promised).outcome != "refuted"
    assert refutation_power(runs, promised, 0.4) == pytest.approx(binom.sf(needed - 1, runs, 0.4))
    rate = detectable_rate(runs, promised)
    assert rate is not None
    assert refutation_power(runs, promised, rate) == pytest.approx(0.8)


def test_more_seeds_detect_smaller_rates():
    rates = [detectable_rate(runs, 0.1) for runs in (10, 30, 100)]
    assert np.all(np.diff(np.array(rates, dtype=float)) < 0)


def test_seeds_needed_have_the_power_and_fewer_do_not():
    runs = seeds_needed(0.1, 0.6)
    assert runs is not None
    assert refutation_power(runs, 0.1, 0.6) >= 0.8
    assert refutation_power(runs - 1, 0.1, 0.6) < 0.8
    assert seeds_needed(0.3, 0.3) is None


def test_seeds_to_confirm():
    runs = seeds_to_confirm(0.1, 0.05)
    assert assess(runs, 0, 0.1).outcome == "confirmed"
    assert assess(runs - 1, 0, 0.1).outcome == "undecided"
    assert not assess(5, 0, 0.001).testable
    assert assess(5, 0, 0.1).testable
    assert seeds_to_confirm(0.0) > 10**6


def test_edge_cases():
    assert assess(0, 0, 0.5).outcome == "undecided"
    assert assess(3, 3, 1.0).outcome == "confirmed"
    assert assess(1, 1, 0.0).outcome == "refuted"
    assert "refuted" in assess(30, 30, 0.1).summary()
    with pytest.raises(RequestError):
        assess(3, 4, 0.1)
    with pytest.raises(RequestError):
        assess(3, 1, 1.4)
