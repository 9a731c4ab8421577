"""Which pairs (neuron, sample) can be active: a fast product with a proven margin, then an exact recheck.

A pair is active iff z > -b, where z is the float32 inner product of w and x = x_raw - b_pre as
`recheck` sums it. The products Z of a block come from a faster source and are only a screen: every
pair that could be active is listed, and the list is rechecked. So the active set, the values and
everything after them do not depend on the source, the size of a block or the number of threads.

Margin. Let w~, x~ be what the product is made of (w, x themselves, or both rounded to bf16), Z what
comes out, u = 2^-24, d the dimension. Then

    |w~.x~ - w.x| <= |w| |x - x~| + |w - w~| |x~|                            (Cauchy-Schwarz, twice)
    |Z - w~.x~|, |z - w.x| <= (d + 4) 2u |w||x| each                         (any order of summation, with or
                                                                              without fused multiply-add)
so  |Z - z| <= |w| missed + lost length + 2 (d + 4) 2^-23 |w| length,

with lost = |w - w~| measured for every row, missed = max |x - x~| and length = max(|x|, |x~|) measured
over the batch. A worst-case bound in place of the measured rounding errors would be (2v + v^2) |w||x|
with v = 2^-8 for bf16: about twice as wide. Measured norms carry the factor 1 + (d + 8) 2^-23 of their
own summation and the term sqrt(d) 2^-63 for squares that underflow; numbers below 2^-126, which a
processor may read as zero in bf16, are rounded to zero here, and d 2^-120 covers such products.

Screen in bf16. The product is delivered in bf16, rounded to nearest once more. With T = -b - margin > 0:
if z > -b then the unrounded product is above T, hence at least cut(T), T with its lower 16 bits removed;
cut(T) is a bf16 number and rounding is monotone, so the delivered number is at least cut(T) too. Both
are compared as 16-bit integers, which orders bf16 numbers as long as the threshold is positive. A row
with T <= 0, or one with anything that is not finite, is rechecked whole.

Float32 products take the same road with missed = lost = 0.
"""

import time
from functools import lru_cache

import numpy as np
import torch
from numba import njit
from torch import Tensor

from simulator.kernels import FAST

_CHUNK16, _CHUNK32 = 32, 16


@njit(cache=True, fastmath=FAST, nogil=True)
def round_rows(W, scratch, rounded, norm, lost):
    """Rows of W rounded to bf16 (nearest, ties to even) as int16 bits, with bounds of |w| and |w - w~|.

    W: (R, d) float32. scratch: (d,) float32. Written: rounded (R, d), norm and lost (R,).
    """
    rows, d = W.shape
    grow = np.float32(1 + (d + 8) * 2.0**-23)
    floor = np.float32(np.sqrt(d) * 2.0**-63)
    bits_in, bits_out = W.view(np.int32), scratch.view(np.int32)
    for i in range(rows):
        for k in range(d):
            bits = bits_in[i, k]
            up = bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))
            # Exponent zero: a denormal number (or zero), which the product may read as zero.
            kept = up & np.int32(-65536) if up & np.int32(0x7F800000) else np.int32(0)
            bits_out[k] = kept
            rounded[i, k] = np.int16(kept >> np.int32(16))
        whole = np.float32(0)
        rest = np.float32(0)
        for k in range(d):
            w = W[i, k]
            away = w - scratch[k]
            whole += w * w
            rest += away * away
        norm[i] = np.sqrt(whole) * grow + floor
        lost[i] = np.sqrt(rest) * grow + floor


@njit(cache=True, fastmath=FAST, nogil=True)
def row_norms(W, norm):
    """Upper bounds of the norms of the rows of W (R, d) into norm (R,)."""
    rows, d = W.shape
    grow = 1 + (d + 8) * 2.0**-23
    floor = np.sqrt(d) * 2.0**-63
    for i in range(rows):
        whole = W.dtype.type(0)
        for k in range(d):
            whole += W[i, k] * W[i, k]
        norm[i] = np.sqrt(whole) * grow + floor


@njit(cache=True, nogil=True)
def cuts(first, bias, norm, lost, missed, length, d, unit, cut):
    """Lowest product that an active pair can have, T = -b - margin, for the neurons first..first+len(cut).

    unit: 2^-23 for products in float32, 2^-52 in float64. norm, lost: (R,). Rounded down; never NaN.
    """
    tiny = d * 2.0**-120
    for i in range(cut.shape[0]):
        n, r = np.float64(norm[i]), np.float64(lost[i])
        margin = n * (missed + 2 * (d + 4) * unit * length) + r * length + tiny
        threshold = -np.float64(bias[first + i])
        low = threshold - margin - abs(threshold) * 2 * unit
        if not (low > -1e300):  # NaN, or an infinite margin
            low = -np.inf
        value = cut.dtype.type(low)
        if np.float64(value) > low:  # nearest lies above: one unit of the last place down
            value -= abs(value) * cut.dtype.type(2 * unit)
        cut[i] = value


