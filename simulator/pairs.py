"""The step from the active pairs in torch operations alone: any device, no N x M matrix in memory.

The same sums as `simulator.sparse`, for a GPU: encoder products in blocks of neurons, pairs taken out of
each block (`nonzero`), then matrix products with a sparse N x M matrix (CSR). The order of neuron-major
pairs is fixed, so a step repeats bit by bit as far as the device's sparse products do.
"""

import warnings

import torch
from torch import Tensor

from simulator.methods import BA, GBA, L1, Method
from simulator.sae import Activation, Parameters, Step


class PairsEngine:
    """BA, GBA and L1 on a GPU at low frequencies; TopK is left to the dense `TorchEngine`."""

    name = "pairs"

    def __init__(self, method: Method, activation: Activation, block_entries: int = 1 << 26) -> None:
        """
        Args:
            method, activation: what is trained.
            block_entries: neurons x samples of one block, the largest temporary.
        """
        self.method, self.activation, self.block_entries = method, activation, block_entries

    def step(self, parameters: Parameters, X: Tensor, dead: Tensor | None = None) -> Step:
        """See `simulator.sae.reference_step`."""
        W, a, b, b_pre = parameters.W, parameters.a, parameters.b, parameters.b_pre
        (M, _), N, method = W.shape, X.shape[0], self.method
        centred = X - b_pre
        rows = max(1, self.block_entries // N)
        counts = torch.zeros(M, dtype=torch.int64, device=W.device)
        maxima = torch.zeros_like(b)
        neurons, samples, values = [], [], []
        for first in range(0, M, rows):
            Z = W[first : first + rows] @ centred.T
            shift = b[first : first + rows, None]
            active = shift > -Z
            neuron, sample = active.nonzero(as_tuple=True)
            y = Z + shift
            counts[first : first + rows] = active.sum(dim=1)
            maxima[first : first + rows] = torch.where(active, y, 0).amax(dim=1)
            neurons.append(neuron + first)
            samples.append(sample)
            values.append((y if self.activation == "relu" else Z)[neuron, sample])
        neuron, sample, phi = torch.cat(neurons), torch.cat(samples), torch.cat(values)
        edges = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

        def times(weight: Tensor, right: Tensor) -> Tensor:
            """sum over the pairs of each neuron of weight * right[sample], (M, d)."""
            return _csr(edges, sample, weight, (M, N)) @ right

        by_sample = torch.argsort(sample, stable=True)
        sample_edges = torch.cat([counts.new_zeros(1), torch.bincount(sample, minlength=N).cumsum(0)])
        scaled = a[neuron] * phi
        residual = (_csr(sample_edges, neuron[by_sample], scaled[by_sample], (N, M)) @ W) - centred
        u = torch.cat(
            [(W[i] * residual[j]).sum(dim=1) for i, j in zip(neuron.split(1 << 20), sample.split(1 << 20), strict=True)]
        )
        slope = a[neuron] * u
        norms = W.norm(dim=1) if isinstance(method, L1) else None
        if norms is not None and isinstance(method, L1):
            slope = slope + method.weight * norms[neuron]
        grad_W = times(scaled, residual) + times(slope, centred)
        one = torch.ones(N, 1, dtype=W.dtype, device=W.device)
        grad_a, grad_s = times(phi * u, one)[:, 0], times(slope, one)[:, 0]
        if norms is not None and isinstance(method, L1):
            total = times(phi, one)[:, 0]
            grad_W += (method.weight * total / norms.clamp(min=1e-30))[:, None] * W
        loss = float(residual.square().sum() / (2 * N))
        grad_b = grad_s / N if self.activation == "relu" else torch.zeros_like(b)
        grad_pre = (residual.sum(dim=0) - grad_s @ W) / N
        return Step(loss, Parameters(grad_W / N, grad_a / N, grad_b, grad_pre), counts, maxima)


def _csr(edges: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(edges, columns, values, shape, check_invariants=False)


def pairs_pay(method: Method, M: int, N: int) -> bool:
    """Whether a GPU should take this engine: large steps of methods whose neurons seldom fire."""
    if not isinstance(method, BA | GBA):
        return False
    return M * N >= 1 << 26 and float(method.target_frequencies().mean()) < 0.01
