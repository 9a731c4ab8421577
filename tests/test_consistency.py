"""MCS, its chance level and the choice of top neurons; and the observers of alignment."""

import numpy as np
import pytest

from simulator import BA, Exactly, RequestError, Training, World, fit
from simulator.training import start_directions
from theory.alignment import follow, initial_rank
from theory.consistency import FEWEST, chance_median, chance_share, max_cosines, top_neurons


def test_mcs_by_hand():
    W = np.array([[1.0, 0], [0, 2], [0, 0], [-1, 0]])
    other = np.array([[3.0, 3], [0, 0], [0, 5]])
    np.testing.assert_allclose(max_cosines(W, other), [np.sqrt(0.5), 1, 0, 0], atol=1e-12)


def test_mcs_is_not_symmetric_and_ignores_length_and_order():
    draw = np.random.default_rng(0)
    W, other = draw.standard_normal((20, 6)), draw.standard_normal((9, 6))
    dense = (W / np.linalg.norm(W, axis=1)[:, None]) @ (other / np.linalg.norm(other, axis=1)[:, None]).T
    np.testing.assert_allclose(max_cosines(W, other), dense.max(axis=1), atol=1e-10)
    np.testing.assert_allclose(max_cosines(W, 7 * other[::-1]), dense.max(axis=1), atol=1e-10)
    np.testing.assert_allclose(max_cosines(other, W), dense.max(axis=0), atol=1e-10)
    with pytest.raises(RequestError, match="W"):
        max_cosines(W, other[:, :4])


@pytest.mark.parametrize(("M", "d"), [(64, 8), (512, 24), (2, 3)])
def test_chance_level_of_the_mcs(M, d):
    """Simulated against exact: 2,000 independent directions, standard error of a share at most 0.0112.

    The three shares are allowed 4 standard errors: a false alarm about once in 5,000 runs of all; a formula
    without the factor 1/2 (or with the square of the exponent) is off by 0.1 and more in two of the cases.
    """
    draw = np.random.default_rng(1)
    hits = np.empty(2_000)
    for i in range(len(hits)):
        others = draw.standard_normal((M, d))
        hits[i] = (others[:, 0] / np.linalg.norm(others, axis=1)).max()
    middle = chance_median(M, d)
    for t in (middle, min(middle + 0.1, 0.99), max(middle - 0.1, 0.0)):
        assert (hits > t).mean() == pytest.approx(chance_share(M, d, t), abs=4 * 0.0112)
    assert chance_share(M, d, middle) == pytest.approx(0.5, abs=1e-9)


def test_top_neurons():
    score = np.arange(100.0)
    found = top_neurons(score, 0.5)
    assert found.neurons[0] == 99
    assert len(found.neurons) == 50
    assert not found.extended
    few = top_neurons(score, 0.01)
    assert len(few.neurons) == FEWEST
    assert few.extended
    alive = score < 20
    assert top_neurons(score, 0.01, alive).neurons.tolist() == list(range(19, -1, -1))
    assert top_neurons(np.zeros(5), 1.0, fewest=2).neurons.tolist() == [0, 1, 2, 3, 4]
    for bad in (0.0, 1.5, float("nan")):
        with pytest.raises(RequestError, match="alpha"):
            top_neurons(score, bad)
    with pytest.raises(RequestError, match="NaN"):
        top_neurons(np.array([np.nan, 1.0]), 0.5)


def test_rank_before_training_by_hand():
    V = np.eye(3)
    start = np.array([[3.0, 2, 1], [3, 2, 1], [3, 2, 1]])
    rank, cosine = initial_rank(V, start, np.array([[1.0, 0, 0], [0, 0, 2], [0, 1, 1e-9]]))
    assert rank.tolist() == [0, 2, 1]
    np.testing.assert_allclose(cosine, 1, atol=1e-9)


def test_the_history_of_a_watched_run():
    """Watched biases and frequencies are those of the run, the last cosines those of the final W."""
    world, training = World(16, 8, Exactly(2)), Training(BA(0.1, buffer=128), 24, 40, 64, start_bias="quantile")
    source = world.stream(3)
    start = start_directions(3, 24, 8, "float32")
    watch = follow(source.V, start, (1, 5), 3)
    outcome = fit(source, training, 3, watch=(1, 5), observe=watch, record_every=10)
    plain = fit(source, training, 3)
    np.testing.assert_array_equal(outcome.W, plain.W)
    assert outcome.history["step"].tolist() == [0, 10, 20, 30, 40]
    assert outcome.history["bias_5"][-1] == outcome.b[5]
    assert np.isnan(outcome.history["frequency_5"][0])
    assert (outcome.history["frequency_1"][1:] <= 1).all()
    unit = source.V / np.linalg.norm(source.V, axis=1, keepdims=True)
    final = unit @ outcome.W[5] / np.linalg.norm(outcome.W[5])
    nearest = np.argsort(-(unit @ start[5]))[:3]
    for j in nearest:
        assert outcome.history[f"cosine_5_{j}"][-1] == pytest.approx(final[j], abs=1e-5)
    assert outcome.history["best_5"][-1] == pytest.approx(final.max(), abs=1e-5)
    with pytest.raises(RequestError, match="watched"):
        fit(source, training, 3, watch=(24,))
    with pytest.raises(RequestError, match="watched"):
        follow(source.V, start, (24,), 3)


def test_one_world_seen_by_two_seeds():
    """dictionary_seed: V of one seed, samples of another."""
    world = World(12, 6, Exactly(2))
    own, other = world.stream(5), world.stream(5, dictionary_seed=9)
    np.testing.assert_array_equal(other.V, world.stream(9).V)
    H = own.sparse_batch(0, 10)
    assert (other.sparse_batch(0, 10) != H).nnz == 0
    np.testing.assert_allclose(other.batch(0, 10).numpy(), H @ other.V, atol=1e-5)
    assert own.config() != other.config()
    assert world.stream(5, dictionary_seed=5).config() == own.config()
    drawn = world.sample(10, 5, dictionary_seed=9)
    np.testing.assert_array_equal(drawn.V, other.V)
    assert (drawn.H != world.sample(10, 5).H).nnz == 0
