"""Absorption, hedging and splitting: constructed networks where the answer is known, and plain loops."""

import json

import numpy as np
import pytest
from scipy import sparse

from simulator.errors import RequestError
from simulator.hierarchy import trees
from theory.absorption import absorption
from theory.geometry import check

# One parent (0) with children 1 and 2, and feature 3 on its own, orthogonal. Samples: the parent alone (twice), with
# 1, with 2, with both, and 3 alone.
V = np.eye(4)
PARENTS = np.array([-1, 0, 0, -1])
H = sparse.csr_array(
    [[1.0, 0, 0, 0], [2.0, 0, 0, 0], [1.0, 3.0, 0, 0], [1.0, 0, 1.0, 0], [1.0, 1.0, 1.0, 0], [0, 0, 0, 1.0]]
)


def measured(codes, W, features=V, truth=H, parents=PARENTS, **more):
    return absorption(
        sparse.csr_array(codes), W, truth, features, parents, check(features, W, assignment=False), **more
    )


def absorbed():
    """Rows of the children hold the parent too; the parent's neuron is silent when a child is there."""
    W = np.array([[1.0, 0, 0, 0], [1.0, 1.0, 0, 0], [1.0, 0, 1.0, 0], [0, 0, 0, 1.0]])
    codes = H.toarray()
    codes[2:5, 0] = 0.0
    return codes, W


