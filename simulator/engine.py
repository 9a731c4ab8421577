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
from simulator.methods import BA, GBA, L1, BatchTopK, Gated, JumpReLU, Method, TopK
from simulator.pairs import PairsEngine, pairs_pay
from simulator.sae import (
    Activation,
    Parameters,
    Step,
    active_mask,
    auxiliary_mask,
    reference_step,
    smallest_active,
)

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
        if isinstance(self.method, Gated):
            return gated_step(parameters, X, self.method)
        W, a, b, b_pre = parameters.W, parameters.a, parameters.b, parameters.b_pre
        method, N = self.method, X.shape[0]
        centred = X - b_pre
        y = centred @ W.T
        magnitude = y
        if self.activation == "relu":
            magnitude = y = y.add_(b)
        else:
            y = y + b
        mask = active_mask(y, method, parameters.threshold)
        phi = magnitude * mask
        levels = method.levels(W.shape[0]) if isinstance(method, BatchTopK) else [(0, W.shape[0])]
        residual = -centred
        misses: list[Tensor] = []
        for first, past in levels:
            residual = torch.addmm(residual, phi[:, first:past] * a[first:past], W[first:past])
            misses.append(residual)
        loss = float(residual.square().sum() / (2 * N))
        norms = W.norm(dim=1) if isinstance(method, L1) else None
        grad_W, grad_a = torch.empty_like(W), torch.empty_like(a)
        grad_s, grad_threshold = torch.empty_like(a), None
        total = torch.zeros_like(centred)
        pull = torch.zeros_like(b_pre)

        def gradients(rows: slice, phi: Tensor, mask: Tensor, miss: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """Of the neurons in `rows`, which see the residual `miss`: W, a, slopes, and a u for every pair."""
            u = miss @ W[rows].T
            for_a = (phi * u).sum(dim=0)
            slope = u.mul_(a[rows])
            if norms is not None and isinstance(method, L1):
                slope += method.weight * norms[rows]
            gated = slope * mask
            return gated.T @ centred + (phi * a[rows]).T @ miss, for_a, gated.sum(dim=0), slope

        # A neuron of one level is a part of that reconstruction and of every later one.
        for (first, past), miss in zip(reversed(levels), reversed(misses), strict=True):
            total += miss
            rows = slice(first, past)
            grad_W[rows], grad_a[rows], grad_s[rows], slope = gradients(rows, phi[:, rows], mask[:, rows], total)
            pull += grad_s[rows] @ W[rows]
            if isinstance(method, JumpReLU):
                bar = parameters.threshold
                assert bar is not None
                window = (y - bar).abs() < method.bandwidth / 2
                grad_threshold = -((slope * bar + method.weight) * window).sum(dim=0) / (method.bandwidth * N)
        grad_pre = total.sum(dim=0) - pull
        if norms is not None and isinstance(method, L1):
            grad_W += (method.weight * phi.sum(dim=0) / norms.clamp(min=1e-30))[:, None] * W
        if isinstance(method, TopK | BatchTopK) and method.auxiliary_k and dead is not None and bool(dead.any()):
            spare_mask = auxiliary_mask(y, method, dead)
            spare = magnitude * spare_mask
            miss = ((spare * a) @ W).add_(residual).mul_(method.auxiliary_weight)
            extra = gradients(slice(None), spare, spare_mask, miss)
            grad_W, grad_a, grad_s = grad_W + extra[0], grad_a + extra[1], grad_s + extra[2]
            grad_pre -= extra[2] @ W
        grad_b = grad_s / N if self.activation == "relu" else torch.zeros_like(b)
        maxima = (y * mask).amax(dim=0)
        found = Parameters(grad_W / N, grad_a / N, grad_b, grad_pre / N, grad_threshold)
        return Step(loss, found, mask.sum(dim=0), maxima, smallest=smallest_active(y, mask, method))


def gated_step(parameters: Parameters, X: Tensor, method: Gated) -> Step:
    """The step of `Gated` in dense products: two reconstructions from one product with the encoder."""
    W, a, b, b_pre = parameters.W, parameters.a, parameters.b, parameters.b_pre
    assert parameters.log_gain is not None and parameters.magnitude_bias is not None
    gain, N = parameters.log_gain.exp(), X.shape[0]
    centred = X - b_pre
    z = centred @ W.T
    gate = z + b
    size = gain * z + parameters.magnitude_bias
    opened = gate > 0
    mask = opened & (size > 0)
    phi, price_of = size * mask, gate * opened
    residual = ((phi * a) @ W).sub_(centred)
    by_gate = ((price_of * a) @ W).sub_(centred)
    loss = float(residual.square().sum() / (2 * N))
    norms = W.norm(dim=1)
    u, v = residual @ W.T, by_gate @ W.T
    charged = price_of.sum(dim=0)
    grad_a = (phi * u).sum(dim=0) + (price_of * v).sum(dim=0) + method.weight * a.sign() * norms * charged
    for_size = u.mul_(a) * mask
    for_gate = (v.mul_(a) + method.weight * a.abs() * norms) * opened
    slope = for_size * gain + for_gate
    grad_W = slope.T @ centred + (phi * a).T @ residual + (price_of * a).T @ by_gate
    grad_W += (method.weight * a.abs() * charged / norms.clamp(min=1e-30))[:, None] * W
    grad_pre = residual.sum(dim=0) + by_gate.sum(dim=0) - slope.sum(dim=0) @ W
    grad_gain = (for_size * z).sum(dim=0) * gain
    found = Parameters(
        grad_W / N, grad_a / N, for_gate.sum(dim=0) / N, grad_pre / N, None, grad_gain / N, for_size.sum(dim=0) / N
    )
    return Step(loss, found, mask.sum(dim=0), (gate * mask).amax(dim=0))


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
        if isinstance(method, TopK | BatchTopK):
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
        if not isinstance(method, BA | GBA | L1):
            raise RequestError(f"engine pairs has no {type(method).__name__}; take torch or auto")
        return PairsEngine(method, activation)
    if name == "torch":
        return TorchEngine(method, activation)
    if name == "reference":
        return ReferenceEngine(method, activation)
    raise RequestError(f"unknown engine {name!r}; there are auto, sparse, pairs, torch and reference")
