"""TopK's selection against a full sort, where its guesses could go wrong: ties, scales, few positives, NaN."""

import numpy as np
import pytest
import torch

from simulator.methods import TopK
from simulator.sae import Parameters
from simulator.selection import Factors, Selection
from simulator.sparse import SparseEngine


def draw(M, N, d, seed, lengths=False):
    rng = np.random.default_rng(seed)
    W, X = rng.standard_normal((M, d)), rng.standard_normal((N, d))
    if lengths:
        X *= 10.0 ** rng.uniform(-6, 6, (N, 1))
        W *= 10.0 ** rng.uniform(-2, 2, (M, 1))
    return [torch.tensor(A, dtype=torch.float32) for A in (W, 0.1 * rng.standard_normal(M), X)]


def select(W, b, X, k, rounded, entries=1 << 14, allowed=None, parts=1):
    selection = Selection(len(W), W.shape[1], len(X), k, parts, entries, W.dtype)
    factors = selection.prepare(W, b, X, rounded)
    allowed = np.ones(len(W), bool) if allowed is None else allowed
    selection.run(0, 0, len(X), factors, W.numpy(), b.numpy(), X.numpy(), allowed)
    return [
        dict(zip(selection.neuron[i, :count].tolist(), selection.y[i, :count].tolist(), strict=True))
        for i, count in enumerate(selection.found)
    ]


def expected(W, b, X, k):
    """The k largest positive y of each sample in float64, and the gap to the next one."""
    y = (X.double() @ W.double().T + b.double()).numpy()
    order = np.argsort(-y, axis=1, kind="stable")
    ranked = np.take_along_axis(y, order, axis=1)
    return [
        ({int(m) for m, v in zip(order[i, :k], ranked[i, :k], strict=True) if v > 0}, ranked[i]) for i in range(len(X))
    ]


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize(("M", "N", "d", "k"), [(300, 70, 24, 5), (65, 33, 9, 20), (7, 40, 3, 7), (1_000, 64, 128, 8)])
def test_selected_are_the_largest(M, N, d, k, lengths, rounded):
    W, b, X = draw(M, N, d, seed=M + N, lengths=lengths)
    found = select(W, b, X, k, rounded)
    settled = 0
    for own, (wanted, ranked) in zip(found, expected(W, b, X, k), strict=True):
        scale = 1e-5 * max(1.0, np.abs(ranked).max())
        near = np.abs(ranked - (ranked[k] if k < M else -np.inf)) < scale
        if near[:k].any() or (np.abs(ranked) < scale).any():
            continue  # within rounding of the bar: either may be right
        assert set(own) == wanted
        settled += 1
    assert settled > 0.5 * N or lengths


@pytest.mark.parametrize("lengths", [False, True])
def test_no_number_depends_on_the_screen_or_the_block(lengths):
    W, b, X = draw(400, 150, 40, seed=3, lengths=lengths)
    one = select(W, b, X, 6, True)
    assert one == select(W, b, X, 6, False) == select(W, b, X, 6, True, entries=1 << 18)


@pytest.mark.parametrize("rounded", [True, False])
def test_of_equal_ones_the_first_stay(rounded):
    W, b, X = draw(20, 50, 12, seed=4)
    W, b = W.repeat(5, 1), b.repeat(5)  # neuron m, m + 20, ... are one and the same
    for own, (_, ranked) in zip(select(W, b, X, 3, rounded), expected(W, b, X, 3), strict=True):
        best = sorted(own)
        assert len(best) == min(3, int((ranked > 0).sum()))
        if best:
            assert {m % 20 for m in best} == {best[0] % 20}
            assert best == [best[0] % 20 + 20 * t for t in range(len(best))]


@pytest.mark.parametrize("rounded", [True, False])
def test_few_or_no_positive_ones(rounded):
    W, b, X = draw(200, 64, 16, seed=5)
    assert select(W, b - 100, X, 4, rounded) == [{}] * 64
    rare = select(W, b - 9.0, X, 4, rounded)
    for own, (wanted, _) in zip(rare, expected(W, b - 9.0, X, 4), strict=True):
        assert set(own) == wanted
    assert 0 < sum(map(len, rare)) < 4 * 64
    assert {} in rare


@pytest.mark.parametrize("rounded", [True, False])
def test_only_allowed_neurons(rounded):
    W, b, X = draw(90, 40, 16, seed=6)
    allowed = np.arange(90) % 3 == 1
    picked = np.flatnonzero(allowed)
    some = select(W, b, X, 4, rounded, allowed=allowed)
    alone = select(W[picked], b[picked], X, 4, rounded)
    assert some == [{int(picked[m]): y for m, y in own.items()} for own in alone]
    assert select(W, b, X, 4, rounded, allowed=np.zeros(90, bool)) == [{}] * 40


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_own_sample_or_neuron_only(rounded, bad):
    W, b, X = draw(100, 40, 16, seed=7)
    clean = select(W, b, X, 4, rounded)
    broken = X.clone()
    broken[3, 2] = bad
    found = select(W, b, broken, 4, rounded)
    assert found[:3] + found[4:] == clean[:3] + clean[4:]
    weights = W.clone()
    weights[11] = bad
    for own, before in zip(select(weights, b, X, 4, rounded), clean, strict=True):
        if 11 not in before and 11 not in own:
            assert own == before


@pytest.mark.parametrize("seed", range(5))
def test_bound_holds_for_every_product(seed):
    """Delivered in bf16, against float64; with lengths over many decades."""
    W, b, X = draw(300, 60, 30, seed=seed, lengths=seed > 0)
    factors = Factors(W, b, X, True)
    delivered = torch.mm(factors.left, factors.right.T).double()
    exact = W.double() @ X.double().T + b.double()[:, None]
    share = (delivered - exact).abs() / factors.bound
    assert float(share.max()) <= 1
    assert float(share.max()) > 0.02  # it is no empty bound


def test_step_is_the_same_with_and_without_bf16():
    W, b, X = draw(500, 200, 64, seed=9)
    W /= W.norm(dim=1, keepdim=True)
    parameters = Parameters(W, torch.ones(500), b, torch.zeros(64))
    steps = [SparseEngine(TopK(5), "relu", 1, bf16=bf16).step(parameters, X) for bf16 in (True, False)]
    assert steps[0].loss == steps[1].loss
    for name, value in steps[0].gradients.tensors().items():
        assert torch.equal(value, steps[1].gradients.tensors()[name])
