"""The training step computed from the active pairs only: the same numbers as the dense step, far cheaper.

A neuron with activation frequency p is active on p N of the N samples of a batch. Encoder products
are made block by block, the active pairs (m, l) are taken out while a block is still in cache, and
everything after that (decoder, residual, gradients) is a sum over the pairs:

    residual_l = sum_m a_m phi_ml w_m + b_pre - x_l,      u_ml = w_m . residual_l
    dW_m = 1/N sum_l [a_m phi_ml residual_l + (a_m u_ml + penalty_m) (x_l - b_pre)]  (+ the norm's share of L1)
    da_m = 1/N sum_l phi_ml u_ml,        db_m = 1/N sum_l (a_m u_ml + penalty_m)      (ReLU only)
    db_pre = 1/N sum_l residual_l - sum_m db_m w_m

Engines: `simulator.sparse.SparseEngine` (numba, CPU), `TorchEngine` (torch alone, any device). The oracle of both is
`simulator.sae.reference_step`. An engine owns its buffers, so the gradients that it hands out are
valid until its next step.
"""

import importlib.metadata
import importlib.util
from typing import Literal, Protocol

import torch
from torch import Tensor

from simulator.errors import RequestError
from simulator.methods import L1, Method, TopK
from simulator.pairs import PairsEngine, pairs_pay
from simulator.sae import Activation, Parameters, Step, active_mask, auxiliary_mask, reference_step

EngineName = Literal["auto", "sparse", "pairs", "torch", "reference"]


class Engine(Protocol):
    """One training step: loss, gradients and activation statistics of a batch."""

    name: str

    def step(self, parameters: Parameters, X: Tensor, dead: Tensor | None = None) -> Step:
        """See `simulator.sae.reference_step`; X: (N, d)."""
        ...


class ReferenceEngine:
    """Dense autograd; the oracle, and what the others are measured against."""

    name = "reference"

    def __init__(self, method: Method, activation: Activation) -> None:
        self.method = method
        self.activation: Activation = activation

    def step(self, parameters: Parameters, X: Tensor, dead: Tensor | None = None) -> Step:
        return reference_step(parameters, X, self.method, self.activation, dead)


class TorchEngine:
    """Dense products without autograd, in torch operations alone: any device, any frequency.

    Five products of size N x M x d (encoder, decoder, u, and two for dW) where autograd makes six
    and keeps every intermediate.
    """

    name = "torch"

    def __init__(self, method: Method, activation: Activation) -> None:
        self.method, self.activation = method, activation

    def step(self, parameters: Parameters, X: Tensor, dead: Tensor | None = None) -> Step:
        W, a, b, b_pre = parameters.W, parameters.a, parameters.b, parameters.b_pre
        method, N = self.method, X.shape[0]
        centred = X - b_pre
        y = centred @ W.T
        magnitude = y
        if self.activation == "relu":
            magnitude = y = y.add_(b)
        else:
            y = y + b
        mask = active_mask(y, method)
        phi = magnitude * mask
        residual = ((phi * a) @ W).sub_(centred)
        norms = W.norm(dim=1) if isinstance(method, L1) else None

        def gradients(phi: Tensor, mask: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            u = residual @ W.T
            grad_a = (phi * u).sum(dim=0)
            slope = u.mul_(a)
            if norms is not None and isinstance(method, L1):
                slope += method.weight * norms
            slope *= mask
            grad_s = slope.sum(dim=0)
            grad_W = slope.T @ centred + (phi * a).T @ residual
            return grad_W, grad_a, grad_s, grad_s @ W

        grad_W, grad_a, grad_s, pull = gradients(phi, mask, residual)
        if norms is not None and isinstance(method, L1):
            grad_W += (method.weight * phi.sum(dim=0) / norms.clamp(min=1e-30))[:, None] * W
        if isinstance(method, TopK) and method.auxiliary_k and dead is not None and bool(dead.any()):
            spare_mask = auxiliary_mask(y, method, dead)
            spare = magnitude * spare_mask
            miss = ((spare * a) @ W).add_(residual).mul_(method.auxiliary_weight)
            extra = gradients(spare, spare_mask, miss)
            grad_W, grad_a, grad_s, pull = (
                grad_W + extra[0],
                grad_a + extra[1],
                grad_s + extra[2],
                pull + extra[3],
            )
        loss = float(residual.square().sum() / (2 * N))
        grad_b = grad_s / N if self.activation == "relu" else torch.zeros_like(b)
        grad_pre = (residual.sum(dim=0) - pull) / N
        maxima = (y * mask).amax(dim=0)
        return Step(loss, Parameters(grad_W / N, grad_a / N, grad_b, grad_pre), mask.sum(dim=0), maxima)


def numba_available() -> bool:
    """Whether the compiled engine can be used at all."""
    return importlib.util.find_spec("numba") is not None


def numba_version() -> str | None:
    """Version of numba, which computes the sparse step; None where it is not installed."""
    return importlib.metadata.version("numba") if numba_available() else None


def make_engine(
    name: EngineName,
    method: Method,
    activation: Activation,
    device: torch.device,
    threads: int,
    neurons: int = 0,
    batch: int = 0,
) -> Engine:
    """The engine of that name; "auto" takes the sparse one on a CPU with numba, else torch."""
    if name == "auto":
        # Selecting k of M has a price for every neuron: with k above M / 8 the dense step is faster. So it is where
        # a step is so small that the calls themselves cost more than the sums.
        if isinstance(method, TopK):
            many = method.k * 8 > neurons > method.k
        else:
            many = 0 < neurons * batch <= 2048
        if device.type == "cpu":
            name = "sparse" if numba_available() and not many else "torch"
        else:
            name = "pairs" if pairs_pay(method, neurons, batch) else "torch"
    if name == "sparse":
        if device.type != "cpu":
            raise RequestError(f"engine sparse runs on the CPU, not on {device.type}; take torch or auto")
        if not numba_available():
            raise RequestError("engine sparse needs the package numba; install it or take torch")
        from simulator.sparse import SparseEngine

        return SparseEngine(method, activation, threads)
    if name == "pairs":
        if isinstance(method, TopK):
            raise RequestError("engine pairs has no TopK; take torch or auto")
        return PairsEngine(method, activation)
    if name == "torch":
        return TorchEngine(method, activation)
    if name == "reference":
        return ReferenceEngine(method, activation)
    raise RequestError(f"unknown engine {name!r}; there are auto, sparse, pairs, torch and reference")
