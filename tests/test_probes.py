"""Probes against an optimum computed otherwise, and on data where the answer is known."""

import numpy as np
import pytest
from scipy import optimize, sparse

from simulator import Exactly, Orthonormal, RequestError, World
from theory.probes import best_thresholds, probe_scores


def test_one_probe_is_the_minimum_of_its_loss():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 3))
    active = rng.random(400) < 1 / (1 + np.exp(-(X @ [1.0, -2.0, 0.5] - 1)))
    scale = np.sqrt((X**2).mean())
    t = np.where(active, 1.0, -1.0)

    def loss(theta):
        return np.logaddexp(0, -t * (X / scale @ theta[:3] + theta[3])).mean() + 0.01 / 2 * theta[:3] @ theta[:3]

    best = optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).x
    found = probe_scores(
        X, sparse.csr_array(active[:, None].astype(float)), X, sparse.csr_array((400, 1)), penalty=0.01
    )
    np.testing.assert_allclose(found.weights[0], best[:3] / scale, atol=2e-3)
    assert found.bias[0] == pytest.approx(best[3], abs=2e-3)


def test_threshold_has_the_largest_f1_of_the_training_samples():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((300, 2))
    active = X[:, 0] + rng.standard_normal(300) > 1.5
    H = sparse.csr_array(active[:, None].astype(float))
    found = probe_scores(X, H, X, H)
    logit = X @ found.weights[0] + found.bias[0]
    scores = [2 * (active & (logit > cut)).sum() / ((logit > cut).sum() + active.sum()) for cut in np.sort(logit)[:-1]]
    assert found.f1[0] == pytest.approx(max(scores), abs=1e-6)


def test_orthogonal_features_are_read_off_and_superposition_costs():
    world = World(16, 16, Exactly(2), Orthonormal())
    train, test = world.sample(4_000, 0, name="a"), world.sample(2_000, 0, name="b")
    assert probe_scores(train.X, train.H, test.X, test.H).f1.min() > 0.999
    crowded = World(64, 6, Exactly(2))
    train, test = crowded.sample(4_000, 0, name="a"), crowded.sample(2_000, 0, name="b")
    assert probe_scores(train.X, train.H, test.X, test.H).summary()["f1"] < 0.8


def test_feature_that_training_never_saw():
    rng = np.random.default_rng(2)
    X, H = rng.standard_normal((50, 3)), sparse.csr_array((50, 2))
    found = probe_scores(X, H, X, sparse.csr_array(np.ones((50, 2))))
    assert found.f1.tolist() == [0, 0]
    assert np.isinf(found.threshold).all()


def test_blocks_of_features_do_not_matter(monkeypatch):
    world = World(10, 8, Exactly(2))
    train, test = world.sample(1_000, 0, name="a"), world.sample(500, 0, name="b")
    whole = probe_scores(train.X, train.H, test.X, test.H, penalty=1e-3, iterations=300)
    monkeypatch.setattr("theory.probes._BLOCK_FEATURES", 3)
    parts = probe_scores(train.X, train.H, test.X, test.H, penalty=1e-3, iterations=300)
    np.testing.assert_allclose(parts.weights, whole.weights, rtol=0.02, atol=0.02)


def test_bad_requests():
    X, H = np.ones((5, 2)), sparse.csr_array((5, 3))
    with pytest.raises(RequestError, match="all zeros"):
        probe_scores(np.zeros((5, 2)), H, X, H)
    with pytest.raises(RequestError):
        probe_scores(X, sparse.csr_array((4, 3)), X, H)


def test_best_thresholds_of_given_scores():
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.3], [0.1, 0.4]])
    H = sparse.csr_array(np.array([[1.0, 0], [1, 0], [0, 0], [0, 0]]))
    found = best_thresholds(scores, H)
    assert found[0] == pytest.approx(0.55)
    assert np.isinf(found[1])
