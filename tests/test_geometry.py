"""The checker: worked numbers, oracles in plain loops, invariances, chance."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta

import theory.cosines
import theory.geometry
from simulator.errors import RequestError
from theory.geometry import check

ARRAYS = ("feature_cosine", "feature_neuron", "neuron_cosine", "neuron_feature", "neuron_match")
COUNTS = ("neurons_per_feature", "features_per_neuron")


def unit(array):
    return array / np.linalg.norm(array, axis=1, keepdims=True)


@pytest.fixture
def small_blocks(monkeypatch):
    """Force many blocks and gathers, so that small cases walk through the code of the large ones."""
    monkeypatch.setattr(theory.cosines, "BLOCK_BYTES", 4 * 192 * 7)
    monkeypatch.setattr(theory.cosines, "PAIRS_AT_ONCE", 1000)


def test_worked_example():
    # Cosines with e1, e2: (1, 0), (0.6, 0.8), (-1, 0), and a dead neuron.
    V = np.eye(2)
    W = np.array([[2.0, 0.0], [3.0, 4.0], [-1.0, 0.0], [0.0, 0.0]])
    found = check(V, W, thresholds=(0.5, 0.8))
    assert found.feature_cosine.tolist() == [1.0, 0.8]
    assert found.feature_neuron.tolist() == [0, 1]
    assert found.neuron_cosine.tolist() == [1.0, 0.8, 0.0, 0.0]
    assert found.neuron_feature.tolist() == [0, 1, 1, -1]
    assert found.neuron_match.tolist() == [0, 1, 0, 0]  # by |cosine|: -1 counts as 1
    assert found.rate(0.8) == 0.5  # 0.8 is not above 0.8
    assert found.rate(0.79) == 1.0
    # Above 0.5: e1 with neurons 0, 1; e2 with neuron 1. Above 0.8: e1 with neuron 0 only.
    assert found.neurons_per_feature.tolist() == [[2, 1], [1, 0]]
    assert found.features_per_neuron.tolist() == [[1, 2, 0, 0], [1, 0, 0, 0]]
    # Three alive neurons; above 0.5 two of them, one of those with both features.
    assert found.neuron_precision(0.5) == 2 / 3
    assert found.neuron_precision(0.5, exclusive=True) == 1 / 3
    assert found.neuron_precision(0.8) == 1 / 3
    # Distinct matches {0, 1} over 4 neurons; distinct best neurons {0, 1} over 2 features.
    assert found.uniqueness == 0.5 and found.feature_uniqueness == 1.0
    # Best assignment: e1 with neuron 0 (or 2): 1; e2 with neuron 1: 0.8; mean 0.9.
    assert found.mcc is not None and found.mcc.exact
    assert found.mcc.value() == pytest.approx(0.9, abs=1e-12)
    assert found.untrained_rate(0.8) is None and found.summary()["frr_080_untrained"] is None


def brute(V, W, thresholds):
    """All facts by two plain loops."""
    n, M = len(V), len(W)
    cosine = np.zeros((n, M))
    for i in range(n):
        for m in range(M):
            length = math.sqrt(math.fsum(V[i] ** 2)) * math.sqrt(math.fsum(W[m] ** 2))
            cosine[i, m] = round(math.fsum(V[i] * W[m]) / length, 12) if length else -9.0
    alive = W.any(axis=1)
    return {
        "feature_cosine": cosine.max(axis=1),
        "feature_neuron": cosine.argmax(axis=1),
        "neuron_cosine": np.where(alive, cosine.max(axis=0), 0),
        "neuron_feature": np.where(alive, cosine.argmax(axis=0), -1),
        "neuron_match": np.where(alive, np.abs(cosine).argmax(axis=0), 0),
        "neurons_per_feature": np.array([(cosine > tau).sum(axis=1) for tau in thresholds]),
        "features_per_neuron": np.array([(cosine > tau).sum(axis=0) for tau in thresholds]),
    }


@pytest.mark.parametrize("n, M, d", [(1, 1, 1), (5, 3, 2), (23, 140, 6), (140, 23, 6), (70, 70, 3)])
@pytest.mark.parametrize("kind", ["gaussian", "copies", "grid"])
def test_plain_loops_agree(n, M, d, kind, small_blocks, generator):
    V, W = generator.standard_normal((n, d)), generator.standard_normal((M, d))
    if kind == "copies":  # exact ties everywhere, and a dead neuron
        W = V[generator.integers(0, n, M)].copy()
        W[M // 2 :: 5] = 0.0
        if not W.any():
            W[0] = V[0]
    if kind == "grid":  # cosines exactly at thresholds (0.6, 0.8) for d = 2
        V, W = generator.integers(-4, 5, (n, d)) + 0.0, generator.integers(-4, 5, (M, d)) + 0.0
        V[~V.any(axis=1)] = 1.0
        W[0] = 1.0
    thresholds = (-0.5, 0.6, 0.8, 0.9)
    found = check(V, W, thresholds=thresholds, assignment=False)
    truth = brute(V, W, thresholds)
    for name in ("feature_cosine", "neuron_cosine"):
        np.testing.assert_allclose(getattr(found, name), truth[name], atol=2e-12)
    for name in ("feature_neuron", "neuron_feature", "neuron_match", *COUNTS):
        np.testing.assert_array_equal(getattr(found, name), truth[name], err_msg=name)


def test_oracle_scores_one(generator):
    V = generator.standard_normal((40, 7))
    found = check(V, V, W_start=generator.standard_normal((40, 7)))
    assert (found.feature_cosine == 1).all() and (found.feature_neuron == np.arange(40)).all()
    row = found.summary()
    for name in ("frr_080", "frr_090", "neuron_precision_080", "neuron_precision_090", "mcc", "uniqueness"):
        assert row[name] == 1.0, name
    assert row["frr_090_untrained"] == found.untrained_rate(0.9) != 1.0


def test_permuted_and_rescaled_dictionaries_are_the_same(generator):
    V, W = generator.standard_normal((30, 5)), generator.standard_normal((90, 5))
    before = check(V, W)
    order, places = generator.permutation(30), generator.permutation(90)
    lengths, sizes = np.exp(generator.normal(0, 20, (30, 1))), np.exp(generator.normal(0, 20, (90, 1)))
    after = check((V * lengths)[order], (W * sizes)[places], seed=0)
    np.testing.assert_array_equal(after.feature_cosine, before.feature_cosine[order])
    np.testing.assert_array_equal(places[after.feature_neuron], before.feature_neuron[order])
    np.testing.assert_array_equal(after.neurons_per_feature, before.neurons_per_feature[:, order])
    np.testing.assert_array_equal(after.features_per_neuron, before.features_per_neuron[:, places])
    first, second = before.summary(), after.summary()
    for name in first:
        assert first[name] == pytest.approx(second[name], abs=1e-12), name


def test_permuted_and_rescaled_truth_scores_exactly_one(generator):
    V = generator.standard_normal((300, 24))
    order = generator.permutation(300)
    W = V[order] * generator.uniform(1e-3, 1e3, (300, 1))
    found = check(V, W)
    assert (found.feature_cosine == 1).all() and (order[found.feature_neuron] == np.arange(300)).all()
    assert found.rate(0.999999) == 1 and found.mcc is not None and found.mcc.value() == 1


def test_rotation_changes_nothing(generator):
    V, W = generator.standard_normal((30, 8)), generator.standard_normal((50, 8))
    Q = np.linalg.qr(generator.standard_normal((8, 8)))[0]
    before, after = check(V, W, assignment=False), check(V @ Q, W @ Q, assignment=False)
    for name in ARRAYS + COUNTS:
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=1e-10, err_msg=name)
    plain, turned = check(V, W).mcc, check(V @ Q, W @ Q).mcc
    assert plain is not None and turned is not None
    assert turned.lower == pytest.approx(plain.lower, abs=1e-10)


def test_independent_dictionary_scores_the_chance_level(generator):
    # Given V, the MCC F(W) is 1/sqrt(k)-Lipschitz in W (k = min(n, M) pairs) and W is uniform on a product of
    # spheres of curvature d - 2, so P(|F - EF| > t) <= 2 exp(-(d-2) k t^2 / 2); the mean of 8 draws obeys it
    # with 8 k in the place of k. False alarm: 2 bounds of 5e-7 each = 1e-6. Detectable: 0.03 above chance.
    n, M, d = 512, 512, 128
    bound = math.sqrt(2 * math.log(2 / 5e-7) / ((d - 2) * n))
    bound *= 1 + 1 / math.sqrt(8)
    assert bound < 0.03
    V = generator.standard_normal((n, d))
    found = check(V, generator.standard_normal((M, d)))
    assert found.mcc is not None and found.mcc_chance is not None
    assert abs(found.mcc.lower - found.mcc_chance.mean) < bound
    # A union bound over the pairs: P(some cosine > 0.8) <= n M P(Beta(1/2, (d-1)/2) > 0.64) / 2 < 1e-6.
    assert n * M * beta.sf(0.64, 0.5, (d - 1) / 2) / 2 < 1e-6
    assert found.rate(0.8) == 0 and found.neuron_precision(0.8) == 0
    # Power: with 1 in 8 features planted the same statistic leaves the band.
    W = generator.standard_normal((M, d))
    W[:64] = V[:64]
    planted = check(V, W).mcc
    assert planted is not None and planted.lower - found.mcc_chance.mean > bound


def test_near_ties_are_settled_in_float64(small_blocks, generator):
    # Neurons 1e-7 rad apart differ by less than float32 can see (cosines by 1e-9 at an angle of 0.01).
    d = 16
    V = unit(generator.standard_normal((1, d)))
    side = generator.standard_normal(d)
    side = unit((side - side @ V[0] * V[0])[None])[0]
    angles = 0.01 + 1e-7 * generator.permutation(300)
    W = np.cos(angles)[:, None] * V + np.sin(angles)[:, None] * side
    found = check(V, W, assignment=False)
    assert found.feature_neuron[0] == angles.argmin()
    assert found.feature_cosine[0] == pytest.approx(math.cos(angles.min()), abs=1e-12)


def test_counts_at_the_threshold_are_settled_in_float64():
    # Exactly 0.8 = (4, 3) / 5 . (1, 0) is not above 0.8, a hair more is.
    W = np.array([[4.0, 3.0], [4.0 + 1e-9, 3.0], [4.0 - 1e-9, 3.0]])
    found = check(np.array([[1.0, 0.0]]), W, thresholds=(0.8,), assignment=False)
    assert found.features_per_neuron.tolist() == [[0, 1, 0]]


def test_reduced_precision_of_torch_does_not_leak_in(generator):
    V, W = generator.standard_normal((20, 30)), generator.standard_normal((70, 30))
    before = check(V, W, assignment=False)
    torch.set_float32_matmul_precision("medium")
    try:
        after = check(V, W, assignment=False)
    finally:
        torch.set_float32_matmul_precision("highest")
    for name in ARRAYS + COUNTS:
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_dead_neurons_and_a_network_of_them():
    V = np.eye(3)
    dead = check(V, np.zeros((4, 3)))
    assert dead.rate(-0.5) == 1.0 and dead.rate(0.0) == 0.0  # cosine 0 by definition
    assert (dead.feature_neuron == -1).all() and dead.neuron_precision(0.8) == 0
    assert dead.mcc is not None and dead.mcc.value() == 0
    # One live neuron of four, three features: MCC = 1 / 3 over min(3, 4) pairs.
    one = check(V, np.diag([1.0, 0, 0, 0])[:, :3])
    assert one.mcc is not None and one.mcc.value() == pytest.approx(1 / 3, abs=1e-12)
    assert one.neuron_precision(0.9) == 1.0
    # `alive` replaces the default: two neurons counted, one of them at a feature.
    mask = np.array([True, True, False, False])
    assert check(V, np.diag([1.0, 0, 0, 0])[:, :3], alive=mask).neuron_precision(0.9) == 0.5


def test_interval_path_gives_the_exact_value_where_it_closes(monkeypatch, generator):
    V, W = generator.standard_normal((60, 9)), generator.standard_normal((240, 9))
    W[7] = 0
    exact = check(V, W)
    monkeypatch.setattr(theory.geometry, "exact_size", lambda n, M: False)
    for left, right in ((V, W), (W[W.any(axis=1)], V)):
        sparse = check(left, right, chance_draws=1).mcc
        assert sparse is not None and exact.mcc is not None
        assert sparse.lower - 1e-12 <= exact.mcc.lower <= sparse.upper + 1e-12


def test_recovery_by_frequency():
    # Features 0, 1 found, 2, 3 not. Frequencies 0.1, 0.01, 0.01, 0: bins {0}, [0.01, 0.0316), [.., 0.1].
    found = check(np.eye(4), np.eye(4)[:2], frequencies=np.array([0.1, 0.01, 0.01, 0.0]))
    table = found.by_frequency(0.9, bins=2)
    assert [(row.features, row.rate) for row in table] == [(1, 0.0), (2, 0.5), (1, 1.0)]
    assert (table[0].low, table[0].high) == (0.0, 0.0)
    assert table[1].high == pytest.approx(math.sqrt(1e-3))
    edges = found.by_frequency(0.9, bins=np.array([0.0, 0.05, 1.0]))
    assert [(row.features, row.rate) for row in edges] == [(3, 1 / 3), (1, 1.0)]
    constant = check(np.eye(2), np.eye(2), frequencies=np.full(2, 0.3)).by_frequency(0.9)
    assert [(row.low, row.high, row.features) for row in constant] == [(0.3, 0.3, 2)]


def test_untrained_network_stands_beside():
    found = check(np.eye(2), np.eye(2), W_start=np.array([[1.0, 0.0], [1.0, 1.0]]))
    # The start: e1 exactly, e2 at cosine 1/sqrt 2.
    assert found.untrained_rate(0.9) == 0.5 and found.untrained_rate(0.7) == 1.0
    assert found.summary()["frr_090_untrained"] == 0.5


def test_summary_is_plain(generator):
    row = check(generator.standard_normal((6, 4)), generator.standard_normal((9, 4)).astype(np.float32)).summary()
    assert all(type(value) in (float, int, type(None)) for value in row.values())


EYE = np.eye(3)


@pytest.mark.parametrize(
    "V, W, options, words",
    [
        (np.ones(3), EYE, {}, "V has shape (3,)"),
        (EYE, np.ones((2, 4)), {}, "W has 4 columns where 3 are needed"),
        (EYE, np.full((2, 3), np.nan), {}, "W[0, 0] is nan"),
        (np.where(EYE, np.inf, 1.0), EYE, {}, "V[0, 0] is inf"),
        (np.zeros((0, 3)), EYE, {}, "V is empty"),
        (EYE, np.zeros((0, 3)), {}, "W is empty"),
        (EYE * 1j, EYE, {}, "V has dtype complex128"),
        (EYE, np.array([["a", "b", "c"]]), {}, "W has dtype <U1"),
        (np.diag([1.0, 0.0, 1.0]), EYE, {}, "V has 1 zero rows (the first is 1)"),
        (EYE, EYE, {"thresholds": (1.5,)}, "threshold = 1.5"),
        (EYE, EYE, {"W_start": np.ones((2, 3))}, "W_start has 2 rows where 3 are needed"),
        (EYE, EYE, {"frequencies": np.ones(2)}, "frequencies has shape (2,)"),
        (EYE, EYE, {"frequencies": -np.ones(3)}, "a frequency is not negative"),
        (EYE, EYE, {"alive": np.ones(3)}, "3,) booleans are needed"),
        (EYE, EYE, {"chance_draws": 0}, "chance_draws = 0"),
    ],
)
def test_impossible_requests(V, W, options, words):
    with pytest.raises(RequestError) as error:
        check(V, W, **options)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_impossible_questions():
    found = check(EYE, EYE)
    for ask in (
        lambda: found.rate(2.0),
        lambda: found.neuron_precision(0.85, exclusive=True),
        lambda: found.by_frequency(0.9),
        lambda: check(EYE, EYE, frequencies=np.ones(3)).by_frequency(0.9, bins=0),
    ):
        with pytest.raises(RequestError):
            ask()
