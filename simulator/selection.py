"""TopK's selection: the k largest pre-activations of each sample, found in fast products and settled in exact ones.

As in `simulator.screening`, a product Y~ of what is cheap (bf16 where that pays, else the network's precision) only
says which pairs could be among the k largest; those are rechecked, and the recheck's y = w . x + b decide. With
[w, b] and [x, 1] as the factors a product is a pre-activation. Let E bound |Y~ - y| for a sample (below). The k-th
largest Y~ lies at most E above the k-th largest y, hence every pair among the k largest has Y~ >= (k-th largest Y~)
- 2 E, and every positive one Y~ > -E. Any lower bound of the k-th largest Y~ does: taken is the k-th largest of the
maxima of interleaved groups of neurons, found a whole row of samples at a time.

Bound. With u = 2^-24 (or 2^-53), w~, b~, x~ what the product is made of, A = max |w| length + max |b|,

    E = max |w| |x - x~| + max |w - w~| length + max |b - b~|     (Cauchy-Schwarz, as in `simulator.screening`)
        + 4 (d + 5) u A                                          (both sums, any order; u half of the spacing at 1)
        + 2^-8 A                                                 (the product delivered in bf16)

Numbers are compared as integers: the bits of a float, with all but the sign turned over where it is negative, are in
the order of the floats.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from simulator import screening
from simulator.kernels import FAST, _keep_largest

_CHUNK = 32
_INTEGERS = {torch.bfloat16: np.int16, torch.float32: np.int32, torch.float64: np.int64}


@njit(cache=True, nogil=True)
def group_maxima(bits, allowed, top, mask, best):
    """Turn products into keys, in place, and find the largest of every group g = m mod G for each sample.

    bits: (M, samples) of the products as integers; neurons that are not allowed get the smallest key. top, mask: sign
    shift and all bits but the sign. Written: best (G, samples).
    """
    M, samples = bits.shape
    G = best.shape[0]
    best[:] = ~mask
    for m in range(M):
        row, own = bits[m], best[m % G]
        if not allowed[m]:
            row[:] = ~mask
            continue
        for j in range(samples):
            key = row[j] ^ ((row[j] >> top) & mask)
            row[j] = key
            own[j] = max(own[j], key)


@njit(cache=True, nogil=True)
def kth_largest(best, largest):
    """The k largest of each column of best (G, samples) into largest (k, samples), descending. k <= G."""
    G, samples = best.shape
    k = largest.shape[0]
    for g in range(G):
        for t in range(min(g, k)):
            rank = largest[t]
            for j in range(samples):
                high = max(rank[j], best[g, j])
                best[g, j] = min(rank[j], best[g, j])
                rank[j] = high
        if g < k:
            largest[g] = best[g]


@njit(cache=True, nogil=True)
def reaching(keys, cut, listed):
    """Pairs whose key reaches the sample's cut, as m * samples + j, ascending; returns how many.

    keys: (M, samples). cut: (samples,). listed: int64, room for all.
    """
    M, samples = keys.shape
    whole = samples - samples % _CHUNK
    count = 0
    for m in range(M):
        row = keys[m]
        for chunk in range(0, whole, _CHUNK):
            hits = False
            for j in range(_CHUNK):
                hits |= row[chunk + j] >= cut[chunk + j]
            if not hits:
                continue
            for j in range(chunk, chunk + _CHUNK):
                if row[j] >= cut[j]:
                    listed[count] = m * samples + j
                    count += 1
        for j in range(whole, samples):
            if row[j] >= cut[j]:
                listed[count] = m * samples + j
                count += 1
    return count


@njit(cache=True, fastmath=FAST, nogil=True)
def settle(listed, count, samples, first, allowed, W, bias, X, k, found, neuron, y_value):
    """The k largest y > 0 of the samples first..first+samples among the listed pairs of allowed neurons.

    W: (M, d). X: (N, d), centred. Written, per sample: found (N,), and so many entries of neuron and y_value (N, k), a
    min-heap. Of equal y those of lower neurons stay.
    """
    d = W.shape[1]
    found[first : first + samples] = 0
    for at in range(count):
        m = listed[at] // samples
        i = first + listed[at] - m * samples
        if not allowed[m]:
            continue
        w, x = W[m], X[i]
        z = W.dtype.type(0)  # an int would make the sum, and so the comparisons, float64
        for c in range(d):
            z += w[c] * x[c]
        y = z + bias[m]
        if y > 0:
            found[i] = _keep_largest(y_value[i], neuron[i], found[i], k, y, m)


class Factors:
    """[w, b] and [x, 1] of a step as the products see them, with the bound E of every sample."""

    def __init__(self, W: Tensor, b: Tensor, centred: Tensor, rounded: bool) -> None:
        """
        Args:
            W: (M, d). b: (M,). centred: (N, d). rounded: to bf16.
        """
        d, N = W.shape[1], len(centred)
        self.rounded = rounded
        unit = torch.finfo(W.dtype).eps
        if rounded:
            self.left, norm, lost = _rounded(W, b)
            self.right, length, missed = _rounded(centred, torch.ones(N))
            largest, away = float(norm.max()), float((b - self.left[:, d].float()).abs().max())
            size = largest * length + float(b.abs().max())
            bound = largest * missed + float(lost.max()) * (length + missed) + away + 2.0**-8 * size
        else:
            self.left = torch.cat([W, b[:, None]], dim=1)
            self.right = torch.cat([centred, centred.new_ones(N, 1)], dim=1)
            # The norms themselves are summed in the network's precision.
            length = centred.norm(dim=1).double() * (1 + 2 * (d + 8) * unit)
            size = float(W.norm(dim=1).max()) * (1 + 2 * (d + 8) * unit) * length + float(b.abs().max())
            bound = torch.zeros(N, dtype=torch.float64)
        # The last term: numbers below 2^-126, which a processor may read as zero.
        self.bound = bound + 2 * (d + 5) * unit * size + d * 2.0**-120 * (1 + size)
        integer = _INTEGERS[self.left.dtype]
        self.top = integer(8 * np.dtype(integer).itemsize - 1)
        self.mask = integer(np.iinfo(integer).max)
        self.integer = integer

    def bits(self, Z: Tensor) -> np.ndarray:
        """A product as integers."""
        return Z.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[Z.element_size()]).numpy()

    def cut(self, bar: np.ndarray, first: int) -> np.ndarray:
        """From keys of lower bounds of the k-th largest products to keys that every pair wanted reaches."""
        wide = np.float64 if self.integer is np.int64 else np.float32
        whole = np.dtype(f"i{np.dtype(wide).itemsize}").type
        bits = bar ^ ((bar >> self.top) & self.mask)  # the turn is its own inverse
        value = (bits.astype(whole) << 16 if self.rounded else bits).view(wide).astype(np.float64)
        E = self.bound[first : first + len(bar)].numpy()
        with np.errstate(invalid="ignore"):
            low = np.maximum(value - 2 * E, -E)
        # NaN and infinity anywhere: everything is looked at.
        low = np.where(np.isfinite(low), low, -np.inf)
        narrow = np.nextafter(low.astype(wide), wide(-np.inf)).view(whole)
        key = narrow ^ ((narrow >> whole(8 * np.dtype(whole).itemsize - 1)) & np.iinfo(whole).max)
        return (key >> 16).astype(np.int16) if self.rounded else key.astype(self.integer)


def _rounded(rows: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[rows, last] in bf16; bounds of |row| and of what rounding took from it, in float64."""
    count, d = rows.shape
    bits = np.empty((count, d + 1), np.int16)
    norm, lost, scratch = np.empty(count, np.float32), np.empty(count, np.float32), np.empty(d, np.float32)
    screening.round_rows(rows.numpy(), scratch, bits[:, :d], norm, lost)
    table = torch.from_numpy(bits).view(torch.bfloat16)
    table[:, d] = last
    return table, torch.from_numpy(norm).double(), torch.from_numpy(lost).double()


