"""The training step computed from the active pairs only: the same numbers as the dense step, far cheaper.

A neuron with activation frequency p is active on p N of the N samples of a batch. Encoder products
are made block by block, the active pairs (m, l) are taken out while a block is still in cache, and
everything after that (decoder, residual, gradients) is a sum over the pairs:

    residual_l = sum_m a_m phi_ml w_m + b_pre - x_l,      u_ml = w_m . residual_l
    dW_m = 1/N sum_l [a_m phi_ml residual_l + (a_m u_ml + penalty_m) (x_l - b_pre)]  (+ the norm's share of L1)
    da_m = 1/N sum_l phi_ml u_ml,        db_m = 1/N sum_l (a_m u_ml + penalty_m)      (ReLU only)
    db_pre = 1/N sum_l residual_l - sum_m db_m w_m

Engines: `SparseEngine` (numba, CPU), `TorchEngine` (torch alone, any device). The oracle of both is
`simulator.sae.reference_step`. An engine owns its buffers, so the gradients that it hands out are
valid until its next step.
"""

import importlib.metadata
import importlib.util
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from simulator.errors import RequestError
from simulator.methods import L1, Method, TopK
from simulator.sae import Activation, Parameters, Step, active_mask, auxiliary_mask, reference_step
from simulator.team import Team

EngineName = Literal["auto", "sparse", "torch", "reference"]


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


