"""The bf16 screen never loses a pair, on inputs built to defeat it; and no number depends on the screen."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import screening
from simulator.methods import BA, L1, TopK
from simulator.sae import Parameters, reference_step
from simulator.screening import Batch
from simulator.sparse import SparseEngine


def adversarial(kind, rows, d, rng):
    """Rows on which rounding to bf16 errs as much as it can."""
    A = rng.standard_normal((rows, d))
    if kind == "midpoints":  # every entry just beside the middle of two bf16 numbers, errors of one sign
        exponent = np.floor(np.log2(np.abs(A)))
        A = np.sign(A) * 2.0**exponent * (1 + 2.0**-8 * (1 + 1e-4 * rng.choice([-1, 1], A.shape)))
        A = np.abs(A) if rng.random() < 0.5 else A
    elif kind == "heavy tails":
        A = rng.standard_t(1.1, (rows, d)) ** 3
    elif kind == "near one-hot":
        A *= 1e-6
        A[np.arange(rows), rng.integers(0, d, rows)] = 1
    elif kind == "tiny":
        A *= 1e-22
    elif kind == "denormal":
        A *= 10.0 ** rng.uniform(-42, -36, A.shape)
    elif kind == "huge":
        A *= 1e17
    return torch.tensor(A, dtype=torch.float32)


KINDS = ("normal", "midpoints", "heavy tails", "near one-hot", "tiny", "denormal", "huge")


def pairs_of(engine):
    """(neuron, sample, value) of every active pair of the last step."""
    start, stop, sample, value = engine.pairs()
    found = [(m, sample[i], value[i]) for m in range(len(start)) for i in range(start[m], stop[m])]
    return np.array(found, dtype=np.float64).reshape(-1, 3)


@pytest.mark.parametrize("kind_w", KINDS)
@pytest.mark.parametrize("kind_x", KINDS)
def test_margin_covers_what_the_product_delivers(kind_w, kind_x):
    # The proof's inequality itself, for every pair: unrounded bf16 product against the exact one.
    rng = np.random.default_rng(KINDS.index(kind_w) * 10 + KINDS.index(kind_x))
    rows, N, d = 64, 48, 40
    W, X = adversarial(kind_w, rows, d, rng), adversarial(kind_x, N, d, rng)
    rounded, norm, lost = np.empty((rows, d), np.int16), np.empty(rows, np.float32), np.empty(rows, np.float32)
    screening.round_rows(W.numpy(), np.empty(d, np.float32), rounded, norm, lost)
    low = torch.from_numpy(rounded).view(torch.bfloat16)
    # Rounded to nearest even, as torch does, but for numbers that a processor may read as zero.
    expected = torch.where(W.bfloat16().abs().float() < 2.0**-126, 0.0, W.bfloat16().float())
    assert torch.equal(low.float(), expected)
    assert (norm >= W.double().norm(dim=1).numpy()).all()
    assert (lost >= (W.double() - low.double()).norm(dim=1).numpy()).all()
    batch = Batch(X, rounded=True)
    cut = np.empty(rows, np.float32)
    delivered = torch.empty(rows, N, dtype=torch.bfloat16)
    torch.mm(low, batch.product.T, out=delivered)
    exact = W.double() @ X.double().T
    for j in range(N):
        # The threshold just below the exact value: the pair is active, so it has to be a candidate.
        bias = -np.nextafter(exact[:, j].numpy().astype(np.float32), np.float32(-np.inf))
        screening.cuts(0, bias, norm, lost, batch.missed, batch.length, d, 2.0**-23, cut)
        listed = np.empty(rows * N, np.int32)
        count = screening.list_bf16(delivered.view(torch.int16).numpy(), cut, rows * N, listed)
        assert set(np.arange(rows) * N + j) <= set(listed[:count].tolist())


def test_the_margin_is_not_vacuous():
    # Unit rows in 100 dimensions at the threshold of p = 1e-3: fewer than 2 candidates for each active pair.
    rng = np.random.default_rng(1)
    W, X = (torch.nn.functional.normalize(adversarial("normal", rows, 100, rng)) for rows in (4096, 512))
    b = np.full(4096, -0.305, np.float32)
    rounded, norm, lost = np.empty((4096, 100), np.int16), np.empty(4096, np.float32), np.empty(4096, np.float32)
    screening.round_rows(W.numpy(), np.empty(100, np.float32), rounded, norm, lost)
    batch, cut, listed = Batch(X, True), np.empty(4096, np.float32), np.empty(4096 * 512, np.int32)
    screening.cuts(0, b, norm, lost, batch.missed, batch.length, 100, 2.0**-23, cut)
    Z = torch.from_numpy(rounded).view(torch.bfloat16) @ batch.product.T
    count = screening.list_bf16(Z.view(torch.int16).numpy(), cut, listed.size, listed)
    active = int((W @ X.T > 0.305).sum())
    assert 1000 < active <= count < 2 * active


@pytest.mark.parametrize("kind_w", KINDS[:5])
@pytest.mark.parametrize("kind_x", KINDS[:5])
@settings(deadline=None, max_examples=8)
@given(
    M=st.integers(1, 300),
    d=st.integers(1, 70),
    N=st.integers(1, 90),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([1.0, 0.3, 0.02, 0.001]),
    near_zero=st.booleans(),
    normalised=st.booleans(),
)
def test_no_number_depends_on_the_screen(kind_w, kind_x, M, d, N, seed, share, near_zero, normalised):
    rng = np.random.default_rng(seed)
    W, X = adversarial(kind_w, M, d, rng), adversarial(kind_x, N, d, rng)
    if normalised:
        W, X = torch.nn.functional.normalize(W, eps=1e-30), torch.nn.functional.normalize(X, eps=1e-30)
    z = (W @ X.T).flatten()
    # Thresholds on pre-activations that occur, or around zero where 16-bit integers do not order numbers.
    level = torch.quantile(z, 1 - share)
    b = -z[torch.from_numpy(rng.integers(0, len(z), M))] if share < 1 else torch.full((M,), -float(level))
    if near_zero:
        b = torch.tensor(rng.uniform(-1, 1, M) * 1e-3 * float(z.abs().max()), dtype=torch.float32)
    parameters = Parameters(W, torch.full((M,), 0.5), b, torch.zeros(d))
    steps, pairs = [], []
    for bf16, entries in ((False, 1 << 12), (True, 1 << 12)):
        engine = SparseEngine(BA(0.1), "jumprelu", block_entries=entries, bf16=bf16)
        engine.step(parameters, X)
        step = engine.step(parameters, X)
        steps.append((step.gradients.W.clone(), step.counts.clone(), step.maxima.clone()))
        pairs.append(pairs_of(engine))
    for plain, screened in zip(*steps, strict=True):
        np.testing.assert_array_equal(plain, screened)
    np.testing.assert_array_equal(*pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_active_set_is_that_of_the_recheck_for_any_block_and_team(dtype):
    rng = np.random.default_rng(4)
    W, X = (torch.nn.functional.normalize(torch.tensor(rng.standard_normal((k, 20)), dtype=dtype)) for k in (700, 90))
    parameters = Parameters(
        W, torch.ones(700).to(dtype), torch.full((700,), -0.5, dtype=dtype), torch.zeros(20).to(dtype)
    )
    kept = []
    for threads, entries in ((1, 1 << 18), (1, 1 << 10), (2, 1 << 12), (3, 1)):
        engine = SparseEngine(BA(0.1), "jumprelu", threads, block_entries=entries)
        engine.step(parameters, X)
        kept.append(pairs_of(engine))
    assert len(kept[0]) > 100
    # Dense blocks are not met at this frequency, so nothing may differ.
    for other in kept[1:]:
        np.testing.assert_array_equal(other, kept[0])


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["W", "X"])
def test_not_finite_numbers_are_seen(bf16, bad, where):
    rng = np.random.default_rng(2)
    W, X = (torch.nn.functional.normalize(adversarial("normal", k, 12, rng)) for k in (50, 40))
    (W if where == "W" else X)[3, 5] = bad
    parameters = Parameters(W, torch.ones(50), torch.full((50,), -0.6), torch.zeros(12))
    ours = SparseEngine(BA(0.1), "jumprelu", bf16=bf16).step(parameters, X)
    theirs = reference_step(parameters, X, BA(0.1), "jumprelu")
    assert torch.equal(ours.counts, theirs.counts)
    if where == "X" or np.isposinf(bad) or np.isneginf(bad):
        assert not np.isfinite(ours.loss)
    else:
        # A neuron that is NaN is never active, so the loss stays finite: `fit` looks at the parameters too.
        assert np.isfinite(ours.loss)


@pytest.mark.parametrize("method", [BA(0.1), L1(0.1), TopK(200)])
@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
@pytest.mark.parametrize("threads", [1, 2])
def test_dense_and_sparse_blocks_together(method, activation, threads):
    # Half of the neurons fire on most samples, half on few: blocks of both kinds, and some that change kind.
    rng = np.random.default_rng(7)
    M, d, N = 200, 24, 130
    W, X = (torch.nn.functional.normalize(torch.tensor(rng.standard_normal((k, d)))) for k in (M, N))
    engine = SparseEngine(method, activation, threads, block_entries=10 * N)
    for flip in (False, True):
        b = torch.where((torch.arange(M) % 100 < 50) == flip, 0.2, -0.45).double()
        parameters = Parameters(W, torch.rand(M, generator=torch.Generator().manual_seed(1)).double(), b, 0.1 * X[0])
        ours, theirs = engine.step(parameters, X), reference_step(parameters, X, method, activation)
        kinds = {kind for part in engine.dense for kind in part}
        assert kinds == {True, False}
        for name, expected in theirs.gradients.tensors().items():
            torch.testing.assert_close(ours.gradients.tensors()[name], expected, rtol=1e-12, atol=1e-14)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-12)
        torch.testing.assert_close(ours.maxima, theirs.maxima, rtol=0, atol=1e-13)
        assert torch.equal(ours.counts, theirs.counts)


def test_a_crowded_screen_gives_way():
    # Thresholds so near zero that bf16 cannot tell: the block is listed from float32 products instead.
    rng = np.random.default_rng(3)
    W, X = (torch.nn.functional.normalize(adversarial("normal", k, 64, rng)) for k in (256, 128))
    parameters = Parameters(W, torch.ones(256), torch.full((256,), -1e-4), torch.zeros(64))
    engine = SparseEngine(BA(0.1), "jumprelu", bf16=True)
    step = engine.step(parameters, X)
    assert engine.crowded == [[True]]
    assert engine.dense == [[True]]
    torch.testing.assert_close(step.counts, reference_step(parameters, X, BA(0.1), "jumprelu").counts)


def candidates(W, X, thresholds):
    """Pairs (neuron * N + sample) that the bf16 screen lists at these thresholds (one per neuron)."""
    rows, d = W.shape
    rounded, norm, lost = np.empty((rows, d), np.int16), np.empty(rows, np.float32), np.empty(rows, np.float32)
    screening.round_rows(W.numpy(), np.empty(d, np.float32), rounded, norm, lost)
    batch, cut, listed = Batch(X, True), np.empty(rows, np.float32), np.empty(rows * len(X) + 64, np.int32)
    screening.cuts(0, -thresholds, norm, lost, batch.missed, batch.length, d, 2.0**-23, cut)
    Z = torch.empty(rows, len(X), dtype=torch.bfloat16)
    torch.mm(torch.from_numpy(rounded).view(torch.bfloat16), batch.product.T, out=Z)
    return set(listed[: screening.list_bf16(Z.view(torch.int16).numpy(), cut, listed.size, listed)].tolist())


def test_all_of_the_error_in_the_weights():
    # x is exact in bf16; entries of w lie just below a midpoint and are rounded down, w = c x: w~.x = 255/256 + 2^-12,
    # delivered as 255/256, while w.x lies above 1, a bf16 number. Only |w - w~| |x| covers the gap.
    x, w = torch.full((1, 65), 255 / 256 / 8), torch.full((1, 65), (1 + 2.0**-8 * (1 - 2.0**-12)) / 8)
    x[0, 64] = w[0, 64] = 2.0**-6
    exact = float((w.double() * x.double()).sum())
    assert float((w.bfloat16().double() * x.double()).sum()) < 0.9965 < 1.0001 < exact
    assert candidates(w, x, np.array([1.0001], np.float32)) == {0}


def test_the_product_rounded_down_when_it_is_delivered():
    # w, x exact in bf16, z = 1 + 0.15 of a step: delivered as 1, which the cut has to admit.
    w, x = torch.ones(1, 2), torch.tensor([[1.0, 2.0**-10]])
    assert candidates(w, x, np.array([1 + 2.0**-11], np.float32)) == {0}
    # And a threshold clearly above is not met: the screen does reject.
    assert candidates(w, x, np.array([1.05], np.float32)) == set()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("d", [3, 100, 700])
def test_a_threshold_just_below_the_value_of_a_pair(bf16, d):
    # One unit in the last place below the recheck's own value: the pair is active whatever the product's sum says.
    rng = np.random.default_rng(d)
    W, X = (torch.nn.functional.normalize(adversarial("normal", k, d, rng)) for k in (400, 60))
    network = [W, torch.ones(400), torch.full((400,), 9.0), torch.zeros(d)]
    engine = SparseEngine(BA(0.1), "jumprelu", bf16=bf16)
    z = np.empty((400, 60), np.float32)
    everything = np.arange(400 * 60, dtype=np.int32)
    starts, stops, maxima = np.zeros(400, np.int64), np.zeros(400, np.int64), np.zeros(400, np.float32)
    screening.recheck(
        everything, everything.size, everything.size, 0, 400, 60, W.numpy(), X.numpy(), network[2].numpy(), False, 0,
        np.zeros(400 * 60, np.int32), z.reshape(-1), 0, starts, stops, maxima,
    )  # fmt: skip
    largest = z.max(axis=1)
    network[2] = torch.from_numpy(-np.nextafter(largest, np.float32(-np.inf)))
    assert engine.step(Parameters(*network), X).counts.min() >= 1
