"""The benchmark's scores and ours: numbers by hand, edges of the definitions, chance levels against closed forms and
draws. Agreement with the real SAELens: test_benchmark_peer.py."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from simulator.errors import RequestError
from theory.benchmark import benchmark_scores, chance_cosine, chance_rate, feature_scores
from theory.codes import code_metrics
from theory.geometry import check

V = np.eye(3)
W = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.6, 0.0, 0.8], [0.0, 0.0, 2.0]])
H = sparse.csr_array([[1.0, 0, 0], [0, 2.0, 0], [1.0, 1.0, 0], [0, 0, 0], [0, 0, 3.0]])
CODES = sparse.csr_array([[1.0, 0, 0, 0], [0.5, -2.0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 0], [0, 0, 1.0, 0]])


def scores(codes=CODES, X=None, truth=H, **more):
    return benchmark_scores(codes, 1.0, W, np.zeros(3), truth.toarray() if X is None else X, truth, V, **more)


def test_worked_example():
    found = scores()
    # |cosines| of the assignment: 1, 1 and 1 (neuron 3); matches 0, 1, 2, 2: three features, four neurons.
    assert (found.mcc, found.mcc_gap, found.uniqueness) == (pytest.approx(1), 0, 0.75)
    # Neuron 0 fires on rows 0, 1; feature 0 is there on rows 0, 2. Neuron 1 fires where feature 1 is, neuron 2 where
    # feature 2 is, neuron 3 never, its feature on row 4.
    assert found.precision == pytest.approx((0.5 + 1 + 1 + 0) / 4)
    assert found.recall == pytest.approx((0.5 + 1 + 1 + 0) / 4)
    assert found.f1 == pytest.approx((0.5 + 1 + 1 + 0) / 4)
    # Right answers: neuron 0 on rows 0, 3, 4; neurons 1 and 2 everywhere; neuron 3 on all but row 4.
    assert found.accuracy == pytest.approx((3 + 5 + 5 + 4) / 20)
    assert (found.l0, found.true_l0, found.dead_latents) == (1.0, 1.0, 1)
    # x_hat: (1,0,0), (.5,2,0), (0,1,0), 0, (.6,0,.8). Squared errors 0, .25, 1, 0, .36 + 4.84 = 6.45; sum ||x||^2 = 16,
    # mean x = (.4, .6, .6), so that 5 ||mean||^2 = 4.4.
    assert found.explained_variance == pytest.approx(1 - 6.45 / 11.6)
    assert found.shrinkage == pytest.approx((1 + np.sqrt(4.25) / 2 + 1 / np.sqrt(2) + 1 / 3) / 4)


def test_precision_and_recall_are_not_swapped():
    # Neuron 0 fires on all five samples, its feature is there on two.
    always = sparse.csr_array(np.array([[1.0, 0, 0, 0]] * 5))
    found = scores(always)
    assert found.precision == pytest.approx(2 / 5 / 4) and found.recall == pytest.approx(1 / 4)
    assert found.f1 == pytest.approx(4 / 7 / 4)
    assert found.accuracy == pytest.approx((2 + 3 + 4 + 4) / 20) and found.dead_latents == 3


def test_what_is_given_is_used_and_equal():
    X, recovery = H.toarray(), check(V, W)
    judged = code_metrics(CODES, 1.0, W, np.zeros(3), X, H, recovery)
    assert scores(recovery=recovery, codes_judged=judged) == scores()
    assert scores(recovery=check(V, W, assignment=False)) == scores()
    marked = scores(recovery=recovery, codes_judged=replace(judged, shrinkage=0.123))
    assert marked.shrinkage == 0.123
    row = scores().summary()
    assert row["benchmark_f1"] == 0.625 and row["benchmark_dead_latents"] == 1.0 and len(row) == 12
    assert all(type(value) is float for value in row.values())


def test_negative_coefficients_are_no_occurrences():
    signed = sparse.csr_array(H.toarray() * np.array([[1], [-1], [1], [1], [1]]))
    found = scores(truth=signed)
    # Neuron 1 fires on rows 1, 2, its feature is there on row 2 only; the true L0 counts both.
    assert found.precision == pytest.approx((0.5 + 0.5 + 1) / 4) and found.recall == pytest.approx((0.5 + 1 + 1) / 4)
    assert found.true_l0 == 1.0


def test_inputs_without_variance():
    X = np.ones((5, 3))
    none = sparse.csr_array((5, 4))
    perfect = benchmark_scores(none, 1.0, W, np.ones(3), X, H, V)
    wrong = benchmark_scores(none, 1.0, W, np.zeros(3), X, H, V)
    assert (perfect.explained_variance, wrong.explained_variance) == (1.0, 0.0)
    assert (perfect.shrinkage, wrong.shrinkage) == (pytest.approx(1), 0.0)
    # A variance of 3e-12, missed by less than 1e-10: nothing to explain.
    nearly = X + 1e-6 * np.arange(-2, 3)[:, None] / np.sqrt(2)
    assert benchmark_scores(none, 1.0, W, np.ones(3), nearly, H, V).explained_variance == 1.0


def test_short_inputs_have_no_shrinkage():
    X = H.toarray() * np.array([[1], [1e-7], [1], [1], [1]])
    found = scores(X=X)
    assert found.shrinkage == pytest.approx((1 + 1 / np.sqrt(2) + 1 / 3) / 3)


def test_arrays_of_different_networks():
    recovery = check(V, W)
    judged = code_metrics(CODES, 1.0, W, np.zeros(3), H.toarray(), H, recovery)
    with pytest.raises(RequestError, match="4 neurons and 3 features, the recovery 2 and 3"):
        feature_scores(check(V, W[:2]), judged)
    half = code_metrics(CODES[:3], 1.0, W, np.zeros(3), H.toarray()[:3], H[:3], recovery)
    with pytest.raises(RequestError, match="3 samples where X has 5"):
        scores(recovery=recovery, codes_judged=half)
    for wrong, text in (({"bins": 0}, "bins = 0"), ({"frequencies": np.array([0.1, -1.0, 0])}, "not negative")):
        with pytest.raises(RequestError, match=text):
            feature_scores(recovery, judged, **wrong)


def test_every_feature_counts():
    recovery = check(V, W)
    judged = code_metrics(CODES, 1.0, W, np.zeros(3), H.toarray(), H, recovery)
    found = feature_scores(recovery, judged, bins=2)
    # Best signed cosines: 1 (neuron 0); 0 (all others are orthogonal or opposite; the lowest index is 0); 1 (neuron 3).
    assert (found.frr_080, found.frr_090, found.cosine) == (pytest.approx(2 / 3),) * 3
    # F1: neuron 0 for feature 0: 1/2; neuron 0 for feature 1 (rows 1, 2; fires 0, 1): 1/2; neuron 3 is dead: 0.
    assert found.f1 == pytest.approx(1 / 3)
    # By chance: p = q = 2/5, twice; the dead one 0.
    assert found.f1_chance == pytest.approx((0.4 + 0.4 + 0) / 3)
    assert found.mcc_chance == recovery.mcc_chance.mean
    assert feature_scores(check(V, W, assignment=False), judged).mcc_chance is None
    rare, frequent = found.by_frequency
    assert rare == {"low": 0.2, "high": 0.2, "features": 1, "frr_090": 1.0, "f1": 0.0, "cosine": 1.0}
    assert frequent == {"low": 0.4, "high": 0.4, "features": 2, "frr_090": 0.5, "f1": 0.5, "cosine": 0.5}
    row = found.summary()
    assert row["feature_frr_090"] == pytest.approx(2 / 3) and "feature_by_frequency" not in row and len(row) == 9
    json.dumps(row, allow_nan=False)


def test_quartiles(generator):
    n = 103
    features = generator.standard_normal((n, 20))
    truth = sparse.csr_array(generator.random((50, n)) < 0.2).astype(float)
    recovery = check(features, features[:60])
    judged = code_metrics(truth[:, :60], 1.0, features[:60], np.zeros(20), truth @ features, truth, recovery)
    p = generator.permutation(n) + 1.0
    table = feature_scores(recovery, judged, frequencies=p).by_frequency
    assert sorted(row["features"] for row in table) == [25, 26, 26, 26]
    assert [row["low"] for row in table[1:]] == [row["high"] + 1 for row in table[:-1]]
    for row in table:
        inside = (p >= row["low"]) & (p <= row["high"])
        assert row["frr_090"] == np.mean(inside[:60].sum() / inside.sum())
        assert row["cosine"] == pytest.approx(recovery.feature_cosine[inside].mean())
        assert row["f1"] == pytest.approx(judged.features.f1[inside].mean())
    (all_equal,) = feature_scores(recovery, judged, frequencies=np.full(n, 0.1)).by_frequency
    assert all_equal["features"] == n


def test_nobody_there():
    recovery = check(V, np.zeros((2, 3)))
    judged = code_metrics(sparse.csr_array((5, 2)), 1.0, np.zeros((2, 3)), np.zeros(3), H.toarray(), H, recovery)
    found = feature_scores(recovery, judged)
    assert (found.frr_080, found.cosine, found.f1, found.f1_chance) == (0, 0, 0, 0)


def test_chance_in_closed_form():
    # d = 3: the cosine is uniform on [-1, 1]; the largest of M has mean (M - 1) / (M + 1).
    for M in (1, 2, 7, 1000):
        assert chance_cosine(M, 3) == pytest.approx((M - 1) / (M + 1), abs=1e-6)
        assert chance_rate(0.8, M, 3) == pytest.approx(1 - 0.9**M)
    # d = 2: P(cosine > t) = arccos(t) / pi; of two: mean 4 / pi^2. d = 1: signs.
    assert chance_rate(0.8, 5, 2) == pytest.approx(1 - (1 - np.arccos(0.8) / np.pi) ** 5)
    assert chance_cosine(2, 2) == pytest.approx(4 / np.pi**2, abs=1e-6)
    assert (chance_cosine(3, 1), chance_rate(0.8, 3, 1)) == (0.75, pytest.approx(0.875))
    assert chance_rate(-0.5, 1, 3) == pytest.approx(0.75)
    # Small probabilities are not lost: 4,096 p at d = 100, where 1 - p rounds to 1.
    tiny = chance_rate(0.8, 4096, 100)
    assert tiny == pytest.approx(2 * chance_rate(0.8, 2048, 100), rel=1e-12) and 0 < tiny < 1e-16


@pytest.mark.parametrize(("n", "M", "d"), [(300, 50, 8), (200, 400, 32)])
def test_chance_levels_of_random_dictionaries(n, M, d, generator):
    # 40 dictionaries; the mean over all is within 5 standard errors of the law (false alarm 6e-7 each), where a
    # dictionary's features are dependent and so only the 40 means are used.
    features = generator.standard_normal((n, d))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    rates, cosines = [], []
    for _ in range(40):
        neurons = generator.standard_normal((M, d))
        best = (features @ (neurons / np.linalg.norm(neurons, axis=1, keepdims=True)).T).max(axis=1)
        rates.append((best > 0.5).mean())
        cosines.append(best.mean())
    for drawn, law in ((rates, chance_rate(0.5, M, d)), (cosines, chance_cosine(M, d))):
        error = np.std(drawn, ddof=1) / np.sqrt(40)
        assert error < 0.01 and abs(np.mean(drawn) - law) < 5 * error
