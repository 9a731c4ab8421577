"""Support laws with one pair or a hub: exact marginals against samples."""

import numpy as np
import pytest

from simulator import Hub, OnePair, RequestError, World
from simulator.dictionaries import HeavyTailed, Rademacher, SparseGaussian

N, n = 200_000, 12


def counts(law):
    H = World(n, 4, law).sample(N, 0).H
    active = (H.toarray() > 0).astype(np.float64)
    return active, active.T @ active


@pytest.mark.parametrize(
    "law", [OnePair(3, 0.6), OnePair(2, 0.0), OnePair(4, 1.0), Hub(3, 0.4), Hub(2, 0.9), Hub(4, 0.0)]
)
def test_frequencies_and_rho_2_are_those_of_the_samples(law):
    """Each of the tests at 5 standard deviations: false alarm below 1e-4 in all; sees errors of 0.005 in f."""
    active, together = counts(law)
    assert (active.sum(axis=1) == law.s).all()
    f = law.feature_frequencies(n)
    assert f.sum() == pytest.approx(law.s)
    sd = np.sqrt(np.maximum(f * (1 - f), 1e-12) / N)
    assert (np.abs(active.mean(axis=0) - f) < 5 * sd + 1e-12).all()
    conditional = together / np.maximum(np.diag(together), 1)[:, None]
    np.fill_diagonal(conditional, 0)
    law.check(n)
    measured = conditional.max()
    assert law.rho_2(n) == pytest.approx(measured, abs=0.015)


def test_the_dials_are_what_they_say():
    active, together = counts(OnePair(3, 0.35))
    assert together[0, 1] / active[:, 0].sum() == pytest.approx(0.35, abs=0.02)
    active, together = counts(Hub(3, 0.35))
    assert (together[1:, 0] / active[:, 1:].sum(axis=0)) == pytest.approx(np.full(n - 1, 0.35), abs=0.02)


@pytest.mark.parametrize("make", [lambda: OnePair(1), lambda: OnePair(3, 1.2), lambda: Hub(3, -0.1), lambda: Hub(1)])
def test_impossible_laws_are_refused(make):
    with pytest.raises(RequestError):
        make()


def test_too_few_features_are_refused():
    with pytest.raises(RequestError):
        World(4, 3, OnePair(3))
    with pytest.raises(RequestError):
        World(3, 3, Hub(3))


@pytest.mark.parametrize("law", [Rademacher(), SparseGaussian(0.2), HeavyTailed(6.0)])
def test_other_dictionaries_have_the_moments_of_the_gaussian(law):
    """200,000 entries; mean and variance within 5 standard errors of 0 and 1 (fourth moments up to 15)."""
    entries = law.draw(2_000, 100, np.random.default_rng(0)).ravel()
    assert abs(entries.mean()) < 5 / np.sqrt(entries.size)
    assert abs((entries**2).mean() - 1) < 5 * np.sqrt(14 / entries.size)


def test_sparse_features_are_sparse_and_never_zero():
    V = SparseGaussian(0.02).draw(3_000, 20, np.random.default_rng(0))
    assert V.any(axis=1).all()
    assert (V != 0).mean() == pytest.approx(1 - 0.98 + 0.98**20 / 20, abs=0.005)
    with pytest.raises(RequestError):
        SparseGaussian(0.0)
    with pytest.raises(RequestError):
        HeavyTailed(2.0)
    assert set(np.unique(Rademacher().draw(5, 5, np.random.default_rng(0)))) == {-1.0, 1.0}
