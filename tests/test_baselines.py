"""Reference rows: what must be reached exactly, what must not, and that all rows look alike."""

from typing import Any

import numpy as np
import pytest
from scipy import sparse

import theory.baselines
from simulator.errors import RequestError
from theory.baselines import REFERENCES, fit_threshold, reference_rows, spherical_kmeans
from theory.geometry import check


def number(value) -> float:
    assert isinstance(value, (int, float))
    return value


def planted(generator, n, d, N, s, orthonormal=False):
    V = generator.standard_normal((n, d))
    if orthonormal:
        V = np.linalg.qr(V.T)[0].T
    support = np.argsort(generator.random((N, n)), axis=1)[:, :s]
    H = sparse.csr_array((np.ones(N * s), (np.repeat(np.arange(N), s), support.ravel())), shape=(N, n))
    X = H @ V
    return V, X / np.linalg.norm(X, axis=1, keepdims=True)


def test_orthonormal_truth_is_read_off_exactly(generator):
    # w.x is 1/sqrt 3 on the support and 0 off it: one threshold separates them, both encoders lose nothing.
    V, X = planted(generator, 20, 20, 600, 3, orthonormal=True)
    rows = reference_rows(V, X, 40, names=["true dictionary, threshold", "true dictionary, NNLS"])
    for row in rows:
        assert row["frr_090"] == row["mcc"] == row["neuron_precision_090"] == 1.0
        assert row["loss"] == pytest.approx(0, abs=1e-6)
        assert row["mean_l0"] == pytest.approx(3) and row["dead"] == 0


def test_all_rows_have_the_same_columns_and_the_untrained_rate(generator):
    V, X = planted(generator, 30, 12, 800, 2)
    W_start = generator.standard_normal((50, 12))
    rows = reference_rows(V, X, 50, W_start=W_start, seed=5)
    assert [row["name"] for row in rows] == list(REFERENCES)
    columns = set(check(V, W_start).summary()) | {"name", "loss", "mean_l0", "dead", "note"}
    untrained = check(V, W_start, assignment=False).rate(0.9)
    for row in rows:
        assert set(row) == columns
        assert row["frr_090_untrained"] == untrained
        assert -1e-9 <= number(row["loss"]) < 1
    by_name = {row["name"]: row for row in rows}
    truth, chance = by_name["true dictionary, threshold"], by_name["random dictionary"]
    assert number(truth["loss"]) < number(chance["loss"]) and truth["frr_090"] == 1
    assert rows == reference_rows(V, X, 50, W_start=W_start, seed=5)


def test_single_features_are_found_by_points_and_clusters(generator):
    # s = 1: every sample is a feature, so data points and cluster centres point at features.
    V, X = planted(generator, 10, 8, 400, 1)
    points, clusters = reference_rows(V, X, 60, names=["random data points", "k-means"])
    assert points["neuron_precision_090"] == 1.0 and clusters["neuron_precision_090"] == 1.0
    assert points["frr_090"] == 1.0 and clusters["frr_090"] == 1.0


def test_threshold_fit_is_the_best_of_its_grid(generator):
    # Worked: rows e1, e2; x = (1, 0.1) and (0.1, 1). Keeping only the large one gives r = large entry,
    # keeping both gives x itself and loss 0: the threshold must lie below 0.1 and the scale be 1.
    X = np.array([[1.0, 0.1], [0.1, 1.0]] * 20)
    fit = fit_threshold(np.eye(2), X)
    assert fit.theta < 0.1 and fit.scale == pytest.approx(1, abs=1e-6)


def test_nnls_is_skipped_with_a_reason_where_it_is_too_large(monkeypatch, generator):
    monkeypatch.setattr(theory.baselines, "NNLS_ENTRIES", 10)
    V, X = planted(generator, 6, 4, 20, 2)
    row = reference_rows(V, X, 6, names=["true dictionary, NNLS"])[0]
    assert row["loss"] is None and "skipped" in str(row["note"])


def test_kmeans_objective_and_shape(generator):
    X = generator.standard_normal((200, 6))
    centres, note = spherical_kmeans(X, 12, seed=1)
    assert centres.shape == (12, 6) and "200 samples" in note
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-6)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    start = theory.baselines._draw_points(X, 12, 1)
    assert (unit @ centres.T).max(axis=1).mean() > (unit @ start.T).max(axis=1).mean()
    fewer, _ = spherical_kmeans(X[:5], 12, seed=1)
    assert fewer.shape == (5, 6)


def test_impossible_requests(generator):
    V, X = planted(generator, 6, 4, 20, 2)
    zeros = np.vstack([np.zeros((10, 4)), X[:10]])
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"names": ["best"]}, "unknown reference 'best'"),
        ({"M": 0}, "M = 0"),
        ({"X": X[:1]}, "1 samples"),
        ({"X": X[:, :3]}, "X has 3 columns where 4"),
        ({"X": zeros}, "first half of X is all zeros"),
        ({"W_start": np.ones((3, 4))}, "W_start has 3 rows"),
    )
    for given, words in cases:
        with pytest.raises(RequestError) as error:
            reference_rows(**({"V": V, "X": X, "M": 5} | given))
        assert words in str(error.value) and "\n" not in str(error.value)
