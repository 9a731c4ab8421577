import itertools
import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats
import torch

from simulator.coefficients import Exponential, HalfNormal, Uniform
from simulator.dictionaries import Coherent, Gaussian, GivenDictionary, Orthonormal, UnitSphere
from simulator.errors import RequestError
from simulator.frequencies import Given, Zipf
from simulator.supports import Bernoulli, Exactly, Mixture, Paired
from simulator.world import World

WORLDS = [
    World(30, 8, Exactly(3)),
    World(30, 8, Exactly(3, Zipf(0.5)), UnitSphere(), Uniform(0.5, 2.0)),
    World(6, 8, Mixture((1, 4)), Orthonormal(), Exponential(2.0), unit_rows=False),
    World(30, 8, Bernoulli(1.5, Zipf(0.3)), Coherent(0.2), HalfNormal(3.0)),
    World(30, 8, Paired(4, 0.4), noise=0.1),
    World(3, 2, Bernoulli(0.3), GivenDictionary(np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])), unit_rows=False),
    World(1, 1, Exactly(1)),
]
every_world = pytest.mark.parametrize("world", WORLDS, ids=range(len(WORLDS)))


def test_worked_example():
    # Two features, both always active, coefficients 1 / sqrt(2): x = (v_0 + v_1) / sqrt(2) = (4, 6) /
    # sqrt(2).
    world = World(2, 2, Exactly(2), GivenDictionary(np.array([[1.0, 2.0], [3.0, 4.0]])))
    sample = world.sample(3, seed=0, dtype=np.float64)
    assert sample.H.toarray() == pytest.approx(np.full((3, 2), math.sqrt(0.5)), abs=1e-15)
    assert pytest.approx(np.tile([4, 6], (3, 1)) / math.sqrt(2), abs=1e-14) == sample.X
    # Without unit rows x = v_0 + v_1.
    world = World(2, 2, Exactly(2), GivenDictionary(np.array([[1.0, 2.0], [3.0, 4.0]])), unit_rows=False)
    assert world.sample(1, seed=0).X.tolist() == [[4, 6]]


@every_world
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sample_is_H_V(world, dtype):
    sample = world.sample(500, seed=1, dtype=dtype)
    assert sample.X.dtype == sample.H.dtype == sample.V.dtype == dtype
    assert sample.X.shape == (500, world.d) and sample.H.shape == (500, world.n)
    assert sample.V.shape == (world.n, world.d)
    assert sample.H.has_sorted_indices and sample.H.indices.dtype == np.int32 and (sample.H.data > 0).all()
    if world.noise == 0:
        H, V = sample.H.toarray().astype(np.float64), sample.V.astype(np.float64)
        # At most 30 terms, each rounded to `dtype`.
        tolerance = 32 * np.finfo(dtype).eps * (H @ np.abs(V))
        assert (np.abs(sample.X - H @ V) <= tolerance).all()


@every_world
def test_both_dtypes_are_the_same_numbers(world):
    single, double = world.sample(50, seed=2), world.sample(50, seed=2, dtype=np.float64)
    assert np.array_equal(single.H.indices, double.H.indices)
    assert np.array_equal(single.H.data, double.H.data.astype(np.float32))
    assert np.array_equal(single.V, double.V.astype(np.float32))
    assert np.array_equal(double.V, world.features(2))
    assert pytest.approx(double.X, abs=1e-4) == single.X


@every_world
def test_unit_rows(world):
    H = world.sample(200, seed=3, dtype=np.float64).H
    norms = np.sqrt(H.multiply(H).sum(axis=1))
    active = np.diff(H.indptr) > 0
    assert (norms[~active] == 0).all()
    if world.unit_rows:
        assert norms[active] == pytest.approx(1, abs=1e-12)


@every_world
def test_batches_do_not_depend_on_earlier_calls(world):
    batches = world.stream(4)
    third = batches.batch(3, 16)
    first = batches.batch(1, 16)
    assert torch.equal(batches.batch(3, 16), third)
    assert torch.equal(world.stream(4).batch(1, 16), first)
    assert third.shape == (16, world.d) and third.dtype == torch.float32
    if world != WORLDS[-1] or world.d > 1:
        assert not torch.equal(first, third)


@every_world
def test_the_sparse_batch_is_the_H_of_the_batch(world):
    batches = world.stream(5, dtype=torch.float64)
    H = batches.sparse_batch(2, 64)
    assert H.shape == (64, world.n) and H.dtype == np.float64
    assert np.array_equal(batches.V, world.features(5))
    gap = batches.batch(2, 64).numpy() - H.toarray() @ batches.V
    if world.noise == 0:
        assert np.abs(gap).max() < 1e-12
    else:
        assert 0 < np.abs(gap).max() < 7 * world.noise


def test_streams_of_one_seed_are_apart():
    world = World(50, 8, Exactly(3))
    sample = world.sample(20, seed=6)
    other = world.sample(20, seed=6, name="validation")
    assert np.array_equal(sample.V, other.V)
    assert not np.array_equal(sample.H.indices, other.H.indices)
    assert not np.array_equal(world.sample(20, seed=7).V, sample.V)
    batch = world.stream(6).sparse_batch(0, 20)
    assert not np.array_equal(world.sample(20, seed=6, name="batches").H.indices, batch.indices)