class Selection:
    """Scratch of the selection for networks of one shape; a range of samples per thread."""

    def __init__(self, M: int, d: int, N: int, k: int, parts: int, entries: int, dtype: torch.dtype) -> None:
        self.k, self.dtype = k, dtype
        self.width = max(_CHUNK, min(N, entries // M // _CHUNK * _CHUNK))
        """Samples of a block: its products stay in the core's cache where M allows."""
        self.groups = min(M, max(64, 4 * k))
        self.products: dict[torch.dtype, Tensor] = {}
        self.entries = (parts, M * self.width)
        self.neuron, self.y = np.empty((N, k), np.int32), torch.empty(N, k, dtype=dtype).numpy()
        self.found = np.empty(N, np.int64)
        self.listed = np.empty(self.entries, np.int64)

    def run(self, part: int, low: int, high: int, factors: Factors, W, bias, X, allowed: np.ndarray) -> None:
        """Samples low..high: fills found, neuron and y."""
        M = W.shape[0]
        block = self.products[factors.left.dtype][part]
        listed = self.listed[part]
        for first in range(low, high, self.width):
            samples = min(self.width, high - first)
            Z = block[: M * samples].view(M, samples)
            torch.mm(factors.left, factors.right[first : first + samples].T, out=Z)
            bits = factors.bits(Z)
            best = np.empty((self.groups, samples), factors.integer)
            largest = np.empty((self.k, samples), factors.integer)
            group_maxima(bits, allowed, factors.top, factors.mask, best)
            kth_largest(best, largest)
            count = reaching(bits, factors.cut(largest[-1], first), listed)
            settle(listed, count, samples, first, allowed, W, bias, X, self.k, self.found, self.neuron, self.y)

    def prepare(self, W: Tensor, b: Tensor, centred: Tensor, rounded: bool) -> Factors:
        """Factors of a step, and room for their products."""
        factors = Factors(W, b, centred, rounded)
        if factors.left.dtype not in self.products:
            self.products[factors.left.dtype] = torch.empty(self.entries, dtype=factors.left.dtype)
        return factors