@njit(cache=True, nogil=True)
def list_bf16(Z, cut, most, listed):
    """Candidates of one block of bf16 products; returns how many, or -1 where there are more than `most`.

    Z: (rows, N), bits of bf16 numbers as int16. cut: (rows,) float32. listed: int32, i * N + j ascending.
    """
    rows, N = Z.shape
    whole = N - N % _CHUNK16
    bits = cut.view(np.int32)
    count = 0
    for i in range(rows):
        if not cut[i] > 0:
            if count + N > most:
                return -1
            for j in range(N):
                listed[count] = i * N + j
                count += 1
            continue
        low = np.int16(bits[i] >> np.int32(16))
        row = Z[i]
        for chunk in range(0, N, _CHUNK16):
            end = min(chunk + _CHUNK16, N)
            if chunk < whole:
                hits = np.int16(0)
                for j in range(_CHUNK16):
                    hits |= np.int16(row[chunk + j] >= low)
                if hits == 0:
                    continue
            if count + _CHUNK16 > most:
                return -1
            for j in range(chunk, end):
                if row[j] >= low:
                    listed[count] = i * N + j
                    count += 1
    return count


@njit(cache=True, nogil=True)
def list_products(Z, cut, listed):
    """Candidates of one block of products in the network's own precision, NaN included; returns how many.

    Z: (rows, N). cut: (rows,). listed: int32, room for rows * N entries, i * N + j ascending.
    """
    rows, N = Z.shape
    whole = N - N % _CHUNK32
    count = 0
    for i in range(rows):
        low = cut[i]
        row = Z[i]
        for chunk in range(0, N, _CHUNK32):
            end = min(chunk + _CHUNK32, N)
            if chunk < whole:
                hits = 0
                for j in range(_CHUNK32):
                    hits += not row[chunk + j] < low
                if hits == 0:
                    continue
            for j in range(chunk, end):
                if not row[j] < low:
                    listed[count] = i * N + j
                    count += 1
    return count


@njit(cache=True, fastmath=FAST, nogil=True)
def recheck(
    listed, count, limit, first, rows, N, W, X, bias, adds_bias, base, sample, value, used, start, stop, maxima
):
    """Append the active pairs among the candidates of one block to a pool; returns the slots used so far.

    The block has `rows` neurons from `first` on. W: (M, d); X: (N, d), centred inputs. sample, value:
    (capacity,), the pool of this range, which begins at slot `base` of all. The count goes on when the
    pool is full, so that the caller can see how much room is needed. Returns -1, with the block's
    neurons left without pairs, as soon as it has more than `limit` of them.
    """
    d = W.shape[1]
    capacity = sample.shape[0]
    at, begin = 0, used
    for i in range(rows):
        m = first + i
        # fl(z + b) > 0 and z > -b agree exactly: a floating-point sum has the sign of the true one.
        threshold = -bias[m]
        largest = threshold
        start[m] = base + used
        w = W[m]
        past = (i + 1) * N
        while at < count and listed[at] < past:
            j = listed[at] - i * N
            at += 1
            x = X[j]
            z = W.dtype.type(0)
            for k in range(d):
                z += w[k] * x[k]
            if z > threshold:
                if used < capacity:
                    sample[used] = j
                    value[used] = z + bias[m] if adds_bias else z
                used += 1
                largest = max(largest, z)
                if used - begin > limit:
                    for back in range(rows):
                        start[first + back] = base
                        stop[first + back] = base
                    return -1
        maxima[m] = largest - threshold
        stop[m] = base + used
    return used


@lru_cache(maxsize=64)
def bf16_pays(d: int, N: int) -> bool:
    """Whether this processor multiplies bf16 matrices of these sizes in under 0.7 of the float32 time.

    A flag of the processor first (without bf16 instructions torch emulates them, slowly), then a
    measurement of a few milliseconds. Only speed depends on the answer.
    """
    able = torch.cpu.get_capabilities()
    if not (able.get("avx512_bf16") or able.get("amx_bf16") or able.get("arm_bf16") or able.get("bf16")):
        return False
    rows = max(16, min(1024, (1 << 18) // N))

    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(rows, d, dtype=dtype), torch.ones(N, d, dtype=dtype).T
        out = torch.empty(rows, N, dtype=dtype)
        best = float("inf")
        for _ in range(6):
            began = time.perf_counter()
            torch.mm(left, right, out=out)
            best = min(best, time.perf_counter() - began)
        return best

    return seconds(torch.bfloat16) < 0.7 * seconds(torch.float32)


class Batch:
    """A batch as the products see it (rounded to bf16 or not), with what the margin needs."""

    def __init__(self, centred: Tensor, rounded: bool) -> None:
        wide = centred.double()
        length = wide.norm(dim=1)
        self.product = centred
        self.missed = 0.0
        if rounded:
            low = centred.bfloat16()
            low = torch.where(low.abs().float() < 2.0**-126, torch.zeros((), dtype=low.dtype), low)
            back = low.double()
            self.missed = float((back - wide).norm(dim=1).max()) * (1 + 2.0**-40) + 1e-300
            length = torch.maximum(length, back.norm(dim=1))
            self.product = low
        self.length = float(length.max()) * (1 + 2.0**-40) + 1e-300