def test_perfect_dictionary():
    found = measured(H.toarray(), V)
    assert found.summary() == {
        "absorption_rate": 0.0,
        "absorption_silence_with_child": 0.0,
        "absorption_silence_without_child": 0.0,
        "absorption_excess_silence": 0.0,
        "absorption_leak": 0.0,
        "absorption_hedging": 0.0,
        "absorption_shared": 0.0,
        "absorption_parents": 1,
        "absorption_parents_with_neuron": 1,
        "splitting": 1.0,
        "duplicates": 0.0,
    }
    # Lengths of rows and the size of the codes play no part; what is not defined is NaN.
    scaled = measured(-7 * H.toarray(), 3 * V)
    assert scaled.summary() == found.summary()
    np.testing.assert_array_equal(found.rate, [0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(found.leak, [np.nan, 0, 0, np.nan])


def test_full_absorption():
    row = measured(*absorbed()).summary()
    assert row["absorption_rate"] == row["absorption_silence_with_child"] == row["absorption_excess_silence"] == 1.0
    assert row["absorption_silence_without_child"] == 0.0
    assert row["absorption_leak"] == pytest.approx(1 / np.sqrt(2), abs=1e-12) and row["absorption_hedging"] == 0.0
    # Parent and child are equally near to the child's row: the tie goes to the parent, which has three neurons so.
    assert row["splitting"] == 2.0 and row["duplicates"] == 0.5


def test_partial_absorption():
    codes, W = absorbed()
    codes[3, 0] = 1.0  # heard with child 2 alone
    codes[1, 0] = 0.0  # silent once without a child
    row = measured(codes, W).summary()
    assert row["absorption_rate"] == row["absorption_silence_with_child"] == pytest.approx(2 / 3)
    assert row["absorption_silence_without_child"] == 0.5
    assert row["absorption_excess_silence"] == pytest.approx(1 / 6)


def test_silence_is_not_absorption_unless_the_child_answers():
    codes, W = absorbed()
    codes[2, 1] = 0.0  # nobody speaks for the parent with child 1; with both, child 2 still does
    codes[4, 1] = 0.0
    codes[0, 1] = 1.0  # alive
    found = measured(codes, W).summary()
    assert found["absorption_rate"] == pytest.approx(2 / 3) and found["absorption_silence_with_child"] == 1.0
    codes[2, 2] = 1.0  # the neuron of a child that is absent does not count
    assert measured(codes, W).summary()["absorption_rate"] == pytest.approx(2 / 3)


def test_leak_and_hedging_of_oblique_features():
    # cos(v_0, v_1) = 0.6. The child's row leans towards the parent (cosine 0.8), the parent's away from the child.
    features = np.array([[1.0, 0, 0], [0.6, 0.8, 0]])
    W = np.array([[0.8, 0.0, 0.6], [0.8, 0.6, 0.0]])
    truth = sparse.csr_array([[1.0, 1.0], [1.0, 0.0]])
    found = measured(truth.toarray(), W, features, truth, np.array([-1, 0]), tau=0.7)
    # Parent: cosines 0.8 with both rows, the first wins. Child: 0.48 and 0.96.
    assert found.leak[1] == pytest.approx(0.8 - 0.6) and found.hedging[1] == pytest.approx(0.48 - 0.6)
    assert np.isnan(found.leak[0]) and np.isnan(found.hedging[0])
    assert found.summary()["absorption_leak"] == pytest.approx(0.2)


def test_one_neuron_for_parent_and_child_is_hedging_not_absorption():
    W = np.array([[1.0, 0.5, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]])
    codes = np.array([[1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0], [1.0, 1.0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    found = measured(codes, W, tau=0.4)
    np.testing.assert_array_equal(found.shared, [np.nan, 1, 0, np.nan])
    np.testing.assert_allclose(found.leak, [np.nan, np.nan, 0, np.nan])
    np.testing.assert_allclose(found.hedging, [np.nan, 1 / np.sqrt(5), 0, np.nan])
    # Silent on sample 4 of 2, 3, 4, where child 2's neuron fires.
    assert found.rate[0] == pytest.approx(1 / 3)
    # At 0.5 the child has no neuron; what was mixed into the parent's is still seen.
    above = measured(codes, W)
    assert np.isnan(above.shared[1]) and above.hedging[1] == pytest.approx(1 / np.sqrt(5))


def test_splitting_counts_alive_neurons():
    W = np.vstack([V, V[3], V[3], [1.0, 1.0, 1.0, 1.2]])
    codes = np.hstack([H.toarray(), np.zeros((6, 3))])
    codes[5, 4] = codes[0, 6] = 1.0
    row = measured(codes, W).summary()
    # Feature 3: neurons 3, 4 and, at cosine 0.57, 6; neuron 5 is dead. Four features, six neurons alive.
    assert row["splitting"] == pytest.approx(6 / 4) and row["duplicates"] == pytest.approx(2 / 6)
    assert measured(codes, W, tau=0.6).summary()["duplicates"] == pytest.approx(1 / 6)


def test_undefined_is_none():
    def undefined(row):
        json.dumps(row, allow_nan=False)
        return {name for name, value in row.items() if value is None}

    about_parents = {"rate", "silence_with_child", "silence_without_child", "excess_silence", "hedging", "shared"}
    about_parents = {f"absorption_{name}" for name in about_parents}
    # The parent's direction is in nobody's row; its neuron is dead; there is no parent; there are no neurons.
    codes, W = H.toarray(), V.copy()
    W[0] = [-1.0, 0, 0, 0]
    assert undefined(measured(codes, W).summary()) == about_parents
    codes[:, 0] = 0.0
    assert undefined(measured(codes, V).summary()) == about_parents
    no_tree = measured(H.toarray(), V, parents=np.full(4, -1)).summary()
    assert undefined(no_tree) == about_parents | {"absorption_leak"} and no_tree["absorption_parents"] == 0
    nobody = measured(np.zeros((6, 4)), np.zeros((4, 4))).summary()
    assert undefined(nobody) == about_parents | {"absorption_leak", "splitting", "duplicates"}
    # Never with a child: one silence is defined.
    childless = measured(H.toarray()[:2], V, truth=H[:2]).summary()
    assert childless["absorption_silence_without_child"] == 0.0 and childless["absorption_rate"] is None


@pytest.mark.parametrize("seed", [0, 1])
def test_plain_loops_agree(seed):
    generator = np.random.default_rng(seed)
    parents = trees(30, 2, 3, 2).parents.copy()
    n, M, d, N, tau = 30, 40, 15, 400, 0.3
    features, W = generator.standard_normal((n, d)), generator.standard_normal((M, d))
    W[:20] += features[generator.integers(0, n, 20)]
    truth = generator.random((N, n)) * (generator.random((N, n)) < 0.3)
    codes = generator.standard_normal((N, M)) * (generator.random((N, M)) < 0.4)
    codes[:, ::7] = 0.0
    found = measured(codes, W, features, sparse.csr_array(truth), parents, tau=tau)
    cosines = (features @ W.T) / np.outer(np.linalg.norm(features, axis=1), np.linalg.norm(W, axis=1))
    best = cosines.argmax(axis=1)
    has = [cosines[i, best[i]] > tau and codes[:, best[i]].any() for i in range(n)]
    np.testing.assert_array_equal(found.has_neuron, has)
    assert 5 < sum(has) < n
    for i in range(n):
        children = [j for j in range(n) if parents[j] == i]
        if not children or not has[i]:
            assert np.isnan(found.rate[i])
            continue
        silent_with, silent_without, taken = [], [], []
        for x, phi in zip(truth, codes, strict=True):
            if x[i] == 0:
                continue
            silent = phi[best[i]] == 0
            if any(x[j] for j in children):
                silent_with.append(silent)
                taken.append(silent and any(x[j] and has[j] and phi[best[j]] for j in children))
            else:
                silent_without.append(silent)
        assert found.rate[i] == pytest.approx(np.mean(taken))
        assert found.silence_with_child[i] == pytest.approx(np.mean(silent_with))
        assert found.silence_without_child[i] == pytest.approx(np.mean(silent_without))


def test_refusals():
    for parents, text in (
        ([-1, 0, 0, 4], r"parents\[3\] = 4; another feature 0 to 3"),
        ([0, 0, 0, -1], r"parents\[0\] = 0"),
        ([-2, 0, 0, -1], r"parents\[0\] = -2"),
        ([-1, 0.5, 0, -1], r"parents\[1\] = 0.5"),
        ([-1, 0], "shape"),
    ):
        with pytest.raises(RequestError, match=text):
            measured(H.toarray(), V, parents=np.array(parents))
    with pytest.raises(RequestError, match="tau = 2"):
        measured(H.toarray(), V, tau=2.0)
    with pytest.raises(RequestError, match="rows"):
        measured(H.toarray()[:3], V)
    with pytest.raises(RequestError, match="3 rows, the recovery 4 features"):
        absorption(sparse.csr_array(H), V, H, V[:3], PARENTS, check(V, V, assignment=False))
