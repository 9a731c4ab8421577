"""The sparse engine: the training step from the active pairs, in compiled loops and blocked products.

One step, with x for the centred input, N samples, and every thread on a fixed range of neurons:

1. Block by block, W_block X^T into a buffer that stays in the core's cache (in bf16 where that pays), the
   pairs that may be active taken out while it is hot, and those rechecked in float32 (`simulator.screening`).
2. reconstruction and residual from the pairs;
3. gradients from the pairs, see `simulator.engine`.

A block of which more than a third is active is cheaper as a whole: its neurons keep no pairs, and their
share is computed with products of the block (`dense` blocks: GBA's groups of high frequency, and all
neurons in the first steps when biases start at zero). That too depends on the parameters and the batch
alone, so a step is bitwise repeatable for a given number of threads and size of block.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from simulator import gate_kernels, kernels, screening
from simulator.engine import TorchEngine
from simulator.gates import own_gates_step
from simulator.methods import L1, BatchTopK, Gated, JumpReLU, Method, TopK
from simulator.sae import Activation, Parameters, Step
from simulator.selection import Selection
from simulator.team import Team

_DENSE = 3
"""A block is dense if more than 1/3 of it is active: measured at 512 x 64 x 16,384, pairs cost 34, 69, 94 ms at
p = 0.1, 0.2, 0.3 and whole blocks 99, 114, 130 ms; at 0.5 they cost the same."""


class SparseEngine:
    """See the module. Memory beyond the parameters: one gradient of W, an N x d partial sum and a few blocks
    per thread, and 8 bytes for each active pair."""

    name = "sparse"

    def __init__(
        self,
        method: Method,
        activation: Activation,
        threads: int = 1,
        block_entries: int = 1 << 18,
        bf16: bool | None = None,
    ) -> None:
        """
        Args:
            method, activation: what is trained.
            threads: each with a range of neurons of its own.
            block_entries: neurons x samples of one block; two to four of them stay in a core's cache.
            bf16: whether to screen in bf16; None measures. No number depends on it, only speed does.
        """
        self.method, self.activation = method, activation
        self.team, self.block_entries, self.bf16 = Team(threads), block_entries, bf16
        self.shape: tuple[int, ...] = ()
        self.whole = TorchEngine(method, activation)
        self.bar = 0.0
        """BatchTopK: where the last selection ended; where the next one begins to look."""

    def step(self, parameters: Parameters, X: Tensor, dead: Tensor | None = None) -> Step:
        """See `simulator.sae.reference_step`."""
        W, a, b, b_pre = parameters.W, parameters.a, parameters.b, parameters.b_pre
        (M, _), method, N = W.shape, self.method, X.shape[0]
        if self.shape != (*W.shape, N):
            self._allocate(W, N)
        if isinstance(method, JumpReLU | Gated):
            return own_gates_step(self, parameters, X)
        if isinstance(method, BatchTopK) and method.kept(N) >= M * N:
            return self.whole.step(parameters, X, dead)
        centred = X - b_pre
        smallest, levels = None, [(0, M)]
        if isinstance(method, TopK) and method.k < M:
            self._largest(W, b, centred, method.k, self.all_neurons)
        elif isinstance(method, BatchTopK):
            smallest, levels = self._largest_of_batch(W, b, centred, method.kept(N)), method.levels(M)
        else:
            self.scan(W, b, centred, self.activation == "relu")
        torch.sub(self.stop, self.start, out=self.counts)
        if isinstance(method, L1):
            norms = W.norm(dim=1)
            self.penalty.copy_(method.weight * norms)
            self.radial.copy_(method.weight / norms.clamp(min=1e-30))
        residual = -centred
        misses = []
        for level in levels:
            residual = self._decode(W, a, b, centred, level).add_(residual)
            misses.append(residual)
        counts, maxima = self.counts.clone(), self.maxima.clone()
        loss = float(residual.square().sum() / (2 * N))
        # A neuron of one level is a part of that reconstruction and of every later one.
        grad_pre, total = torch.zeros_like(b_pre), None
        for level, miss in zip(reversed(levels), reversed(misses), strict=True):
            total = miss if total is None else total + miss
            grad_pre -= self._backward(W, a, b, total, centred, level, add=False)
        assert total is not None
        grad_pre += total.mean(dim=0)
        if isinstance(method, TopK | BatchTopK) and method.auxiliary_k and dead is not None and bool(dead.any()):
            self._largest(W, b, centred, min(method.auxiliary_k, M), dead)
            miss = self._decode(W, a, b, centred, (0, M)).add_(residual).mul_(method.auxiliary_weight)
            grad_pre -= self._backward(W, a, b, miss, centred, (0, M), add=True)
        grad_b = self.slope if self.activation == "relu" else self.no_slope
        found = Parameters(self.grad_W, self.grad_a, grad_b, grad_pre)
        return Step(loss, found, counts, maxima, self.touched, smallest)

    def _allocate(self, W: Tensor, N: int) -> None:
        M, d = W.shape
        self.shape = (M, d, N)
        self.selections: dict[int, Selection] = {}
        parts = self.team.size

        def zeros(*shape: int, dtype: torch.dtype = W.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype)

        self.grad_W, self.grad_a, self.slope, self.no_slope = zeros(M, d), zeros(M), zeros(M), zeros(M)
        self.penalty, self.radial, self.maxima = zeros(M), zeros(M), zeros(M)
        self.touched = zeros(M, dtype=torch.bool)
        self.all_neurons = torch.ones(M, dtype=torch.bool)
        self.start, self.stop, self.counts = (zeros(M, dtype=torch.int64) for _ in range(3))
        self.edges = zeros(parts + 1, dtype=torch.int64)
        self.partial, self.pull, self.dense_pull = zeros(parts, N, d), zeros(parts, d), zeros(parts, d)
        self.screens = W.dtype == torch.float32 and (screening.bf16_pays(d, N) if self.bf16 is None else self.bf16)
        self.rows = max(1, min(self.block_entries // N, 4096))
        self.ranges = [self._cut(*self.team.share(part, M)) for part in range(parts)]
        self.dense: list[list[bool]] = [[False] * len(blocks) for blocks in self.ranges]
        """Blocks of this step without pairs; at the start of a step, those of the step before."""
        self.crowded = [[False] * len(blocks) for blocks in self.ranges]
        """Blocks where the last bf16 screen let too much through to be worth its while."""
        topk = isinstance(self.method, TopK) and self.method.k < M
        entries = max(self.block_entries, N)
        self.blocks = zeros(parts, entries)
        if not topk:
            self.others = zeros(parts, entries)
            self.listed = zeros(parts, max(self.block_entries, N), dtype=torch.int32)
            self.norm, self.cut, self.sums = (zeros(parts, self.rows) for _ in range(3))
            self.lost = zeros(parts, self.rows)
        if self.screens and not topk:
            self.bf16_blocks = zeros(parts, max(self.block_entries, N), dtype=torch.bfloat16)
            self.bf16_rows = zeros(parts, self.rows, d, dtype=torch.bfloat16)
            self.scratch = zeros(parts, d)
        self._make_room(max(4096, M * N // 64), W.dtype)

    def _cut(self, low: int, high: int) -> list[tuple[int, int]]:
        return [(first, min(first + self.rows, high)) for first in range(low, high, self.rows)]

    def _make_room(self, capacity: int, dtype: torch.dtype) -> None:
        self.sample = torch.zeros(self.team.size, capacity, dtype=torch.int32)
        self.value = torch.zeros(self.team.size, capacity, dtype=dtype)

    def _product(self, part: int, W: Tensor, rows: tuple[int, int], right: Tensor, into: Tensor) -> Tensor:
        """W_rows right^T in a block of this thread, (rows, N)."""
        first, past = rows
        Z = into[part, : (past - first) * right.shape[0]].view(past - first, right.shape[0])
        return torch.mm(W[first:past], right.T, out=Z)

    def scan(self, W: Tensor, b: Tensor, centred: Tensor, adds_bias: bool, dense: int = _DENSE) -> None:
        """Pairs with z > -b of all neurons, block by block while the products are in cache.

        Kept is z, or z + b with `adds_bias`. A block is dense where more than 1 / `dense` of it is active.
        """
        N, d = centred.shape
        X, weights, bias = centred.numpy(), W.numpy(), b.numpy()
        start, stop, maxima = self.start.numpy(), self.stop.numpy(), self.maxima.numpy()
        plain = screening.Batch(centred, False)
        rounded = screening.Batch(centred, True) if self.screens else plain
        unit = torch.finfo(W.dtype).eps

        def candidates(part: int, index: int) -> int:
            """Fill `listed` with the pairs of a block that may be active; returns how many."""
            first, past = self.ranges[part][index]
            rows = past - first
            norm, lost, cut = (v[part, :rows].numpy() for v in (self.norm, self.lost, self.cut))
            listed = self.listed[part].numpy()
            if self.screens and not (self.dense[part][index] or self.crowded[part][index]):
                bits = self.bf16_rows[part, :rows]
                screening.round_rows(
                    weights[first:past], self.scratch[part].numpy(), bits.view(torch.int16).numpy(), norm, lost
                )
                screening.cuts(first, bias, norm, lost, rounded.missed, rounded.length, d, unit, cut)
                Z = self.bf16_blocks[part, : rows * N].view(rows, N)
                torch.mm(bits, rounded.product.T, out=Z)
                count = screening.list_bf16(Z.view(torch.int16).numpy(), cut, rows * N // 8, listed)
                if count >= 0:
                    return count
                self.crowded[part][index] = True
            else:
                screening.row_norms(weights[first:past], norm)
            lost[:] = 0
            screening.cuts(first, bias, norm, lost, 0.0, plain.length, d, unit, cut)
            Z = self._product(part, W, (first, past), centred, self.blocks)
            count = screening.list_products(Z.numpy(), cut, listed)
            self.crowded[part][index] = count > rows * N // 16
            return count

        def scan(part: int) -> int:
            sample, value = self.sample[part].numpy(), self.value[part].numpy()
            used = 0
            for index, (first, past) in enumerate(self.ranges[part]):
                rows = past - first
                count = candidates(part, index)
                after = screening.recheck(
                    self.listed[part].numpy(), count, rows * N // dense, first, rows, N, weights, X, bias, adds_bias,
                    part * sample.shape[0], sample, value, used, start, stop, maxima,
                )  # fmt: skip
                self.dense[part][index] = after < 0
                used = max(after, used)
            return used

        while (needed := max(self.team.run(scan))) > self.sample.shape[1]:
            self._make_room(needed + needed // 4, W.dtype)

    def _largest(self, W: Tensor, b: Tensor, centred: Tensor, k: int, allowed: Tensor) -> None:
        """Pairs of TopK: the k largest y > 0 of each sample among the allowed neurons."""
        (M, N), bias, among = (W.shape[0], centred.shape[0]), b.numpy(), allowed.numpy()
        if k not in self.selections:
            self.selections[k] = Selection(M, W.shape[1], N, k, self.team.size, self.block_entries, W.dtype)
        chosen = self.selections[k]
        factors = chosen.prepare(W, b, centred, self.screens)
        weights, inputs = W.numpy(), centred.numpy()

        def largest(part: int) -> None:
            chosen.run(part, *self.team.share(part, N), factors, weights, bias, inputs, among)

        self.team.run(largest)
        if N * k > self.sample.numel():
            self._make_room(N * k, W.dtype)
        kernels.group_by_neuron(
            chosen.found, chosen.neuron, chosen.y, bias, self.activation == "relu", self.start.numpy(),
            self.stop.numpy(), self.sample.view(-1).numpy(), self.value.view(-1).numpy(), self.maxima.numpy(),
        )  # fmt: skip
        self.dense = [[False] * len(blocks) for blocks in self.ranges]

    def _largest_of_batch(self, W: Tensor, b: Tensor, centred: Tensor, most: int) -> float | None:
        """Pairs of BatchTopK: the `most` largest y > 0 of all; returns the smallest of them.

        The scan looks for y above a bar that leaves a few more than `most`, guessed from the last batch, and looks
        again with a lower one where it leaves too few. The bar decides the speed, never the result.
        """
        adds_bias, bias = self.activation == "relu", b.numpy()
        rounding = 8 * torch.finfo(W.dtype).eps * (1 + float(b.abs().max()))
        bar = 0.9 * self.bar if self.bar else self._first_bar(W, b, centred, most)
        while True:
            self.scan(W, b - bar, centred, False, dense=1)
            count = int((self.stop - self.start).sum())
            y = torch.empty(count, dtype=W.dtype).numpy()
            start, stop, sample, value = self.pairs()
            gate_kernels.gather(start, stop, value, bias, adds_bias, y)
            enough = count > most
            last = float(np.partition(y, count - most)[count - most]) if enough and most else 0.0
            # A pair within rounding of the bar may have been missed by the scan.
            if bar == 0 or (enough and last > bar + rounding * (1 + bar)):
                break
            bar = 0.0 if bar < 1e-3 * self.bar or bar < 1e-6 else bar / 2
        self.bar = last
        ties = most - int((y > last).sum())
        smallest = gate_kernels.keep_at_least(
            start, stop, sample, value, y, y.dtype.type(last), ties, self.maxima.numpy()
        ) if most else self._drop_pairs()  # fmt: skip
        self.dense = [[False] * len(blocks) for blocks in self.ranges]
        return float(smallest) if np.isfinite(smallest) else None

    def _drop_pairs(self) -> float:
        self.stop.copy_(self.start)
        self.maxima.zero_()
        return np.inf

    def _first_bar(self, W: Tensor, b: Tensor, centred: Tensor, most: int) -> float:
        """A guess from a part of the neurons and samples."""
        rows = slice(0, None, max(1, W.shape[0] // 256))
        y = (W[rows] @ centred[:256].T + b[rows, None]).flatten().numpy()
        share = min(1.0, 1.5 * most / (W.shape[0] * centred.shape[0]))
        return max(0.0, float(np.quantile(y, 1 - share)))

    def pairs(self) -> tuple[Any, Any, Any, Any]:
        return (
            self.start.numpy(),
            self.stop.numpy(),
            self.sample.view(-1).numpy(),
            self.value.view(-1).numpy(),
        )

    def _dense_blocks(self, part: int) -> list[tuple[int, int]]:
        return [rows for rows, dense in zip(self.ranges[part], self.dense[part], strict=True) if dense]

    def _decode(self, W: Tensor, a: Tensor, b: Tensor, centred: Tensor, level: tuple[int, int]) -> Tensor:
        """sum of a_m phi_ml w_m over the neurons of a level for each sample, (N, d); counts and maxima of dense
        blocks too."""
        pairs, weights, scales, bias = self.pairs(), W.numpy(), a.numpy(), b.numpy()
        counts, maxima, edges = self.counts.numpy(), self.maxima.numpy(), self._shares(level)
        adds_bias = self.activation == "relu"

        def decode(part: int) -> None:
            out = self.partial[part]
            kernels.decode_pairs(edges[part], edges[part + 1], *pairs, weights, scales, out.numpy())
            for first, past in self._dense_blocks(part):
                Z = self._product(part, W, (first, past), centred, self.blocks)
                kernels.gate_block(Z.numpy(), bias, scales, first, adds_bias, counts, maxima)
                out.addmm_(Z.T, W[first:past])

        self.team.run(decode)
        return self.partial.sum(dim=0)

    def _shares(self, level: tuple[int, int]) -> np.ndarray:
        """Edges of each thread's neurons in a level. The cut follows the pairs, not the threads' speed."""
        first, past = level
        edges = self.edges.numpy()
        kernels.balance(self.start.numpy()[first:past], self.stop.numpy()[first:past], edges)
        return edges + first

    def _backward(
        self, W: Tensor, a: Tensor, b: Tensor, residual: Tensor, centred: Tensor, level: tuple[int, int], add: bool
    ) -> Tensor:
        """Gradients of W, a and the slopes of a level, set or added to; returns what b_pre gets through y, (d,)."""
        pairs, edges, penalty = self.pairs(), self._shares(level), self.penalty.numpy()
        network = W.numpy(), a.numpy(), residual.numpy(), centred.numpy()
        scale = penalty.dtype.type(1 / residual.shape[0])
        into = self.grad_W.numpy(), self.grad_a.numpy(), self.slope.numpy(), self.touched.numpy()
        radial = self.radial.numpy()

        def backward(part: int) -> None:
            kernels.backward_pairs(
                edges[part], edges[part + 1], *pairs, *network, scale, penalty, radial, add, *into,
                self.pull[part].numpy(),
            )  # fmt: skip

        self.team.run(backward)
        if not any(any(dense) for dense in self.dense):
            return self.pull.sum(dim=0)

        def dense_backward(part: int) -> None:
            pull = self.dense_pull[part].zero_()
            for first, past in self._dense_blocks(part):
                Z = self._product(part, W, (first, past), centred, self.blocks)
                U = self._product(part, W, (first, past), residual, self.others)
                sums = self.sums[part, : past - first]
                kernels.slope_block(
                    Z.numpy(), U.numpy(), b.numpy(), network[1], first, self.activation == "relu", scale, penalty,
                    *into[1:3], sums.numpy(),
                )  # fmt: skip
                gradient = self.grad_W[first:past]
                torch.mm(U, centred, out=gradient)
                gradient.addmm_(Z, residual)
                if isinstance(self.method, L1):
                    gradient.addcmul_((self.radial[first:past] * sums)[:, None], W[first:past])
                self.touched[first:past] = True
                pull += self.slope[first:past] @ W[first:past]

        # After all pairs: `backward_pairs` clears the rows of neurons without pairs, whoever scans them.
        self.team.run(dense_backward)
        return (self.pull + self.dense_pull).sum(dim=0)
