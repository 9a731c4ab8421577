"""Compiled inner loops of the sparse engine (numba). Imported only where numba is installed.

Layout. Active pairs are stored neuron by neuron: neuron m owns the slots start[m]..stop[m] of
`sample` (which sample of the batch) and `value` (phi of the pair). Work is cut into `parts`
contiguous pieces with boundaries fixed beforehand, one piece per thread, and every partial sum is
added in the order of the pieces: results are bitwise repeatable for a given number of threads.
"""

import numba
import numpy as np
from numba import njit, prange

# Sums may be re-associated (that is what vectorises a dot product); NaN and infinity keep their meaning,
# since a diverging run has to be seen.
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_CHUNK = 16


@njit(cache=True, fastmath=_FAST, parallel=True, nogil=True)
def scan_block(Z, bias, first, adds_bias, parts, sample, value, start, stop, fill, maxima):
    """Append the pairs with z + b > 0 of one block of neurons.

    Z: (rows, N) products w_m . (x - b_pre) of the neurons first..first+rows. sample, value: (parts,
    capacity) pools. start, stop: (M,) slots in the flattened pools. fill: (parts,) used slots; it
    goes on counting when a pool is full, so that the caller can see how much room is needed.
    """
    rows, N = Z.shape
    capacity = sample.shape[1]
    whole = N - N % _CHUNK
    for part in prange(parts):
        used = fill[part]
        for i in range(part * rows // parts, (part + 1) * rows // parts):
            m = first + i
            # fl(z + b) > 0 and z > -b agree exactly: a floating-point sum has the sign of the true one.
            threshold = -bias[m]
            row = Z[i]
            largest = threshold
            begin = used
            for chunk in range(0, whole, _CHUNK):
                hits = 0
                for j in range(_CHUNK):
                    hits += row[chunk + j] > threshold
                if hits:
                    for j in range(chunk, chunk + _CHUNK):
                        if row[j] > threshold:
                            if used < capacity:
                                sample[part, used] = j
                                value[part, used] = row[j]
                            used += 1
                            largest = max(largest, row[j])
            for j in range(whole, N):
                if row[j] > threshold:
                    if used < capacity:
                        sample[part, used] = j
                        value[part, used] = row[j]
                    used += 1
                    largest = max(largest, row[j])
            maxima[m] = largest - threshold
            if adds_bias:
                for slot in range(min(begin, capacity), min(used, capacity)):
                    value[part, slot] += bias[m]
            start[m] = part * capacity + begin
            stop[m] = part * capacity + used
        fill[part] = used


@njit(cache=True, nogil=True)
def balance(start, stop, edges):
    """Cut the neurons into len(edges) - 1 contiguous pieces with nearly equal numbers of pairs."""
    M, parts = start.shape[0], edges.shape[0] - 1
    total = 0
    for m in range(M):
        total += stop[m] - start[m] + 1
    edges[0] = 0
    piece, seen = 1, 0
    for m in range(M):
        seen += stop[m] - start[m] + 1
        while piece < parts and seen * parts >= total * piece:
            edges[piece] = m + 1
            piece += 1
    while piece <= parts:
        edges[piece] = M
        piece += 1


@njit(cache=True, fastmath=_FAST, parallel=True, nogil=True)
def decode_pairs(start, stop, sample, value, edges, W, a, out):
    """out[part, l] = sum over the pairs (m, l) of the part of a_m phi w_m; out: (parts, N, d)."""
    d = W.shape[1]
    for part in prange(edges.shape[0] - 1):
        partial = out[part]
        partial[:] = 0
        for m in range(edges[part], edges[part + 1]):
            for slot in range(start[m], stop[m]):
                row = partial[sample[slot]]
                weight = a[m] * value[slot]
                for k in range(d):
                    row[k] += weight * W[m, k]


@njit(cache=True, fastmath=_FAST, parallel=True, nogil=True)
def backward_pairs(
    start, stop, sample, value, edges, W, a, residual, centred, scale, penalty, radial, add,
    gW, ga, gs, touched, pull
):
    """Gradient rows of all neurons with active pairs.

    With u = w_m . residual_l, per pair and times `scale` (1/N):
        gW_m += a phi residual_l + (a u + penalty_m) centred_l + radial_m phi w_m,
        ga_m += phi u,  gs_m += a u + penalty_m.
    `add` says whether the gradients are added to or set. touched: (M,), rows of gW that are not zero; on
    entry those of the step before, so that only rows that were used are cleared.
    pull[part] = sum of gs_m w_m (what b_pre loses through the pre-activations); penalty, radial: (M,), the
    L1 penalty's share (lambda ||w_m|| and lambda / ||w_m||), else zero.
    """
    d = W.shape[1]
    for part in prange(edges.shape[0] - 1):
        pulled = pull[part]
        pulled[:] = 0
        w = np.empty(d, W.dtype)
        g = np.empty(d, W.dtype)
        for m in range(edges[part], edges[part + 1]):
            if start[m] == stop[m]:
                if not add:
                    ga[m] = 0
                    gs[m] = 0
                    if touched[m]:
                        for k in range(d):
                            gW[m, k] = 0
                        touched[m] = False
                continue
            touched[m] = True
            am, extra = a[m], penalty[m]
            for k in range(d):
                w[k] = W[m, k]
                g[k] = 0
            sum_a = w[0] * 0
            sum_s = w[0] * 0
            sum_phi = w[0] * 0
            for slot in range(start[m], stop[m]):
                r = residual[sample[slot]]
                x = centred[sample[slot]]
                u = w[0] * 0
                for k in range(d):
                    u += w[k] * r[k]
                phi = value[slot]
                to_r = am * phi
                to_x = am * u + extra
                for k in range(d):
                    g[k] += to_r * r[k] + to_x * x[k]
                sum_a += phi * u
                sum_s += to_x
                sum_phi += phi
            along = radial[m] * sum_phi
            for k in range(d):
                g[k] += along * w[k]
            if add:
                for k in range(d):
                    gW[m, k] += scale * g[k]
                ga[m] += scale * sum_a
                gs[m] += scale * sum_s
            else:
                for k in range(d):
                    gW[m, k] = scale * g[k]
                ga[m] = scale * sum_a
                gs[m] = scale * sum_s
            for k in range(d):
                pulled[k] += scale * sum_s * w[k]


@njit(cache=True, nogil=True)
def group_by_neuron(neuron, phi, y, kept, start, stop, sample, value, maxima):
    """Turn the sample-major pairs of TopK (N, k) into neuron-major slots by a counting sort."""
    N, k = neuron.shape
    start[:] = 0
    stop[:] = 0
    maxima[:] = 0
    for i in range(N):
        for j in range(k):
            if kept[i, j]:
                stop[neuron[i, j]] += 1
    used = 0
    for m in range(start.shape[0]):
        start[m] = used
        used += stop[m]
        stop[m] = start[m]
    for i in range(N):
        for j in range(k):
            if kept[i, j]:
                m = neuron[i, j]
                slot = stop[m]
                sample[slot] = i
                value[slot] = phi[i, j]
                maxima[m] = max(maxima[m], y[i, j])
                stop[m] = slot + 1


@njit(cache=True, fastmath=_FAST, parallel=True, nogil=True)
def adamw_rows(W, mean, square, gW, touched, moving, rate, beta1, beta2, eps, keep, fix1, fix2, unit, parts):
    """AdamW on the rows of W, in place, then (if `unit`) each moved row scaled to unit norm.

    touched[m]: row m has a gradient in gW; elsewhere the gradient is zero and gW is not read. moving[m]:
    the row ever had one; a row that never had keeps zero moments and is changed by weight decay alone.
    keep = 1 - rate * weight_decay; fix1, fix2 = 1 - beta^t.
    """
    M, d = W.shape
    tiny = W.dtype.type(1e-36)
    zero = W.dtype.type(0)
    step = W.dtype.type(rate / fix1)
    back = W.dtype.type(1 / np.sqrt(fix2))
    b1, b2 = W.dtype.type(beta1), W.dtype.type(beta2)
    c1, c2 = W.dtype.type(1 - beta1), W.dtype.type(1 - beta2)
    e, hold = W.dtype.type(eps), W.dtype.type(keep)
    for part in prange(parts):
        for m in range(part * M // parts, (part + 1) * M // parts):
            if touched[m]:
                moving[m] = True
                for k in range(d):
                    g = gW[m, k]
                    mean[m, k] = b1 * mean[m, k] + c1 * g
                    square[m, k] = b2 * square[m, k] + c2 * g * g
            elif moving[m]:
                for k in range(d):
                    # Decaying moments are cut before they become denormal numbers, which are slow;
                    # 1e-36 is far below anything that eps lets through.
                    first = b1 * mean[m, k]
                    second = b2 * square[m, k]
                    mean[m, k] = first if abs(first) > tiny else zero
                    square[m, k] = second if second > tiny else zero
            elif hold == 1:
                continue
            norm = zero
            for k in range(d):
                w = hold * W[m, k] - step * mean[m, k] / (np.sqrt(square[m, k]) * back + e)
                W[m, k] = w
                norm += w * w
            if unit and norm > 0:
                shrink = 1 / np.sqrt(norm)
                for k in range(d):
                    W[m, k] *= shrink


def set_threads(threads: int) -> None:
    """Use this many threads in the kernels, at most as many as numba started with."""
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore
