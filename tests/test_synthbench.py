"""The preset `synth_sae_bench` and its dictionary, without the peer (for which see test_synthetic_peer.py)."""

import numpy as np
import pytest
import torch

from simulator.config import fingerprint
from simulator.dictionaries import Orthogonalised, UnitSphere, orthogonalised
from simulator.errors import RequestError
from simulator.rng import stream
from simulator.synthbench import scaled_zipf, synth_sae_bench
from simulator.world import World


def largest_cosines(V: np.ndarray) -> np.ndarray:
    cosines = np.abs(V @ V.T)
    np.fill_diagonal(cosines, 0)
    return cosines.max(axis=1)


def test_the_small_recipe():
    world = synth_sae_bench(1024, 128)
    assert (world.n, world.d, world.bias, world.unit_rows, world.noise) == (1024, 128, 0.5, False, 0)
    assert [level.size for level in world.hierarchy.levels] == [8 + 344, 32, 128, 512]
    assert world.hierarchy.scaled.sum() == 672 and (world.hierarchy.groups >= 0).sum() == 672
    assert world.coefficients.mean[[0, -1]].tolist() == [5, 4] and (world.coefficients.std >= 0).all()
    assert world.support.factors.matrix(1024).shape == (1024, 25)
    # The wanted frequencies have mean number 13.1; compensation at most 1 and exclusion leave 7.3.
    assert scaled_zipf(1024, 0.5, 0.4, 5e-4).sum() == pytest.approx(13.11, abs=0.01)
    assert world.mean_active == pytest.approx(7.27, abs=0.05)
    # sqrt of the variance of the number of active features is 4.7: standard error 0.033 at N = 20,000.
    sample = world.sample(20_000, 0)
    assert sample.H.nnz / 20_000 == pytest.approx(world.mean_active, abs=6 * 0.033)
    assert np.linalg.norm(sample.V, axis=1) == pytest.approx(1, abs=1e-6)
    gap = sample.X - sample.H @ sample.V
    assert np.linalg.norm(gap, axis=1) == pytest.approx(0.5, abs=1e-4)


def test_both_settings_of_scaling_share_everything_else():
    scaled, gated = (synth_sae_bench(1024, 64, scale_children=flag, dictionary=UnitSphere()) for flag in (True, False))
    assert scaled != gated and fingerprint(scaled) != fingerprint(gated)
    first, second = scaled.sample(500, 1), gated.sample(500, 1)
    assert np.array_equal(first.H.indices, second.H.indices) and not np.array_equal(first.H.data, second.H.data)
    assert np.array_equal(scaled.frequencies(), gated.frequencies())
    other = synth_sae_bench(1024, 64, structure=1, dictionary=UnitSphere())
    assert other != scaled and other == synth_sae_bench(1024, 64, structure=1, dictionary=UnitSphere())


def test_the_full_recipe():
    # Published true L0 34.4 and mean norm 28.3, of another draw of the same law. The standard deviation of the
    # number of active features is 11.8: standard error 0.08 at N = 20,480.
    world = synth_sae_bench(dictionary=UnitSphere())
    assert [level.size for level in world.hierarchy.levels] == [5632, 512, 2048, 8192]
    assert world.mean_active == pytest.approx(34.4, abs=0.3)
    batches = world.stream(0)
    size = np.mean([batches.sparse_batch(t, 1024).nnz / 1024 for t in range(20)])
    assert size == pytest.approx(world.mean_active, abs=6 * 0.08)
    norm = np.mean([batches.batch(t, 1024).norm(dim=1).mean() for t in range(4)])
    assert norm == pytest.approx(28.3, abs=0.6)


def test_scaled_zipf():
    assert scaled_zipf(4, 0.5, 0.4, 0.1)[[0, -1]] == pytest.approx([0.4, 0.1])
    assert scaled_zipf(4, 1.0, 0.4, 0.1)[1] == pytest.approx(0.1 + 0.3 * (1 / 2 - 1 / 4) / (3 / 4))
    assert scaled_zipf(1, 1.0, 0.4, 0.1).tolist() == [0.4]


def test_a_step_against_the_objective():
    # One step of Adam from the gradient of the objective as it is written, by automatic differentiation.
    start = stream(0, "test").standard_normal((9, 4)) * 0.5
    V = torch.tensor(start, requires_grad=True)
    adam = torch.optim.Adam([V], lr=0.01)
    for steps in (1, 2, 3):
        adam.zero_grad()
        products = V @ V.T
        squares = products.diagonal()
        (products.square().sum() - squares.square().sum() + 9 * (squares - 1).square().sum()).backward()
        adam.step()
        assert orthogonalised(start, steps, 0.01) == pytest.approx(V.detach().numpy(), abs=1e-9)
    assert np.array_equal(orthogonalised(start, 0, 0.01), start)


def test_orthogonalised_rows_are_further_apart():
    law = Orthogonalised(200, 1e-3)
    V, start = (each.draw(100, 30, stream(1, "test")) for each in (law, UnitSphere()))
    assert np.linalg.norm(V, axis=1) == pytest.approx(1)
    assert largest_cosines(V).mean() < largest_cosines(start).mean() - 0.02
    assert np.array_equal(V, Orthogonalised(200, 1e-3).draw(100, 30, stream(1, "test")))
    assert not np.array_equal(V, Orthogonalised(199, 1e-3).draw(100, 30, stream(1, "test")))
    V[:] = 0  # What a caller does with a dictionary must not reach the next one.
    assert np.linalg.norm(law.draw(100, 30, stream(1, "test")), axis=1) == pytest.approx(1)
    # Fewer rows than dimensions become orthonormal.
    few = Orthogonalised(2000, 0.01).draw(5, 8, stream(2, "test"))
    assert np.abs(few @ few.T - np.eye(5)).max() < 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: synth_sae_bench(100), "n = 100 features are too few for one tree of the recipe; choose n >= 128"),
        (lambda: synth_sae_bench(128, 0), "dimension d = 0"),
        (lambda: Orthogonalised(-1), "steps of the orthogonalisation = -1"),
        (lambda: Orthogonalised(1, 0), "learning rate of the orthogonalisation = 0"),
        (lambda: scaled_zipf(3, 0.5, 0.1, 0.2), "largest frequency = 0.1"),
        (lambda: scaled_zipf(3, 0, 0.1, 0.01), "Zipf exponent = 0"),
    ],
)
def test_impossible_requests(make, message):
    with pytest.raises(RequestError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_conditions_of_such_a_world_are_sampled():
    from theory.conditions import of_world

    assert not of_world(synth_sae_bench(128, 64, dictionary=UnitSphere()), seed=0, samples=500).H3.exact
    assert isinstance(synth_sae_bench(128, 64), World)
