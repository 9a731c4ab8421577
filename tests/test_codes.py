"""Code metrics: worked numbers, plain loops, blocks, the rescaling to unit inputs."""

import numpy as np
import pytest
from scipy import sparse

import theory.codes
from simulator.errors import RequestError
from theory.codes import code_metrics, normalised
from theory.geometry import check


def test_worked_example():
    # d = 2, V = I. Neurons: e1, e2, and e1 again; neuron 2 never fires. H: rows (1,0), (0,2), (1,1), (0,0).
    V, W = np.eye(2), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    H = sparse.csr_array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    X = H.toarray() @ V
    codes = sparse.csr_array([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    found = code_metrics(codes, 1.0, W, np.zeros(2), X, H, check(V, W, assignment=False), V=V)
    # Neuron 0 fires on rows 0, 1; its feature is there on rows 0, 2: 1 hit, precision = recall = F1 = 1/2.
    # Neuron 1 fires on rows 1, 2 = its feature's rows. Neuron 2 is dead: all 0.
    np.testing.assert_array_equal(found.neurons.frequency, [0.5, 0.5, 0.0])
    np.testing.assert_array_equal(found.neurons.precision, [0.5, 1.0, 0.0])
    np.testing.assert_array_equal(found.neurons.recall, [0.5, 1.0, 0.0])
    np.testing.assert_array_equal(found.neurons.f1, [0.5, 1.0, 0.0])
    np.testing.assert_array_equal(found.features.f1, [0.5, 1.0])
    np.testing.assert_array_equal(found.features.frequency, [0.5, 0.5])
    assert (found.dead, found.mean_l0, found.true_l0) == (1, 1.0, 1.0)
    # x_hat - x: (0,0), (0.5,0), (-1,0), (0,0): 1.25; sum ||x||^2 = 1 + 4 + 2 = 7. Column means 0.5, 0.75:
    # sum ||x - mean||^2 = 7 - 4 (0.25 + 0.5625) = 3.75.
    assert found.loss == pytest.approx(1.25 / 7)
    assert found.explained_variance == pytest.approx(1 - 1.25 / 3.75)
    # ||x_hat|| / ||x|| on the three non-zero rows: 1, sqrt(4.25) / 2, 1 / sqrt 2.
    assert found.shrinkage == pytest.approx((1 + np.sqrt(4.25) / 2 + 1 / np.sqrt(2)) / 3)
    # Feature 0: wanted 1, 1, got 1, 0: sqrt(1 / 2). Feature 1: exact.
    assert found.coefficient_error is not None
    np.testing.assert_allclose(found.coefficient_error, [np.sqrt(0.5), 0.0])
    row = found.summary()
    assert row["detection_f1_neuron"] == 0.5 and row["detection_f1_feature"] == 0.75


def random_case(generator, N=60, n=9, M=14, d=5):
    V, W = generator.standard_normal((n, d)), generator.standard_normal((M, d))
    H = sparse.csr_array(generator.random((N, n)) * (generator.random((N, n)) < 0.3))
    codes = sparse.csr_array(generator.standard_normal((N, M)) * (generator.random((N, M)) < 0.2))
    X = H @ V
    return V, W, H, codes, X, generator.random(M), 0.1 * generator.standard_normal(d)


@pytest.mark.parametrize("block", [1, 17, 1 << 21])
def test_plain_loops_agree(block, monkeypatch, generator):
    monkeypatch.setattr(theory.codes, "BLOCK_ENTRIES", block)
    V, W, H, codes, X, a, b_pre = random_case(generator)
    recovery = check(V, W, assignment=False)
    found = code_metrics(codes, a, W, b_pre, X, H, recovery, V=V)
    phi, truth = codes.toarray(), H.toarray()

    def scores(fires, there):
        hits = sum(1 for f, t in zip(fires, there, strict=True) if f and t)
        precision = hits / fires.sum() if fires.any() else 0.0
        recall = hits / there.sum() if there.any() else 0.0
        return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0

    for m in range(len(W)):
        expected = scores(phi[:, m] != 0, truth[:, recovery.neuron_match[m]] != 0)
        got = found.neurons.precision[m], found.neurons.recall[m], found.neurons.f1[m]
        assert got == pytest.approx(expected, abs=1e-12)
        assert found.neurons.frequency[m] == (phi[:, m] != 0).mean()
    assert found.coefficient_error is not None
    for i in range(len(V)):
        m = recovery.feature_neuron[i]
        expected = scores(phi[:, m] != 0, truth[:, i] != 0)
        got = found.features.precision[i], found.features.recall[i], found.features.f1[i]
        assert got == pytest.approx(expected, abs=1e-12)
        c = a[m] * phi[:, m] * np.linalg.norm(W[m]) / np.linalg.norm(V[i])
        there = truth[:, i] != 0
        error = np.sqrt(((c - truth[:, i])[there] ** 2).sum() / (truth[there, i] ** 2).sum())
        assert found.coefficient_error[i] == pytest.approx(error, abs=1e-12)
    x_hat = (phi * a) @ W + b_pre
    assert found.loss == pytest.approx(((x_hat - X) ** 2).sum() / (X**2).sum(), abs=1e-12)
    some = np.linalg.norm(X, axis=1) > 0
    ratio = np.linalg.norm(x_hat[some], axis=1) / np.linalg.norm(X[some], axis=1)
    assert found.shrinkage == pytest.approx(ratio.mean(), abs=1e-12)
    spread = ((X - X.mean(axis=0)) ** 2).sum()
    assert found.explained_variance == pytest.approx(1 - ((x_hat - X) ** 2).sum() / spread, abs=1e-12)


def test_oracle_codes_are_perfect(generator):
    V, _, H, _, X, _, _ = random_case(generator)
    found = code_metrics(H, 1.0, V, np.zeros(5), X, H, check(V, V, assignment=False), V=V)
    assert found.loss < 1e-24 and found.shrinkage == pytest.approx(1)
    assert (found.neurons.f1 == 1).all() and (found.features.f1 == 1).all() and found.dead == 0
    assert found.coefficient_error is not None and (found.coefficient_error < 1e-12).all()


def test_unsorted_codes_with_stored_zeros_are_the_same(generator):
    V, W, H, codes, X, a, b_pre = random_case(generator)
    messy = sparse.csr_array(codes)
    messy.data = messy.data.copy()
    for row in range(60):
        part = slice(messy.indptr[row], messy.indptr[row + 1])
        messy.indices[part] = messy.indices[part][::-1].copy()
        messy.data[part] = messy.data[part][::-1].copy()
    messy.data[5] = 0.0  # stored, but no activity
    messy = sparse.csr_array((messy.data, messy.indices, messy.indptr), shape=(60, 14))
    recovery = check(V, W, assignment=False)
    clean = sparse.csr_array(messy.toarray())
    kept = messy.indices.copy()
    first = code_metrics(messy, a, W, b_pre, X, H, recovery).summary()
    assert first == code_metrics(clean, a, W, b_pre, X, H, recovery).summary()
    np.testing.assert_array_equal(messy.indices, kept)  # the caller's matrix is not touched


def test_normalised_keeps_the_model(generator):
    V, _, H, _, X, _, _ = random_case(generator)
    X[0] = 0
    H = H.tolil()
    H[0] = 0
    unit, scaled = normalised(X, sparse.csr_array(H))
    np.testing.assert_allclose(scaled @ V, unit, atol=1e-12)
    length = np.linalg.norm(unit, axis=1)
    np.testing.assert_allclose(length, np.where(X.any(axis=1), 1.0, 0.0))


def test_dead_network(generator):
    V, _, H, _, X, _, _ = random_case(generator)
    W = np.zeros((4, 5))
    silent = sparse.csr_array((60, 4))
    found = code_metrics(silent, 1.0, W, np.zeros(5), X, H, check(V, W, assignment=False), V=V)
    assert (found.dead, found.mean_l0, found.loss, found.shrinkage) == (4, 0.0, 1.0, 0.0)
    assert (found.features.f1 == 0).all()
    assert found.coefficient_error is not None and (found.coefficient_error == 1).all()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"codes": sparse.csr_array((59, 14))}, "codes has 59 rows where 60"),
        ({"H": sparse.csr_array((60, 8))}, "H has 8 columns where 9"),
        ({"a": np.ones(3)}, "a has shape (3,)"),
        ({"b_pre": np.full(5, np.nan)}, "b_pre holds NaN"),
        ({"X": np.zeros((60, 5))}, "all zeros"),
        ({"W": np.ones((2, 5))}, "W has 2 rows where 14"),
    ],
)
def test_impossible_requests(change, words, generator):
    V, W, H, codes, X, a, b_pre = random_case(generator)
    given = {"codes": codes, "a": a, "W": W, "b_pre": b_pre, "X": X, "H": H} | change
    with pytest.raises(RequestError) as error:
        code_metrics(**given, recovery=check(V, W, assignment=False))
    assert words in str(error.value) and "\n" not in str(error.value)
