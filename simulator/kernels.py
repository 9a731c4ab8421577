"""Compiled inner loops of the sparse engine (numba). Imported only where numba is installed.

Layout. Active pairs are stored neuron by neuron: neuron m owns the slots start[m]..stop[m] of
`sample` (which sample of the batch) and `value` (phi of the pair). Every kernel works on one range of
neurons (or samples) and holds no lock, so that several Python threads can each run a range of their own
(`simulator.team`); nothing is shared between ranges but read-only arrays.
"""

import numpy as np
from numba import njit

# Sums may be re-associated (that is what vectorises a dot product); NaN and infinity keep their meaning,
# since a diverging run has to be seen.
FAST = {"reassoc", "contract", "arcp", "nsz"}
_CHUNK = 16


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


@njit(cache=True, fastmath=FAST, nogil=True)
def decode_pairs(low, high, start, stop, sample, value, W, a, out):
    """out[l] = sum over the pairs (m, l), low <= m < high, of a_m phi w_m; out: (N, d)."""
    d = W.shape[1]
    out[:] = 0
    for m in range(low, high):
        for slot in range(start[m], stop[m]):
            row = out[sample[slot]]
            weight = a[m] * value[slot]
            for k in range(d):
                row[k] += weight * W[m, k]


@njit(cache=True, fastmath=FAST, nogil=True)
def backward_pairs(
    low,
    high,
    start,
    stop,
    sample,
    value,
    W,
    a,
    residual,
    centred,
    scale,
    penalty,
    radial,
    add,
    gW,
    ga,
    gs,
    touched,
    pull,
):
    """Gradient rows of the neurons low..high with active pairs.

    With u = w_m . residual_l, per pair and times `scale` (1/N):
        gW_m += a phi residual_l + (a u + penalty_m) centred_l + radial_m phi w_m,
        ga_m += phi u,  gs_m += a u + penalty_m.
    `add` says whether the gradients are added to or set. touched: (M,), rows of gW that are not zero; on
    entry those of the step before, so that only rows that were used are cleared.
    pull = sum of gs_m w_m (what b_pre loses through the pre-activations); penalty, radial: (M,), the
    L1 penalty's share (lambda ||w_m|| and lambda / ||w_m||), else zero.
    """
    d = W.shape[1]
    pull[:] = 0
    w = np.empty(d, W.dtype)
    g = np.empty(d, W.dtype)
    for m in range(low, high):
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
        sum_a = W.dtype.type(0)  # w[0] * 0 would be a float64, and every sum with it
        sum_s = W.dtype.type(0)
        sum_phi = W.dtype.type(0)
        for slot in range(start[m], stop[m]):
            r = residual[sample[slot]]
            x = centred[sample[slot]]
            u = W.dtype.type(0)
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
            pull[k] += scale * sum_s * w[k]


