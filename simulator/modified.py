"""Modified BA: the algorithm that the recovery theorem of Chen et al. 2025 (arXiv:2506.14002) speaks of.

One group of neurons, a fixed common bias b = -beta with beta = Phibar^{-1}(p), spherical gradient descent from a
uniform start, and an output scale a -> 0. With f(x) = sum_m a w_m phi_b(u_m), u_m = <w_m, x>, the loss is

    1/2 ||f(x) - x||^2 = 1/2 ||x||^2 - a sum_m u_m phi_b(u_m) + O(a^2),

so for a -> 0 the neurons decouple and neuron m ascends E[u phi_b(u)], whose gradient is

    g_m = E[psi(u_m) x],   psi(u) = d/du [u phi_b(u)] = phi_b(u) + u phi_b'(u),
    w_m <- (w_m + eta g_m) / ||w_m + eta g_m||.

In the large-step regime (eta E|psi| >> 1) features are found in 2 to 3 steps; eta = inf is w <- g / ||g||. Inputs keep
their scale: with unit rows of H and v_i ~ N(0, I_d) a unit neuron sees u ~ N(0, 1), which is what b is set for. The
mean E x attracts all neurons; `centred` takes it off.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from simulator.checks import real, whole
from simulator.errors import RequestError
from simulator.training import start_directions

MOST_PRODUCTS = 1 << 38
"""Supports times neurons times dimensions per step of the enumerated gradient that are still accepted."""


class Gate(Protocol):
    """phi_b as a function of the score u and the threshold beta = -b."""

    def value(self, u: Tensor, beta: float) -> Tensor:
        """phi_b(u)."""
        ...

    def psi(self, u: Tensor, beta: float) -> Tensor:
        """d/du [u phi_b(u)]."""
        ...


@dataclass(frozen=True)
class JumpGate:
    """JumpReLU: phi_b(u) = u 1(u > beta), the bias only gates; psi(u) = 2 u 1(u > beta)."""

    def value(self, u: Tensor, beta: float) -> Tensor:
        """u where u > beta, else 0."""
        return torch.where(u > beta, u, 0)

    def psi(self, u: Tensor, beta: float) -> Tensor:
        """2 u where u > beta, else 0 (the jump itself has no gradient)."""
        return torch.where(u > beta, 2 * u, 0)


@dataclass(frozen=True)
class SmoothJumpGate:
    """phi_b(u) = u S(k (u - beta)) with S the logistic function; JumpReLU as k -> infinity."""

    sharpness: float = 20.0
    """k."""

    def __post_init__(self) -> None:
        real("sharpness", self.sharpness, 0, open_low=True)

    def value(self, u: Tensor, beta: float) -> Tensor:
        """u S(k (u - beta))."""
        return u * torch.sigmoid(self.sharpness * (u - beta))

    def psi(self, u: Tensor, beta: float) -> Tensor:
        """2 u S + k u^2 S (1 - S)."""
        share = torch.sigmoid(self.sharpness * (u - beta))
        return 2 * u * share + self.sharpness * u * u * share * (1 - share)


@dataclass(frozen=True)
class SoftplusGate:
    """phi_b(u) = log(1 + exp(k (u - beta))) / k, a smooth ReLU; the bias also shifts."""

    sharpness: float = 20.0
    """k."""

    def __post_init__(self) -> None:
        real("sharpness", self.sharpness, 0, open_low=True)

    def value(self, u: Tensor, beta: float) -> Tensor:
        """softplus(k (u - beta)) / k."""
        return torch.nn.functional.softplus(self.sharpness * (u - beta)) / self.sharpness

    def psi(self, u: Tensor, beta: float) -> Tensor:
        """phi_b(u) + u S(k (u - beta))."""
        return self.value(u, beta) + u * torch.sigmoid(self.sharpness * (u - beta))


@dataclass(frozen=True)
class ModifiedBA:
    """The settings of Modified BA."""

    p: float
    """Target frequency; fixes the common bias -Phibar^{-1}(p) for ever."""
    neurons: int
    """M."""
    steps: int = 2
    """T; 1 / sigma in the theorem."""
    eta: float = math.inf
    """Step size; inf: w <- g / ||g||."""
    gate: Gate = field(default_factory=JumpGate)
    """The activation."""
    centred: bool = True
    """Whether the mean of the inputs is taken off: exactly where supports are enumerated, else that of the samples."""
    samples: int = 16_384
    """Fresh samples per step, where they are drawn."""

    def __post_init__(self) -> None:
        real("target frequency p", self.p, 0, 0.5, open_low=True, open_high=True)
        whole("neurons", self.neurons, 1)
        whole("steps", self.steps, 0)
        whole("samples", self.samples, 2)
        if not self.eta > 0:
            raise RequestError(f"eta = {self.eta} must be above 0; inf is the large-step limit")

    @property
    def beta(self) -> float:
        """Threshold Phibar^{-1}(p) = -b."""
        return -float(ndtri(self.p))


@dataclass(frozen=True)
class ModifiedFit:
    """W after training and before, (M, d), both of unit rows; `silent`: neurons that never fired in the last step;
    `history`: what the observer returned, one entry per step from 0 on."""

    W: np.ndarray
    W_start: np.ndarray
    silent: int
    history: list[Mapping[str, float]]


Observer = Callable[[int, np.ndarray], Mapping[str, float]]


def fit_modified(source: Any, method: ModifiedBA, seed: int, *, observe: Observer | None = None) -> ModifiedFit:
    """Modified BA on fresh samples: batch t of the source is step t.

    Args:
        source: a `WorldStream`, or any source of batches.
        method: settings.
        seed: of the uniform start, the stream "initialisation" that `simulator.fit` uses too.
        observe: called with (step, W) before the first and after every step.

    Cost: 4 `samples` M d operations a step; memory that of W and of one block.
    """

    def inputs(step: int) -> Tensor:
        X = torch.as_tensor(source.batch(step, method.samples))
        return X - X.mean(dim=0) if method.centred else X

    return _descend(inputs, source.d, method, seed, observe)


def population_fit(
    V: np.ndarray, s: int, method: ModifiedBA, seed: int, *, observe: Observer | None = None
) -> ModifiedFit:
    """Modified BA with the exact population gradient: all C(n, s) supports, equally likely, coefficients 1 / sqrt(s).

    Args:
        V: dictionary (n, d).
        s: active features.
        method: settings; `samples` plays no part.
        seed, observe: as in `fit_modified`.

    Raises:
        RequestError: too many supports for the number of neurons.
    """
    X = torch.from_numpy(population_inputs(V, s, method.centred, method.neurons).astype(np.float32))
    return _descend(lambda step: X, V.shape[1], method, seed, observe)


def population_inputs(V: np.ndarray, s: int, centred: bool, neurons: int = 1) -> np.ndarray:
    """All C(n, s) inputs sum_{j in S} v_j / sqrt(s), less their mean where `centred`; shape (C(n, s), d)."""
    n, d = V.shape
    if whole("s", s, 1) > n:
        raise RequestError(f"s = {s} active features of n = {n}; take s <= n")
    count = math.comb(n, s)
    if count * neurons * d > MOST_PRODUCTS or count * d > 1 << 28:
        raise RequestError(
            f"C({n}, {s}) = {count} supports for {neurons} neurons are too many to enumerate; take samples instead"
        )
    supports = np.array(list(itertools.combinations(range(n), s)))
    X = V[supports[:, 0]].copy()
    for k in range(1, s):
        X += V[supports[:, k]]
    X /= math.sqrt(s)
    return X - math.sqrt(s) / n * V.sum(axis=0) if centred else X


def population_gradient(V: np.ndarray, s: int, W: np.ndarray, beta: float, gate: Gate, centred: bool) -> np.ndarray:
    """g_m = E[psi(<w_m, x>) x] over all supports, exact up to rounding in float64; shape (M, d)."""
    X = torch.from_numpy(population_inputs(V.astype(np.float64), s, centred, len(W)))
    return torch.cat(list(_gradients(torch.from_numpy(W.astype(np.float64)), X, beta, gate))).numpy()


def _gradients(W: Tensor, X: Tensor, beta: float, gate: Gate) -> Iterator[Tensor]:
    """mean psi(W X^T) X, a block of neurons at a time; a block of scores stays in the core's cache."""
    block = max(16, min(len(W), (1 << 20) // max(1, min(len(X), 2048))))
    for first in range(0, len(W), block):
        rows = W[first : first + block]
        total = torch.zeros_like(rows)
        for start in range(0, len(X), 2048):
            part = X[start : start + 2048]
            total += gate.psi(rows @ part.T, beta) @ part
        yield total / len(X)


@torch.no_grad()
def _descend(
    inputs: Callable[[int], Tensor], d: int, method: ModifiedBA, seed: int, observe: Observer | None
) -> ModifiedFit:
    start = start_directions(seed, method.neurons, d, "float32")
    W = torch.from_numpy(start.copy())
    history = [] if observe is None else [observe(0, W.numpy())]
    silent = 0
    for step in range(method.steps):
        X = inputs(step).to(W.dtype)
        first, silent = 0, 0
        for gradient in _gradients(W, X, method.beta, method.gate):
            rows = W[first : first + len(gradient)]
            moved = gradient if math.isinf(method.eta) else rows + method.eta * gradient
            length = moved.norm(dim=1, keepdim=True)
            silent += int((gradient.abs().amax(dim=1) == 0).sum())
            # A neuron that never fired has no direction to go.
            W[first : first + len(gradient)] = torch.where(length > 0, moved / length.clamp(min=1e-30), rows)
            first += len(gradient)
        if observe is not None:
            history.append(observe(step + 1, W.numpy()))
    return ModifiedFit(W.numpy(), start, silent, history)