class SparseEngine:
    """The step from the active pairs, in compiled loops (numba) and torch products, on the CPU.

    Every thread owns a fixed range of neurons and one block of encoder products, small enough to stay
    in its cache; partial sums are added in the order of the ranges, so that a step is bitwise
    repeatable for a given number of threads. Memory beyond the parameters: one gradient of W, per
    thread a block and an N x d partial sum of the decoder, and the pairs themselves.
    """

    name = "sparse"

    def __init__(self, method: Method, activation: Activation, threads: int = 1, block_entries: int = 1 << 17) -> None:
        from simulator import kernels

        self.kernels = kernels
        self.method, self.activation = method, activation
        self.team, self.block_entries = Team(threads), block_entries
        self.shape: tuple[int, ...] = ()

    def step(self, parameters: Parameters, X: Tensor, dead: Tensor | None = None) -> Step:
        W, a, b, b_pre = parameters.W, parameters.a, parameters.b, parameters.b_pre
        method, N = self.method, X.shape[0]
        if self.shape != (*W.shape, N):
            self._allocate(W, N)
        centred = X - b_pre
        if isinstance(method, TopK) and method.k < W.shape[0]:
            self._largest(W, b, centred, method.k, self.all_neurons)
        else:
            self._scan(W, b, centred)
        counts = self.stop - self.start
        maxima = self.maxima.clone()
        if isinstance(method, L1):
            norms = W.norm(dim=1)
            self.penalty.copy_(method.weight * norms)
            self.radial.copy_(method.weight / norms.clamp(min=1e-30))
        residual = self._decode(W, a).sub_(centred)
        loss = float(residual.square().sum() / (2 * N))
        pull = self._backward(W, a, residual, centred, add=False)
        grad_pre = residual.mean(dim=0) - pull
        if isinstance(method, TopK) and method.auxiliary_k and dead is not None and bool(dead.any()):
            self._largest(W, b, centred, min(method.auxiliary_k, W.shape[0]), dead)
            miss = self._decode(W, a).add_(residual).mul_(method.auxiliary_weight)
            grad_pre -= self._backward(W, a, miss, centred, add=True)
        grad_b = self.slope if self.activation == "relu" else self.no_slope
        return Step(loss, Parameters(self.grad_W, self.grad_a, grad_b, grad_pre), counts, maxima, self.touched)

    def _allocate(self, W: Tensor, N: int) -> None:
        M, d = W.shape
        self.shape = (M, d, N)

        def zeros(*shape: int, dtype: torch.dtype = W.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype)

        self.grad_W, self.grad_a, self.slope, self.no_slope = zeros(M, d), zeros(M), zeros(M), zeros(M)
        self.penalty, self.radial, self.maxima = zeros(M), zeros(M), zeros(M)
        self.touched = zeros(M, dtype=torch.bool)
        self.all_neurons = torch.ones(M, dtype=torch.bool)
        self.start, self.stop = zeros(M, dtype=torch.int64), zeros(M, dtype=torch.int64)
        self.edges = zeros(self.team.size + 1, dtype=torch.int64)
        self.partial, self.pull = zeros(self.team.size, N, d), zeros(self.team.size, d)
        self.blocks = zeros(self.team.size, max(self.block_entries, M, N))
        self._make_room(max(4096, M * N // 64), W.dtype)

    def _make_room(self, capacity: int, dtype: torch.dtype) -> None:
        self.sample = torch.zeros(self.team.size, capacity, dtype=torch.int32)
        self.value = torch.zeros(self.team.size, capacity, dtype=dtype)

    def _scan(self, W: Tensor, b: Tensor, centred: Tensor) -> None:
        """Pairs with y > 0 of all neurons, block by block while the products are in cache."""
        (M, N), transposed, bias = (W.shape[0], centred.shape[0]), centred.T, b.numpy()
        adds_bias = self.activation == "relu"
        start, stop, maxima = self.start.numpy(), self.stop.numpy(), self.maxima.numpy()
        most = self.blocks.shape[1] // N

        def scan(part: int) -> int:
            low, high = self.team.share(part, M)
            sample, value = self.sample[part].numpy(), self.value[part].numpy()
            used = 0
            for first in range(low, high, most):
                rows = min(most, high - first)
                Z = self.blocks[part, : rows * N].view(rows, N)
                torch.mm(W[first : first + rows], transposed, out=Z)
                used = self.kernels.scan_block(
                    Z.numpy(), bias, first, adds_bias, part * sample.shape[0], sample, value, used,
                    start, stop, maxima,
                )  # fmt: skip
            return used

        while (needed := max(self.team.run(scan))) > self.sample.shape[1]:
            self._make_room(needed + needed // 4, W.dtype)

    def _largest(self, W: Tensor, b: Tensor, centred: Tensor, k: int, allowed: Tensor) -> None:
        """Pairs of TopK: the k largest y > 0 of each sample among the allowed neurons."""
        (M, N), transposed, bias, among = (W.shape[0], centred.shape[0]), W.T, b.numpy(), allowed.numpy()
        neuron, y = torch.empty(N, k, dtype=torch.int32).numpy(), torch.empty(N, k, dtype=W.dtype).numpy()
        found = torch.empty(N, dtype=torch.int64).numpy()
        most = self.blocks.shape[1] // M
        everyone = allowed is self.all_neurons

        def largest(part: int) -> None:
            low, high = self.team.share(part, N)
            for first in range(low, high, most):
                rows = min(most, high - first)
                Z = self.blocks[part, : rows * M].view(rows, M)
                torch.mm(centred[first : first + rows], transposed, out=Z)
                self.kernels.largest_block(Z.numpy(), bias, among, everyone, k, first, found, neuron, y)

        self.team.run(largest)
        if N * k > self.sample.numel():
            self._make_room(N * k, W.dtype)
        self.kernels.group_by_neuron(
            found, neuron, y, bias, self.activation == "relu", self.start.numpy(), self.stop.numpy(),
            self.sample.view(-1).numpy(), self.value.view(-1).numpy(), self.maxima.numpy(),
        )  # fmt: skip

    def _pairs(self) -> tuple[Any, Any, Any, Any]:
        return (
            self.start.numpy(),
            self.stop.numpy(),
            self.sample.view(-1).numpy(),
            self.value.view(-1).numpy(),
        )

    def _decode(self, W: Tensor, a: Tensor) -> Tensor:
        """sum_m a_m phi_ml w_m for each sample, (N, d)."""
        pairs, weights, scales, edges = self._pairs(), W.numpy(), a.numpy(), self.edges.numpy()
        # The cut into ranges follows the pairs, not the threads' speed.
        self.kernels.balance(pairs[0], pairs[1], edges)

        def decode(part: int) -> None:
            self.kernels.decode_pairs(edges[part], edges[part + 1], *pairs, weights, scales, self.partial[part].numpy())

        self.team.run(decode)
        return self.partial.sum(dim=0)

    def _backward(self, W: Tensor, a: Tensor, residual: Tensor, centred: Tensor, add: bool) -> Tensor:
        """Gradients of W, a and the slopes, set or added to; returns what b_pre gets through y, (d,)."""
        pairs, edges, penalty = self._pairs(), self.edges.numpy(), self.penalty.numpy()
        network = W.numpy(), a.numpy(), residual.numpy(), centred.numpy()
        scale = penalty.dtype.type(1 / residual.shape[0])
        into = self.grad_W.numpy(), self.grad_a.numpy(), self.slope.numpy(), self.touched.numpy()
        radial = self.radial.numpy()

        def backward(part: int) -> None:
            self.kernels.backward_pairs(
                edges[part], edges[part + 1], *pairs, *network, scale, penalty, radial, add, *into,
                self.pull[part].numpy(),
            )  # fmt: skip

        self.team.run(backward)
        return self.pull.sum(dim=0)


def numba_available() -> bool:
    """Whether the compiled engine can be used at all."""
    return importlib.util.find_spec("numba") is not None


def numba_version() -> str | None:
    """Version of numba, which computes the sparse step; None where it is not installed."""
    return importlib.metadata.version("numba") if numba_available() else None


def make_engine(name: EngineName, method: Method, activation: Activation, device: torch.device, threads: int) -> Engine:
    """The engine of that name; "auto" takes the sparse one on a CPU with numba, else torch."""
    if name == "auto":
        name = "sparse" if device.type == "cpu" and numba_available() else "torch"
    if name == "sparse":
        if device.type != "cpu":
            raise RequestError(f"engine sparse runs on the CPU, not on {device.type}; take torch or auto")
        if not numba_available():
            raise RequestError("engine sparse needs the package numba; install it or take torch")
        return SparseEngine(method, activation, threads)
    if name == "torch":
        return TorchEngine(method, activation)
    if name == "reference":
        return ReferenceEngine(method, activation)
    raise RequestError(f"unknown engine {name!r}; there are auto, sparse, torch and reference")