@njit(cache=True, inline="always")
def _sift_down(heap, owner, size, y, m):
    """Put (y, m) at the root of a min-heap of `size` entries and restore the order."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= y:
            break
        heap[at], owner[at] = heap[child], owner[child]
        at = child
    heap[at], owner[at] = y, m


@njit(cache=True, inline="always")
def _keep_largest(heap, owner, size, k, y, m):
    """Offer (y, m) to the min-heap of the k largest so far; returns its new size."""
    if size == k:
        if y > heap[0]:
            _sift_down(heap, owner, size, y, m)
        return size
    at = size
    while at > 0 and heap[(at - 1) // 2] > y:
        heap[at], owner[at] = heap[(at - 1) // 2], owner[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at], owner[at] = y, m
    return size + 1


@njit(cache=True, nogil=True)
def group_by_neuron(found, neuron, y_value, bias, adds_bias, start, stop, sample, value, maxima):
    """Turn the sample-major pairs of `simulator.selection` into neuron-major slots by a counting sort."""
    start[:] = 0
    stop[:] = 0
    maxima[:] = 0
    for i in range(found.shape[0]):
        for j in range(found[i]):
            stop[neuron[i, j]] += 1
    used = 0
    for m in range(start.shape[0]):
        start[m] = used
        used += stop[m]
        stop[m] = start[m]
    for i in range(found.shape[0]):
        for j in range(found[i]):
            m = neuron[i, j]
            y = y_value[i, j]
            slot = stop[m]
            sample[slot] = i
            value[slot] = y if adds_bias else y - bias[m]
            maxima[m] = max(maxima[m], y)
            stop[m] = slot + 1


@njit(cache=True, fastmath=FAST, nogil=True)
def adamw_rows(low, high, W, mean, square, gW, touched, moving, rate, beta1, beta2, eps, keep, fix1, fix2, unit):
    """AdamW on the rows low..high of W, in place, then (if `unit`) each moved row scaled to unit norm.

    touched[m]: row m has a gradient in gW; elsewhere the gradient is zero and gW is not read. moving[m]:
    the row ever had one; a row that never had keeps zero moments and is changed by weight decay alone.
    keep = 1 - rate * weight_decay; fix1, fix2 = 1 - beta^t.
    """
    d = W.shape[1]
    tiny = W.dtype.type(1e-36)
    zero = W.dtype.type(0)
    step = W.dtype.type(rate / fix1)
    back = W.dtype.type(1 / np.sqrt(fix2))
    b1, b2 = W.dtype.type(beta1), W.dtype.type(beta2)
    c1, c2 = W.dtype.type(1 - beta1), W.dtype.type(1 - beta2)
    e, hold = W.dtype.type(eps), W.dtype.type(keep)
    for m in range(low, high):
        if touched[m]:
            moving[m] = True
            for k in range(d):
                g = gW[m, k]
                mean[m, k] = b1 * mean[m, k] + c1 * g
                square[m, k] = b2 * square[m, k] + c2 * g * g
        elif moving[m]:
            for k in range(d):
                # Decaying moments are cut before they become denormal numbers, which are slow; a first
                # moment of 1e-36 moves a weight by less than 1e-36 / eps.
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


@njit(cache=True, fastmath=FAST, nogil=True)
def gate_block(Z, bias, a, first, adds_bias, counts, maxima):
    """Turn the products of a whole block of neurons into a_m phi_ml in place; counts and maxima of y too.

    Z: (rows, N) products w_m . (x - b_pre) of the neurons first..first+rows; counts, maxima: (M,).
    """
    rows, N = Z.shape
    zero = Z.dtype.type(0)
    for i in range(rows):
        m = first + i
        threshold = -bias[m]
        largest = threshold
        active = 0
        shift = bias[m] if adds_bias else zero
        for j in range(N):
            z = Z[i, j]
            active += z > threshold
            largest = max(largest, z)
            Z[i, j] = a[m] * (z + shift) if z > threshold else zero
        counts[m] = active
        maxima[m] = largest - threshold


@njit(cache=True, fastmath=FAST, nogil=True)
def slope_block(Z, U, bias, a, first, adds_bias, scale, penalty, ga, gs, sum_phi):
    """Of a whole block: Z becomes scale a phi, U (in: w_m . residual_l) becomes scale (a u + penalty) where active.

    Z, U: (rows, N). Written: ga, gs (M,) as in `backward_pairs`, sum_phi (rows,) = scale sum_l phi_ml.
    """
    rows, N = Z.shape
    zero = Z.dtype.type(0)
    for i in range(rows):
        m = first + i
        threshold = -bias[m]
        shift = bias[m] if adds_bias else zero
        am, extra = a[m], penalty[m]
        sum_a = zero
        sum_s = zero
        total = zero
        for j in range(N):
            active = Z[i, j] > threshold
            phi = Z[i, j] + shift if active else zero
            slope = am * U[i, j] + extra if active else zero
            sum_a += phi * U[i, j]
            sum_s += slope
            total += phi
            Z[i, j] = scale * (am * phi)
            U[i, j] = scale * slope
        ga[m] = scale * sum_a
        gs[m] = scale * sum_s
        sum_phi[i] = scale * total
