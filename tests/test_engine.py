"""Every engine against the dense autograd reference, on the same parameters and batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine import make_engine
from simulator.errors import RequestError
from simulator.methods import BA, L1, BatchTopK, Gated, JumpReLU, Matryoshka, TopK
from simulator.pairs import PairsEngine
from simulator.sae import Parameters, Step, decode, encode, reference_step
from simulator.sparse import SparseEngine

METHODS = {
    "threshold": BA(0.1),
    "topk": TopK(3),
    "topk, all neurons": TopK(10_000),
    "topk, auxiliary": TopK(2, auxiliary_k=4),
    "l1": L1(0.1),
    "batch topk": BatchTopK(2.3),
    "batch topk, all pairs": BatchTopK(10_000),
    "batch topk, auxiliary": BatchTopK(1.6, auxiliary_k=4),
    "matryoshka": Matryoshka(3.2),
    "matryoshka, auxiliary": Matryoshka(1.5, auxiliary_k=3),
    "jumprelu": JumpReLU(0.05, bandwidth=0.2),
    "gated": Gated(0.05),
}
CPU = torch.device("cpu")


def network(M, d, N, seed, bias=-0.3, unit=True, shifted=True, dtype=torch.float64, method=None):
    """Random parameters and a batch. In float64 no pre-activation lies within rounding of its threshold."""
    draw = np.random.default_rng(seed)
    W = draw.standard_normal((M, d))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    if not unit:
        W *= draw.uniform(0.2, 3.0, (M, 1))
    X = draw.standard_normal((N, d))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    b = np.full(M, bias) + draw.uniform(-0.05, 0.05, M)
    a = draw.uniform(0.05, 1.5, M)
    b_pre = 0.1 * draw.standard_normal(d) if shifted else np.zeros(d)
    own = {}
    if isinstance(method, JumpReLU):
        own = {"threshold": draw.uniform(0, 0.3, M)}
    if isinstance(method, Gated):
        a *= draw.choice([-1, 1], M)
        own = {"log_gain": 0.3 * draw.standard_normal(M), "magnitude_bias": 0.2 * draw.standard_normal(M)}
    own |= {"W": W, "a": a, "b": b, "b_pre": b_pre}
    return Parameters(**{k: torch.tensor(v, dtype=dtype) for k, v in own.items()}), torch.tensor(X, dtype=dtype)


def assert_equal_steps(ours, theirs, tolerance):
    scale = max(float(v.abs().max()) for v in theirs.gradients.tensors().values())
    assert ours.loss == pytest.approx(theirs.loss, rel=tolerance)
    for name, expected in theirs.gradients.tensors().items():
        error = float((ours.gradients.tensors()[name] - expected).abs().max())
        own = float(expected.abs().max())
        assert error <= tolerance * max(own, 1e-6 * scale), f"{name}: {error} against {own}"
    assert torch.equal(ours.counts, theirs.counts)
    torch.testing.assert_close(ours.maxima, theirs.maxima, rtol=0, atol=10 * tolerance)
    assert (ours.smallest is None) == (theirs.smallest is None)
    if ours.smallest is not None:
        assert ours.smallest == pytest.approx(theirs.smallest, rel=10 * tolerance)


@pytest.mark.parametrize("name", ["sparse", "torch", "pairs"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
@settings(deadline=None, max_examples=12)
@given(
    M=st.integers(1, 90),
    d=st.integers(1, 40),
    N=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
    bias=st.sampled_from([-5.0, -0.6, -0.3, 0.0, 5.0]),
    unit=st.booleans(),
    shifted=st.booleans(),
)
def test_equals_the_reference(name, method, activation, M, d, N, seed, bias, unit, shifted):
    chosen = METHODS[method]
    if activation == "jumprelu" and isinstance(chosen, JumpReLU | Gated):
        bias = 0.0  # with it the biases of these stay at zero, or (Gated) it is refused by Training
    parameters, X = network(M, d, N, seed, bias, unit, shifted, method=chosen)
    if bias == 0 and isinstance(chosen, JumpReLU):
        parameters.b.zero_()
    if name == "pairs" and not isinstance(chosen, BA | L1):
        with pytest.raises(RequestError, match=f"no {type(chosen).__name__}"):
            make_engine(name, chosen, activation, CPU, threads=1)
        return
    if isinstance(chosen, TopK):
        chosen = TopK(min(chosen.k, M), chosen.auxiliary_k)
    dead = torch.from_numpy(np.random.default_rng(seed).random(M) < 0.4)
    expected = reference_step(parameters, X, chosen, activation, dead)
    engine = make_engine(name, chosen, activation, CPU, threads=1)
    other, Y = network(M, d, N, seed + 1, bias, unit, shifted, method=chosen)
    engine.step(other, Y, dead)  # a step before: nothing of it may be left in the buffers
    assert_equal_steps(engine.step(parameters, X, dead), expected, 1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bias", [-0.45, -0.1])
def test_float32_threads_and_several_blocks(threads, bias):
    parameters, X = network(1500, 24, 130, seed=5, bias=bias, dtype=torch.float32)
    exact, X64 = network(1500, 24, 130, seed=5, bias=bias)
    engine = SparseEngine(BA(0.1), "jumprelu", threads, block_entries=1 << 15)
    ours = engine.step(parameters, X)
    # The seed leaves every pre-activation at least 1e-6 away from zero, so both see the same pairs.
    y = (X64 - exact.b_pre) @ exact.W.T + exact.b
    assert float(y.abs().min()) > 1e-7
    assert_equal_steps(ours, reference_step(parameters, X, BA(0.1), "jumprelu"), 2e-5)


def test_repeatable_bit_by_bit_and_room_grows():
    parameters, X = network(800, 16, 512, seed=1, bias=0.5, dtype=torch.float32)  # nearly all active
    first = SparseEngine(BA(0.1), "jumprelu", 2)
    second = SparseEngine(BA(0.1), "jumprelu", 2)
    one = first.step(parameters, X)
    kept = one.gradients.W.clone()
    assert int(one.counts.sum()) > 0.9 * 800 * 512
    assert torch.equal(second.step(parameters, X).gradients.W, kept)
    assert torch.equal(first.step(parameters, X).gradients.W, kept)


def test_a_pre_activation_exactly_at_zero_is_not_active():
    # w = e_1, x = e_1 / 2, b = -1/2: y = 0 exactly, in every engine.
    parameters = Parameters(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]), torch.tensor([-0.5]), torch.zeros(2))
    X = torch.tensor([[0.5, 0.0], [0.75, 0.0]])
    for name in ("sparse", "torch", "reference"):
        step = make_engine(name, BA(0.1), "jumprelu", CPU, 1).step(parameters, X)
        assert step.counts.tolist() == [1]
        assert step.maxima.tolist() == [0.25]


def test_worked_gradient():
    # One neuron w = e_1, a = 1/2, b = -1/4, b_pre = 0; one sample x = (1, 1). y = 3/4 > 0, phi = z = 1.
    # f = (1/2, 0), residual = (-1/2, -1), loss = (1/4 + 1) / 2 = 5/8, u = w . residual = -1/2.
    # dW = a phi residual + a u x = (-1/4, -1/2) + (-1/4, -1/4) = (-1/2, -3/4).
    # da = phi u = -1/2; db_pre = residual - a u w = (-1/2 + 1/4, -1) = (-1/4, -1).
    parameters = Parameters(torch.tensor([[1.0, 0.0]]), torch.tensor([0.5]), torch.tensor([-0.25]), torch.zeros(2))
    for name in ("sparse", "torch", "reference"):
        step = make_engine(name, BA(0.1), "jumprelu", CPU, 1).step(parameters, torch.tensor([[1.0, 1.0]]))
        assert step.loss == 0.625
        assert step.gradients.W.tolist() == [[-0.5, -0.75]]
        assert step.gradients.a.tolist() == [-0.5]
        assert step.gradients.b_pre.tolist() == [-0.25, -1.0]
        assert step.maxima.tolist() == [0.75]


@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
@pytest.mark.parametrize("k", [None, 3])
def test_encode_and_decode_agree_with_the_step(activation, k):
    parameters, X = network(50, 8, 40, seed=3)
    W, a, b, b_pre = (v.numpy() for v in parameters.tensors().values())
    codes = encode(X.numpy(), W, b, b_pre, activation, k, block=200)
    step = reference_step(parameters, X, BA(0.1) if k is None else TopK(k), activation)
    residual = decode(codes, W, a, b_pre) - X.numpy()
    assert (residual**2).sum() / 80 == pytest.approx(step.loss, rel=1e-12)
    np.testing.assert_array_equal((codes > 0).sum(axis=0), step.counts)


@pytest.mark.parametrize("entries", [1, 64, 1 << 20])
def test_pairs_engine_in_blocks(entries):
    parameters, X = network(70, 8, 40, seed=2, bias=-0.4)
    expected = reference_step(parameters, X, BA(0.1), "jumprelu")
    assert_equal_steps(PairsEngine(BA(0.1), "jumprelu", entries).step(parameters, X), expected, 1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("name", ["pairs", "torch"])
@pytest.mark.parametrize("method", ["threshold", "l1"])
def test_on_a_gpu(name, method):
    parameters, X = network(700, 24, 130, seed=5, bias=-0.3)
    expected = reference_step(parameters, X, METHODS[method], "jumprelu")
    there = Parameters(*(v.cuda() for v in parameters.tensors().values()))
    step = make_engine(name, METHODS[method], "jumprelu", torch.device("cuda"), 1).step(there, X.cuda())
    home = Parameters(*(v.cpu() for v in step.gradients.tensors().values()))
    assert_equal_steps(Step(step.loss, home, step.counts.cpu(), step.maxima.cpu()), expected, 1e-12)


def test_auto_takes_what_is_faster():
    dense = make_engine("auto", TopK(40), "relu", CPU, 1, neurons=128)
    assert [dense.name, make_engine("auto", TopK(4), "relu", CPU, 1, neurons=128).name] == ["torch", "sparse"]
    assert make_engine("auto", BA(0.4), "jumprelu", CPU, 1, neurons=128).name == "sparse"
    assert make_engine("auto", BA(0.4), "jumprelu", CPU, 1, neurons=64, batch=32).name == "torch"
    gpu = torch.device("cuda")
    assert make_engine("auto", BA(1e-4), "jumprelu", gpu, 1, neurons=1 << 18, batch=512).name == "pairs"
    assert make_engine("auto", BA(0.1), "jumprelu", gpu, 1, neurons=1 << 18, batch=512).name == "torch"


@pytest.mark.parametrize("entries", [1, 130, 64 * 50, 1 << 18])
@pytest.mark.parametrize("method", [TopK(1), TopK(7), TopK(7, auxiliary_k=5)])
def test_topk_in_chunks_of_neurons(entries, method):
    parameters, X = network(300, 12, 130, seed=8, bias=-0.1)
    dead = torch.arange(300) % 3 == 0
    expected = reference_step(parameters, X, method, "relu", dead)
    engine = SparseEngine(method, "relu", 2, block_entries=entries)
    assert_equal_steps(engine.step(parameters, X, dead), expected, 1e-12)
