"""Hierarchies and coefficients that can be 0. Statistical tests: false-alarm rate at most 1e-7 each (ALARM of
test_supports), fixed seeds."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from test_supports import assert_counts, detectable

from simulator import copula_kernels, descent
from simulator.coefficients import ClippedNormal, ConstantCoefficients, FoldedNormal, Uniform
from simulator.config import fingerprint, to_config
from simulator.copula import Copula, RandomFactors
from simulator.dictionaries import GivenDictionary, UnitSphere
from simulator.errors import RequestError
from simulator.frequencies import Zipf
from simulator.hierarchy import Hierarchy, trees
from simulator.rng import stream
from simulator.supports import Bernoulli, Exactly
from simulator.world import World

# Feature 0 has the exclusive children 1, 2, 3 and the free child 4; 2 has 5 and 6, exclusive; 7 and 8 are
# exclusive roots and 9 is the child of 8. In no order of levels: 9 is above nothing, 5 below 2.
PARENTS = (-1, 0, 0, 0, 0, 2, 2, -1, -1, 8)
GROUPS = (-1, 0, 0, 0, -1, 4, 4, 7, 7, -1)
F = np.array([0.8, 0.5, 0.6, 1.0, 0.7, 0.4, 0.9, 0.5, 0.6, 0.3])
ORDER = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)


def hierarchy(scaled=False, means=1.0, groups=GROUPS) -> Hierarchy:
    n = len(PARENTS)
    return Hierarchy(np.array(PARENTS), np.array(groups), np.full(n, scaled), np.full(n, means))


def world(support, forest, coefficients=None, **more) -> World:
    return World(forest.n, 4, support, coefficients=coefficients or ConstantCoefficients(), unit_rows=False,
                 hierarchy=forest, **more)  # fmt: skip


def enumerated(p: np.ndarray) -> np.ndarray:
    """P(subset stays), from the definition: all supports that may be drawn, and all choices of winners."""
    law = np.zeros(2**10)
    members = {g: [i for i in range(10) if GROUPS[i] == g] for g in set(GROUPS) - {-1}}
    for drawn in itertools.product((False, True), repeat=10):
        weight = math.prod(p[i] if drawn[i] else 1 - p[i] for i in range(10))
        contests = [[i for i in group if drawn[i]] for group in members.values()]
        for winners in itertools.product(*[rivals or [-1] for rivals in contests]):
            share = weight / math.prod(max(len(rivals), 1) for rivals in contests)
            active = [False] * 10
            for i in ORDER:
                parent_stays = PARENTS[i] < 0 or active[PARENTS[i]]
                active[i] = drawn[i] and parent_stays and (GROUPS[i] < 0 or i in winners)
            law[sum(1 << i for i in range(10) if active[i])] += share
    return law


def subsets(of: World, N: int, seed: int) -> np.ndarray:
    rows, values = of.row_sampler()(N, stream(seed, "test"))
    assert (values > 0).all()
    code = np.bincount(np.repeat(np.arange(N), np.diff(rows.indptr)), 2.0**rows.indices, minlength=N)
    return np.bincount(code.astype(np.int64), minlength=1024)


def test_independent_features_against_the_definition():
    # All 1,024 subsets at N = 200,000: a subset of probability 0.01 is found wrong from 0.0025 on.
    N = 200_000
    assert detectable(N, 0.01, 1024) == pytest.approx(0.0025, rel=0.05)
    law = enumerated(F)
    assert law.sum() == pytest.approx(1)
    assert_counts(subsets(world(Bernoulli.of(F), hierarchy()), N, 1), N, law)
    # Power: without exclusion, or with the children of 2 not exclusive, it is found.
    for wrong in ((-1,) * 10, (-1, 0, 0, 0, -1, -1, -1, 7, 7, -1)):
        with pytest.raises(AssertionError):
            assert_counts(subsets(world(Bernoulli.of(F), hierarchy(groups=wrong)), N, 1), N, law)


def test_frequencies_are_exact_for_independent_features():
    law = enumerated(F)
    wanted = [law[(np.arange(1024) >> i & 1) == 1].sum() for i in range(10)]
    found = world(Bernoulli.of(F), hierarchy())
    assert found.frequencies() == pytest.approx(wanted, abs=1e-12)
    assert found.mean_active == pytest.approx(sum(wanted))
    assert found.rho_2() is None
    # Coefficients that are 0 with probability 0.2 and 0.1: as if drawn with 0.8 F and 0.9 F.
    mean = np.where(np.arange(10) < 5, scipy.stats.norm.ppf(0.8), scipy.stats.norm.ppf(0.9))
    law = enumerated(F * np.where(np.arange(10) < 5, 0.8, 0.9))
    clipped = world(Bernoulli.of(F), hierarchy(), ClippedNormal(mean, 1.0))
    wanted = [law[(np.arange(1024) >> i & 1) == 1].sum() for i in range(10)]
    assert clipped.frequencies() == pytest.approx(wanted, abs=1e-12)
    assert_counts(subsets(clipped, 200_000, 2), 200_000, law)


def test_a_large_group_wins_by_its_poisson_binomial():
    # E[1 / (1 + K)] for 300 siblings, K of the other 299 by convolution.
    q = np.linspace(0.001, 0.9, 300)
    flat = Hierarchy(np.full(300, -1), np.zeros(300), np.zeros(300), np.ones(300))
    for i in (0, 150, 299):
        others = np.ones(1)
        for other in np.delete(q, i):
            others = np.convolve(others, [1 - other, other])
        wanted = q[i] * (others / np.arange(1, 301)).sum()
        assert flat.frequencies(q)[i] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("coefficients", [ConstantCoefficients(), ClippedNormal(1.0, 0.8)])
def test_a_copula_given_its_latent_numbers(coefficients):
    # Against drawing everything first and removing afterwards, here naively: N = 40,000 each, all subsets that
    # are expected five times, two-sample chi-squared at 1e-7. Power: without correlation it is found.
    N, copula = 40_000, Copula.of(np.minimum(F, 0.9), RandomFactors(3, 0.5))
    ours = subsets(world(copula, hierarchy(), coefficients), N, 3)
    rng = stream(4, "test")
    rows = copula.sampler(10)(N, rng)
    values = coefficients.draw(rows.indices, rng)
    naive, lone = np.zeros(1024), subsets(world(Bernoulli.of(np.minimum(F, 0.9)), hierarchy(), coefficients), N, 3)
    for row in range(N):
        span = slice(rows.indptr[row], rows.indptr[row + 1])
        active = set(rows.indices[span][values[span] > 0].tolist())
        for group in (0, 4, 7):
            rivals = [i for i in sorted(active) if GROUPS[i] == group]
            if len(rivals) > 1:
                active -= set(rivals) - {rivals[rng.integers(len(rivals))]}
        for i in ORDER:
            if PARENTS[i] >= 0 and PARENTS[i] not in active:
                active.discard(i)
        naive[sum(1 << i for i in active)] += 1

    def p_value(first, second):
        often = first + second >= 10
        return scipy.stats.chi2_contingency(np.array([first[often], second[often]])).pvalue

    assert p_value(ours, naive) > 1e-7
    assert p_value(lone, naive) < 1e-7


@pytest.mark.parametrize("scaled", [True, False])
def test_frequencies_of_a_copula(scaled):
    # 200 features, 8 trees of 21, N = 200,000: detectable 0.0017 at f = 0.01. The error of the average over
    # latent numbers, 0.3 % of f, is a tenth of the standard deviation at f = 0.01.
    N, n = 200_000, 200
    forest = trees(n, 8, 4, 2, scaled=scaled, means=2.0)
    copula = Copula.of(forest.compensated(np.linspace(0.3, 0.005, n)), RandomFactors(5, 0.2))
    made = world(copula, forest, ClippedNormal(2.0, 1.0))
    rows, _ = made.row_sampler()(N, stream(5, "test"))
    assert_counts(np.bincount(rows.indices, minlength=n), N, made.frequencies())
    without = world(copula, Hierarchy(forest.parents, np.full(n, -1), forest.scaled, forest.means), made.coefficients)
    with pytest.raises(AssertionError):
        assert_counts(np.bincount(rows.indices, minlength=n), N, without.frequencies())


def test_children_are_scaled_by_their_parents():
    # A chain 0 - 1 - 2, all always active. Constant coefficients 2 and means 4: 2, 2 x 2/4 = 1, 2 x 1/4 = 0.5.
    chain = Hierarchy(np.array([-1, 0, 1]), np.full(3, -1), np.ones(3), np.full(3, 4.0))
    H = world(Bernoulli.of(np.ones(3)), chain, ConstantCoefficients(2.0)).sample(2, seed=0, dtype=np.float64).H
    assert H.toarray().tolist() == [[2, 1, 0.5]] * 2
    # Only feature 2 is scaled.
    chain = Hierarchy(np.array([-1, 0, 1]), np.full(3, -1), np.array([0, 0, 1]), np.full(3, 4.0))
    H = world(Bernoulli.of(np.ones(3)), chain, ConstantCoefficients(2.0)).sample(1, seed=0, dtype=np.float64).H
    assert H.toarray().tolist() == [[2, 2, 1]]


def test_scaled_coefficients_have_their_law():
    # Root U(0, 1], child U(0, 1] x root / 0.5 = twice a product of uniforms: P(<= 2 x) = x (1 - log x).
    pair = Hierarchy(np.array([-1, 0]), np.full(2, -1), np.ones(2), np.full(2, 0.5))
    H = world(Bernoulli.of(np.ones(2)), pair, Uniform(0.0, 1.0)).sample(20_000, 1, dtype=np.float64).H.toarray()
    # Dvoretzky-Kiefer-Wolfowitz at 1e-7 and N = 20,000: 0.0205.
    assert scipy.stats.kstest(H[:, 1] / 2, lambda x: x * (1 - np.log(x))).statistic < 0.0205
    assert scipy.stats.kstest(H[:, 0], "uniform").statistic < 0.0205


def test_trees_are_numbered_level_by_level():
    forest = trees(10, 2, 2, 2)
    assert forest.parents.tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3]  # cut off before the children of 4 and 5
    assert forest.groups.tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3]
    assert [level.tolist() for level in forest.levels] == [[0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]
    # A parent of a single child has no group; without exclusion nobody has.
    assert trees(5, 2, 2, 1).groups.tolist() == [-1, -1, 0, 0, -1]
    assert (trees(10, 2, 2, 2, exclusive=False).groups == -1).all() and not forest.scaled.any()
    assert trees(10, 2, 2, 2, scaled=True).scaled.tolist() == [False] * 2 + [True] * 8
    large = trees(16_384, 128, 4, 3)
    assert [level.size for level in large.levels] == [128 + 5504, 512, 2048, 8192]
    assert trees(3, 5, 2, 2).parents.tolist() == [-1, -1, -1]


def test_compensation():
    # Root 0.4; children 0.1, 0.05, 0.02 exclusive: f / 0.4 (1 + others / 0.4). The free feature stays.
    forest = trees(5, 1, 3, 1)
    forest = Hierarchy(np.array([-1, 0, 0, 0, -1]), np.array([-1, 0, 0, 0, -1]), forest.scaled, forest.means)
    found = forest.compensated(np.array([0.4, 0.1, 0.05, 0.02, 0.3]))
    assert found == pytest.approx([0.4, 0.25 * (1 + 0.175), 0.125 * 1.3, 0.05 * 1.375, 0.3])
    # What remains is near what was wanted, and not more than near.
    assert forest.frequencies(found) == pytest.approx([0.4, 0.1, 0.05, 0.02, 0.3], rel=0.1)
    assert forest.compensated(np.full(5, 0.4)).max() == 1


def test_streams_and_samples_of_such_a_world():
    made = world(Copula.of(F * 0.9, RandomFactors(3, 0.3)), hierarchy(scaled=True), ClippedNormal(1.0, 0.5), bias=0.5)
    batches = made.stream(4)
    third = batches.batch(3, 64)
    assert not np.array_equal(batches.batch(1, 64), third) and np.array_equal(made.stream(4).batch(3, 64), third)
    H = batches.sparse_batch(3, 64)
    assert H.has_sorted_indices and (H.data > 0).all() and H.indices.dtype == np.int32
    assert np.abs(H @ batches.V + made.offset(4) - third.numpy()).max() < 1e-5
    sample = made.sample(64, 5, dictionary_seed=4)
    assert np.abs(sample.H @ sample.V + made.offset(4) - sample.X).max() < 1e-5
    # A long sample spans blocks; unit rows come last.
    scaled = World(10, 4, made.support, coefficients=made.coefficients, hierarchy=made.hierarchy)
    H = scaled.sample(9000, 6, dtype=np.float64).H
    assert np.sqrt(H.multiply(H).sum(axis=1))[np.diff(H.indptr) > 0] == pytest.approx(1, abs=1e-12)


def test_the_same_without_numba(monkeypatch):
    made = world(Copula.of(F * 0.9, RandomFactors(3, 0.3)), hierarchy(scaled=True), ClippedNormal(1.0, 0.5))
    rows, values = made.row_sampler()(200, stream(6, "test"))
    for name in ("walk", "active_children", "winners", "_probability"):
        monkeypatch.setattr(copula_kernels, name, getattr(copula_kernels, name).py_func)
    plain_rows, plain_values = made.row_sampler()(200, stream(6, "test"))
    assert np.array_equal(plain_rows.indptr, rows.indptr) and np.array_equal(plain_rows.indices, rows.indices)
    assert np.array_equal(plain_values, values)


def test_bias():
    plain, moved = World(5, 3, Exactly(2)), World(5, 3, Exactly(2), bias=2.5)
    c = moved.offset(0)
    assert np.linalg.norm(c) == pytest.approx(2.5) and not np.array_equal(c, moved.offset(1))
    assert (plain.offset(0) == 0).all()
    gap = moved.sample(4, 0, dtype=np.float64).X - plain.sample(4, 0, dtype=np.float64).X
    assert gap == pytest.approx(np.tile(c, (4, 1)), abs=1e-14)
    assert moved.stream(0).batch(2, 4).numpy() - plain.stream(0).batch(2, 4).numpy() == pytest.approx(
        np.tile(c, (4, 1)), abs=1e-6
    )
    given = World(5, 3, Exactly(2), bias=(1, 2, 3))
    assert given.offset(7).tolist() == [1, 2, 3] and given == World(5, 3, Exactly(2), bias=np.array([1.0, 2.0, 3.0]))
    assert len({given, moved, plain}) == 3
    # What was stored before there was a bias keeps its key.
    assert "bias" not in to_config(plain) and to_config(moved)["bias"] == 2.5


def test_hierarchies_compare_by_value():
    assert hierarchy() == hierarchy() and hierarchy() != hierarchy(scaled=True)
    worlds = [world(Bernoulli.of(F), forest) for forest in (hierarchy(), hierarchy(), hierarchy(scaled=True))]
    assert len(set(worlds)) == 2 and worlds[0] == worlds[1]
    assert fingerprint(worlds[0]) == fingerprint(worlds[1]) != fingerprint(worlds[2])


def test_folded_and_clipped_normal_coefficients():
    # Dvoretzky-Kiefer-Wolfowitz at 1e-7 and N = 20,000: 0.0205.
    N = 20_000
    feature = np.repeat([0, 1], N)
    mean, std = np.array([1.0, -0.5]), np.array([2.0, 0.7])
    folded = FoldedNormal(mean, std).draw(feature, stream(7, "test"))
    clipped = ClippedNormal(mean, std).draw(feature, stream(8, "test"))
    for k in (0, 1):
        normal = scipy.stats.norm(mean[k], std[k])
        of_folded, of_clipped = folded[feature == k], clipped[feature == k]
        assert scipy.stats.kstest(of_folded, lambda x, g=normal: g.cdf(x) - g.cdf(-x)).statistic < 0.0205
        zeros = of_clipped == 0
        assert_counts(zeros.sum(), N, normal.cdf(0))
        assert scipy.stats.kstest(
            of_clipped[~zeros], lambda x, g=normal: (g.cdf(x) - g.cdf(0)) / g.sf(0)
        ).statistic < math.sqrt(math.log(2e7) / 2 / (~zeros).sum())
    made = World(6, 3, Exactly(3), coefficients=ClippedNormal(0.0, 1.0), unit_rows=False)
    assert made.mean_active == 1.5 and made.frequencies() == pytest.approx(np.full(6, 0.25))
    assert_counts(made.sample(N, 9).H.nnz, 3 * N, 0.5)
    assert World(6, 3, Exactly(3), coefficients=FoldedNormal()).mean_active == 3
    assert ClippedNormal(mean, std) == ClippedNormal(mean.tolist(), std) != ClippedNormal(1.0, std)
    assert len({FoldedNormal(mean, 1), FoldedNormal(mean, 1.0), ClippedNormal(mean, 1)}) == 2


def test_the_average_over_latent_numbers_has_the_error_that_it_states(monkeypatch):
    made = world(Copula.of(F * 0.9, RandomFactors(25, 0.1)), hierarchy())
    found = []
    for k in range(4):
        monkeypatch.setattr(descent, "stream", lambda seed, name, k=k: stream(100 + k, name))
        found.append(descent.remaining_frequencies(made.support, made.coefficients, made.hierarchy, 10))
    assert (np.std(found, axis=0) / np.mean(found, axis=0)).max() < 0.013


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hierarchy([0], [-1], [0], [1.0]), "has a cycle"),
        (lambda: Hierarchy([1, 0, -1], [-1] * 3, [0] * 3, [1.0] * 3), "has a cycle"),
        (lambda: Hierarchy([-1, 5], [-1] * 2, [0] * 2, [1.0] * 2), "of 2 features names feature 5"),
        (lambda: Hierarchy([-1, 0], [-1], [0] * 2, [1.0] * 2), "of 2 parents needs as many groups, not 1"),
        (lambda: Hierarchy([-1, 0.5], [-1] * 2, [0] * 2, [1.0] * 2), "parents of a hierarchy must be whole"),
        (lambda: Hierarchy([-1, 0, -1], [-1, 1, 1], [0] * 3, [1.0] * 3), "group .* several parents"),
        (lambda: Hierarchy([-1, 0], [-1] * 2, [0, 1], [0.0, 1.0]), "scales its children has mean 0"),
        (lambda: trees(10, 0, 4, 3), "number of trees = 0"),
        (lambda: trees(10, 1, 4, 3, means=np.ones(4)), r"have shape \(4,\); give one number or n = 10"),
        (lambda: World(3, 2, Bernoulli(1), hierarchy=trees(4, 1, 2, 1)), "for 4 features, but the world has n = 3"),
        (lambda: World(3, 2, Exactly(1), hierarchy=trees(3, 1, 2, 1)), "Bernoulli or Copula, not Exactly"),
        (lambda: World(3, 2, Exactly(1), bias=-1), "norm of the bias = -1"),
        (lambda: World(3, 2, Exactly(1), bias=(1, 2, 3)), "the bias has 3 entries, but the world has d = 2"),
        (lambda: World(3, 2, Exactly(1), coefficients=FoldedNormal(np.ones(2))), "has 2 values, but .* n = 3"),
        (lambda: ClippedNormal(np.ones(2), np.array([1.0, -1.0])), "the least value is -1"),
        (lambda: ClippedNormal(-1.0, 0.0), "never active"),
        (lambda: FoldedNormal(0.0, 0.0), "mean = std = 0"),
        (lambda: FoldedNormal(0.0, -1.0), "std of FoldedNormal = -1"),
    ],
)  # fmt: skip
def test_impossible_requests(make, message):
    with pytest.raises(RequestError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_frequent_children_cost_what_stays():
    # 64 roots of frequency 0.01, each with 100 children that are always drawn: 6,400 active features if all
    # were drawn first, 64 in fact. Time is not measured; the memory of 20,000 samples says it.
    n = 64 * 101
    forest = trees(n, 64, 100, 1, exclusive=False)
    made = world(Bernoulli.of(np.where(np.arange(n) < 64, 0.01, 1.0)), forest)
    rows, _ = made.row_sampler()(5_000, stream(10, "test"))
    assert rows.indices.size / 5_000 == pytest.approx(64 * 0.01 * 101, rel=0.1)
    assert made.mean_active == pytest.approx(64 * 0.01 * 101)


def test_a_world_with_a_given_dictionary_and_zipf():
    made = World(4, 2, Copula(1, Zipf(0.5)), GivenDictionary(np.eye(4)[:, :2] + 1), hierarchy=trees(4, 1, 3, 1))
    assert made.sample(100, 0).X.shape == (100, 2) and UnitSphere() != made.dictionary
