"""Absorption on networks whose answer is known, and on a trained one."""

import numpy as np
import pytest
from scipy import sparse

from simulator import RequestError
from theory.absorption import absorption

PARENTS = np.array([-1, 0, 0, -1])  # features 1 and 2 under feature 0; 3 alone


def world(N=4_000, d=6, seed=0):
    """Orthonormal features; a child is active with probability 0.3 where its parent is."""
    rng = np.random.default_rng(seed)
    V = np.linalg.qr(rng.standard_normal((d, d)))[0][:4]
    active = rng.random((N, 4)) < [0.5, 0.3, 0.3, 0.2]
    active[:, 1:3] &= active[:, :1]
    return V, active.astype(float)


def measure(W, codes, H, V, **options):
    return absorption(sparse.csr_array(codes), W, sparse.csr_array(H), V, PARENTS, **options)


def test_the_true_dictionary_absorbs_nothing():
    V, H = world()
    found = measure(V, H, H, V)
    assert (found.parents, found.edges) == (1, 2)
    assert (found.absorption_rate, found.excess_silence) == (0, 0)
    assert found.leak == pytest.approx(0, abs=1e-12)
    assert found.hedging == pytest.approx(0, abs=1e-12)
    assert (found.splitting, found.duplicates, found.shared) == (1, 0, 0)


def test_full_absorption():
    """The children's neurons hold parent + child, and the parent's neuron fires without children only."""
    V, H = world()
    W = V.copy()
    W[1] = W[1] + W[0] * 0.9  # nearer to the child than to the parent
    W[2] = W[2] + W[0] * 0.9
    codes = H.copy()
    codes[(H[:, 1] + H[:, 2]) > 0, 0] = 0
    found = measure(W, codes, H, V)
    assert found.absorption_rate == 1
    assert found.excess_silence == 1
    assert found.leak == pytest.approx(0.9 / np.hypot(1, 0.9))
    assert found.hedging == pytest.approx(0, abs=1e-12)


def test_one_absorbing_child_of_two():
    V, H = world()
    codes = H.copy()
    codes[H[:, 1] > 0, 0] = 0
    found = measure(V, codes, H, V)
    with_child = (H[:, 1] + H[:, 2]) > 0
    assert found.absorption_rate == pytest.approx((H[:, 1] > 0).sum() / with_child.sum())


def test_ordinary_misses_are_no_excess():
    """A parent's neuron that misses a quarter of everything at random: 95 % of such draws stay within 0.04."""
    V, H = world(N=20_000)
    codes = H.copy()
    codes[np.random.default_rng(1).random(20_000) < 0.25, 0] = 0
    found = measure(V, codes, H, V)
    assert found.excess_silence == pytest.approx(0, abs=0.04)
    assert found.absorption_rate == pytest.approx(0.25, abs=0.03)


def test_hedging_and_a_shared_neuron():
    V, H = world()
    W = V.copy()
    W[0] = W[0] + 0.5 * W[1] + 0.5 * W[2]
    found = measure(W, H, H, V)
    assert found.hedging == pytest.approx(0.5 / np.sqrt(1.5))
    assert found.leak == pytest.approx(0, abs=1e-12)
    one = np.array([V[0] + V[1], V[2], V[3]])
    found = measure(one, H[:, 1:], H, V)
    assert found.shared == 0.5  # features 0 and 1 have one neuron; 0 and 2 two
    assert found.edges == 1


def test_splitting():
    V, H = world()
    W = np.concatenate([V, V[3:], V[3:] + 0.1 * V[:1]])
    codes = np.concatenate([H, H[:, 3:], H[:, 3:]], axis=1)
    found = measure(W, codes, H, V)
    assert found.splitting == pytest.approx(6 / 4)
    assert found.duplicates == pytest.approx(3 / 6)


def test_where_nothing_can_be_said():
    V, H = world()
    nothing = measure(-V, H, H, V)
    assert (nothing.parents, nothing.edges) == (0, 0)
    assert set(nothing.summary().values()) <= {0, None}
    flat = absorption(sparse.csr_array(H), V, sparse.csr_array(H), V, np.full(4, -1))
    assert flat.absorption_rate is None
    assert flat.splitting == 1


def test_bad_requests():
    V, H = world(N=50)
    S = sparse.csr_array(H)
    for parents in (np.array([-1, 0]), np.array([-1, 0, 0, 4]), np.array([0, 0, 0, -1]), np.zeros(4)):
        with pytest.raises(RequestError, match="parents"):
            absorption(S, V, S, V, parents)
    with pytest.raises(RequestError):
        absorption(S, V[:3], S, V, PARENTS)