def test_the_dictionary_is_shared_by_worlds_that_differ_elsewhere():
    # The comparison of methods and supports at one seed is paired.
    first = World(50, 8, Exactly(3)).features(8)
    assert np.array_equal(first, World(50, 8, Bernoulli(3), coefficients=HalfNormal(), noise=1.0).features(8))


def test_empty_supports_give_zero_rows():
    sample = World(5, 4, Bernoulli(0.5)).sample(400, seed=9)
    empty = np.diff(sample.H.indptr) == 0
    # P(empty) = 0.9^5 = 0.59; none or all of 400 empty has probability below 1e-90.
    assert empty.any() and not empty.all()
    assert (sample.X[empty] == 0).all() and (np.abs(sample.X[~empty]).sum(axis=1) > 0).all()


def test_noise():
    # X - HV over 5,000 x 8 entries, N(0, 0.3^2): Dvoretzky-Kiefer-Wolfowitz bound sqrt(ln(2e7) / 8e4) =
    # 0.0145 at a false-alarm rate of 1e-7; a law at distance 0.029 is missed with probability below 1e-7. A
    # standard deviation that is wrong by 13 % is at that distance. 5,000 rows span two blocks.
    sample = World(20, 8, Exactly(2), noise=0.3).sample(5000, seed=10, dtype=np.float64)
    residual = (sample.X - sample.H @ sample.V).ravel()
    assert scipy.stats.kstest(residual / 0.3, "norm").statistic < 0.0145
    quiet = World(20, 8, Exactly(2)).sample(5000, seed=10, dtype=np.float64)
    assert np.array_equal(quiet.H.toarray(), sample.H.toarray())


def test_uniform_case_in_the_scale_of_the_theory():
    # Gaussian V and unit rows: w^T x ~ N(0, 1) for a fixed unit vector w. Given V the variance is that of the
    # mixture; over 400 dictionaries with 1 sample each the draws are independent. Bound
    # sqrt(ln(2e7) / 800) = 0.145 at 1e-7.
    world = World(64, 16, Exactly(3))
    projections = np.array([world.sample(1, seed, dtype=np.float64).X[0, 0] for seed in range(400)])
    assert scipy.stats.kstest(projections, "norm").statistic < 0.145


def test_frequencies_and_mean_active():
    world = World(3, 2, Exactly(1, Given((1.0, 2.0, 1.0))))
    assert world.frequencies().tolist() == [0.25, 0.5, 0.25] and world.mean_active == 1.0


def test_worlds_compare_by_value():
    assert World(5, 4, Exactly(3)) == World(5, 4, Exactly(3), Gaussian())
    assert len({World(5, 4, Exactly(3)), World(5, 4, Exactly(3)), World(5, 4, Exactly(2))}) == 2


def test_a_long_stream_runs_in_bounded_memory():
    # n = 65,536: a dense batch of H would have 65,536 x 1,024 x 4 bytes = 268 MB, and 300 batches of H
    # stored sparsely 8 MB more than one. The peak above the stream itself stays below 4 MB.
    batches = World(65_536, 8, Exactly(3)).stream(11)
    batches.batch(0, 1024)
    tracemalloc.start()
    try:
        total = sum(len(batches.batch(t, 1024)) for t in range(300))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 307_200
    assert peak < 4e6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: World(4, 3, Exactly(5)), "s = 5 exceeds the number of features n = 4"),
        (lambda: World(4, 3, Exactly(2), Orthonormal()), "4 orthonormal rows do not fit into d = 3"),
        (lambda: World(4, 3, Exactly(2), GivenDictionary(np.eye(3))), "the given dictionary has shape"),
        (lambda: World(0, 3, Exactly(1)), "number of features n = 0 is out of range"),
        (lambda: World(4, 0, Exactly(1)), "dimension d = 0 is out of range"),
        (lambda: World(True, 3, Exactly(1)), "number of features n = True"),
        (lambda: World(4, 3, Exactly(1), noise=-0.1), "noise = -0.1 is out of range"),
        (lambda: World(4, 3, Exactly(1), noise=math.nan), "noise = nan"),
        (lambda: World(5, 3, Paired(2, 0.5)), "even n, not n = 5"),
        (lambda: World(4, 3, Exactly(1)).sample(0, 0), "number of samples N = 0"),
        (lambda: World(4, 3, Exactly(1)).sample(5, -1), "seed = -1"),
        (
            lambda: World(4, 3, Exactly(1)).sample(5, 0, dtype=np.int32),
            "dtype int32 .* choose float32 or float64",
        ),
        (
            lambda: World(4, 3, Exactly(1)).stream(0, dtype=torch.float16),
            "dtype float16 .* choose float32 or float64",
        ),
        (lambda: World(4, 3, Exactly(1)).stream(0, device="nowhere"), "device 'nowhere' cannot be used"),
        (lambda: World(4, 3, Exactly(1)).stream(0).batch(-1, 4), "number t of a batch = -1"),
        (lambda: World(4, 3, Exactly(1)).stream(0).batch(0, 0), "size of a batch = 0"),
    ],
)
def test_impossible_requests(make, message):
    with pytest.raises(RequestError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_every_support_works_with_every_coefficient_law():
    supports = (Exactly(2), Exactly(2, Zipf(0.5)), Mixture((1, 3)), Bernoulli(2), Paired(2, 0.5))
    for support, law in itertools.product(supports, (Uniform(), Exponential(), HalfNormal())):
        sample = World(10, 4, support, coefficients=law).sample(50, seed=12)
        assert np.isfinite(sample.X).all()
