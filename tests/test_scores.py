"""Maximum activation and Z-score of neurons, against their definitions written out densely."""

import numpy as np
import pytest
from scipy import sparse

from simulator import RequestError
from theory import scores
from theory.scores import neuron_scores


def network(M=7, d=5, N=300, seed=0):
    draw = np.random.default_rng(seed)
    W = draw.standard_normal((M, d))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    return draw.standard_normal((N, d)), W, draw.uniform(-0.9, 0, M), 0.1 * draw.standard_normal(d)


def dense(X, W, b, b_pre):
    z = (X - b_pre) @ W.T
    return z, z + b


@pytest.mark.parametrize("block", [scores.BLOCK, 50])
def test_the_definitions(monkeypatch, block):
    monkeypatch.setattr(scores, "BLOCK", block)
    X, W, b, b_pre = network()
    z, y = dense(X, W, b, b_pre)
    phi = np.where(y > 0, z, 0.0)
    found = neuron_scores(X, W, b, b_pre, sparse.csr_array(phi))
    top = np.maximum(y, 0).max(axis=0)
    np.testing.assert_allclose(found.max_activation, top, rtol=1e-5)
    np.testing.assert_allclose(found.z_score, (top - np.maximum(y, 0).mean(axis=0)) / y.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.post_z_score, (phi.max(axis=0) - phi.mean(axis=0)) / phi.std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.pre_frequency, (y > 0).mean(axis=0))
    assert found.samples == 300


def test_a_neuron_that_never_fires_and_one_that_does_not_vary_score_zero():
    X, W, b, b_pre = network()
    b[2] = -100.0
    W[3] = 0.0
    _, y = dense(X, W, b, b_pre)
    found = neuron_scores(X, W, b, b_pre, sparse.csr_array(np.maximum(y, 0)))
    assert found.max_activation[2] == found.z_score[2] == found.post_z_score[2] == found.pre_frequency[2] == 0
    assert found.z_score[3] == 0


def test_a_rare_large_activation_has_a_high_z_score():
    """A neuron that is silent but for one sample of N has Z = (1 - 1/N) sqrt(N) about, the largest possible."""
    X = np.zeros((400, 2))
    X[7, 0] = 1.0
    found = neuron_scores(X, np.eye(2), np.zeros(2), np.zeros(2), sparse.csr_array(X))
    assert found.z_score[0] == pytest.approx((1 - 1 / 400) / np.sqrt(1 / 400 - 1 / 400**2), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"X": np.zeros((3, 4))}, "same d"),
        ({"X": np.zeros((0, 5))}, "X"),
        ({"b": np.zeros(3)}, "b"),
        ({"codes": sparse.csr_array((3, 7))}, "codes"),
        ({"W": np.full((7, 5), np.nan)}, "W"),
    ],
)
def test_impossible_arrays(change, words):
    X, W, b, b_pre = network()
    given = {"X": X, "W": W, "b": b, "b_pre": b_pre, "codes": sparse.csr_array((300, 7))} | change
    with pytest.raises(RequestError, match=words):
        neuron_scores(**given)
