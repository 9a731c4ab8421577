"""Modified BA: gradients against autograd and a naive sum, symmetries, limits."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from simulator import Exactly, World
from simulator.errors import RequestError
from simulator.modified import (
    JumpGate,
    ModifiedBA,
    SmoothJumpGate,
    SoftplusGate,
    fit_modified,
    population_fit,
    population_gradient,
    population_inputs,
)

V = np.random.default_rng(0).standard_normal((7, 5))
W = np.random.default_rng(1).standard_normal((4, 5))
W /= np.linalg.norm(W, axis=1, keepdims=True)


@pytest.mark.parametrize("gate", [SmoothJumpGate(8.0), SoftplusGate(8.0)])
def test_psi_is_the_derivative_of_u_phi(gate):
    u = torch.linspace(-2, 4, 61, dtype=torch.float64, requires_grad=True)
    (u * gate.value(u, 1.1)).sum().backward()
    torch.testing.assert_close(u.grad, gate.psi(u.detach(), 1.1))


def test_jumprelu_is_the_sharp_limit():
    u = torch.tensor([-1.0, 0.5, 1.0, 1.5, 3.0])
    torch.testing.assert_close(SmoothJumpGate(2000.0).psi(u, 1.2), JumpGate().psi(u, 1.2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(JumpGate().psi(u, 1.2), torch.tensor([0.0, 0, 0, 3, 6]))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("gate", [JumpGate(), SmoothJumpGate(5.0)])
def test_population_gradient_is_the_naive_sum(centred, gate):
    s, beta = 3, 0.8
    supports = list(itertools.combinations(range(7), s))
    X = np.array([V[list(support)].sum(axis=0) / math.sqrt(s) for support in supports])
    if centred:
        X = X - X.mean(axis=0)
    naive = np.zeros_like(W)
    for x in X:
        psi = gate.psi(torch.from_numpy(W @ x), beta).numpy()
        naive += psi[:, None] * x / len(X)
    np.testing.assert_allclose(population_gradient(V, s, W, beta, gate, centred), naive, rtol=1e-10, atol=1e-13)


def test_it_is_the_gradient_of_the_loss_at_a_small_output_scale():
    """-dL/dw / a -> g as a -> 0, by autograd of 1/2 ||a sum w phi - x||^2 over all supports."""
    a, beta, gate = 1e-7, 0.5, SmoothJumpGate(6.0)
    X = torch.from_numpy(population_inputs(V, 2, True))
    weights = torch.from_numpy(W.copy()).requires_grad_()
    output = a * gate.value(X @ weights.T, beta) @ weights
    (0.5 * (output - X).square().sum(dim=1).mean()).backward()
    assert weights.grad is not None
    np.testing.assert_allclose(
        -weights.grad.numpy() / a, population_gradient(V, 2, W, beta, gate, True), rtol=1e-5, atol=1e-7
    )


def test_centred_inputs_have_mean_zero():
    np.testing.assert_allclose(population_inputs(V, 3, True).mean(axis=0), 0, atol=1e-13)
    assert np.linalg.norm(population_inputs(V, 3, False).mean(axis=0)) > 0.1


def test_rotating_the_world_rotates_the_gradient():
    Q = np.linalg.qr(np.random.default_rng(2).standard_normal((5, 5)))[0]
    plain = population_gradient(V, 2, W, 0.6, JumpGate(), True)
    np.testing.assert_allclose(population_gradient(V @ Q, 2, W @ Q, 0.6, JumpGate(), True), plain @ Q, atol=1e-10)


def test_the_order_of_features_does_not_matter():
    order = np.random.default_rng(3).permutation(7)
    plain = population_gradient(V, 2, W, 0.6, JumpGate(), True)
    np.testing.assert_allclose(population_gradient(V[order], 2, W, 0.6, JumpGate(), True), plain, atol=1e-12)


def test_a_large_step_is_the_infinite_one():
    method = ModifiedBA(0.1, 50, 2)
    one, two = population_fit(V, 2, method, 0), population_fit(V, 2, replace(method, eta=1e9), 0)
    moved = np.abs(one.W - one.W_start).max(axis=1) > 0
    np.testing.assert_allclose(one.W[moved], two.W[moved], atol=1e-4)


def test_silent_neurons_stay():
    """Threshold above every score: nothing fires."""
    fit = population_fit(V * 1e-3, 2, ModifiedBA(0.01, 20, 3), 0)
    np.testing.assert_array_equal(fit.W, fit.W_start)
    assert fit.silent == 20


def test_samples_converge_to_the_population():
    """One neuron, 2^18 samples: each coordinate within 5 standard errors (false alarm < 1e-5; sees 2 % errors)."""
    world = World(7, 5, Exactly(2))
    stream = world.stream(0, dtype=np.float64)
    X = stream.batch(0, 1 << 18).numpy()
    u = X @ W[0]
    terms = np.where(u > 0.5, 2 * u, 0)[:, None] * X
    error = terms.std(axis=0) / math.sqrt(len(X))
    exact = population_gradient(stream.V, 2, W[:1], 0.5, JumpGate(), False)[0]
    assert (np.abs(terms.mean(axis=0) - exact) < 5 * error).all()
    assert (5 * error < 0.05 * np.linalg.norm(exact)).all()


def test_one_large_step_finds_features_where_an_untrained_network_has_none():
    world = World(48, 40, Exactly(2))
    method = ModifiedBA(0.01, 8_192, 1, samples=20_000)
    features = world.features(0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)

    def observe(step, W):
        return {"recovered": float(((unit @ W.T).max(axis=1) > 0.8).mean())}

    sampled = fit_modified(world.stream(0), method, 0, observe=observe)
    exact = population_fit(features, 2, method, 0, observe=observe)
    for fit in (sampled, exact):
        assert fit.history[0]["recovered"] < 0.1
        assert fit.history[1]["recovered"] > 0.9
    np.testing.assert_array_equal(sampled.W_start, exact.W_start)
    np.testing.assert_allclose(np.linalg.norm(exact.W, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("change", [{"p": 0.6}, {"neurons": 0}, {"eta": 0.0}, {"samples": 1}, {"steps": -1}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(RequestError):
        replace(ModifiedBA(0.1, 10), **change)


def test_absurd_enumerations_are_refused():
    with pytest.raises(RequestError, match="supports"):
        population_inputs(np.ones((400, 4)), 6, True)
