"""Compiled loops of the sparse engine for BatchTopK's selection, JumpReLU and Gated (numba).

Layout and conventions are those of `simulator.kernels`: neuron m owns the slots start[m]..stop[m] of `sample` and
`value`; each call works on one range of neurons. For JumpReLU and Gated `value` holds z = w . (x - b_pre), and
the pairs listed are those that any part of the objective needs.
"""

import numpy as np
from numba import njit

from simulator.kernels import FAST


@njit(cache=True, nogil=True)
def gather(start, stop, value, bias, adds_bias, out):
    """y of every pair into `out`, neuron by neuron; turns value from z into phi where the bias is a part of it."""
    at = 0
    for m in range(start.shape[0]):
        for slot in range(start[m], stop[m]):
            y = value[slot] + bias[m]
            out[at] = y
            at += 1
            if adds_bias:
                value[slot] = y


@njit(cache=True, nogil=True)
def keep_at_least(start, stop, sample, value, y, bar, ties, maxima):
    """Drop the pairs with y < bar, and those with y = bar after the first `ties`; y in the order of `gather`.

    Slots of a neuron close up in place; maxima[m] becomes its largest y. Returns the smallest y kept.
    """
    at = 0
    smallest = np.inf
    for m in range(start.shape[0]):
        used = start[m]
        largest = y.dtype.type(0)
        for slot in range(start[m], stop[m]):
            own = y[at]
            at += 1
            if own < bar or not own > 0:
                continue
            if own == bar:
                if ties == 0:
                    continue
                ties -= 1
            sample[used] = sample[slot]
            value[used] = value[slot]
            used += 1
            largest = max(largest, own)
            smallest = min(smallest, own)
        stop[m] = used
        maxima[m] = largest
    return smallest


@njit(cache=True, fastmath=FAST, nogil=True)
def decode_above(low, high, start, stop, sample, value, W, a, b, threshold, out, counts, maxima):
    """JumpReLU: out[l] = sum over the pairs with y = z + b > threshold of a_m y w_m; counts and maxima of them."""
    d = W.shape[1]
    out[:] = 0
    for m in range(low, high):
        active = 0
        largest = value.dtype.type(0)
        for slot in range(start[m], stop[m]):
            y = value[slot] + b[m]
            if y > threshold[m]:
                active += 1
                largest = max(largest, y)
                row = out[sample[slot]]
                weight = a[m] * y
                for k in range(d):
                    row[k] += weight * W[m, k]
        counts[m] = active
        maxima[m] = largest


@njit(cache=True, fastmath=FAST, nogil=True)
def backward_above(
    low, high, start, stop, sample, value, W, a, b, threshold, half, price, residual, centred, scale, gW, ga, gs, gt,
    touched, pull,
):  # fmt: skip
    """JumpReLU: gradient rows of the neurons low..high, times `scale` = 1/N; see `simulator.methods.JumpReLU`.

    half: half the bandwidth; price: the penalty's weight. Written: gW (M, d), ga, gs, gt (M,): W, a, b, threshold;
    pull (d,) = sum of gs_m w_m.
    """
    d = W.shape[1]
    pull[:] = 0
    g = np.empty(d, W.dtype)
    zero = W.dtype.type(0)
    for m in range(low, high):
        g[:] = 0
        sum_a, sum_s, sum_t = zero, zero, zero
        am, bar = a[m], threshold[m]
        for slot in range(start[m], stop[m]):
            r = residual[sample[slot]]
            u = zero
            for k in range(d):
                u += W[m, k] * r[k]
            y = value[slot] + b[m]
            if abs(y - bar) < half:
                sum_t -= bar * am * u + price
            if y > bar:
                x = centred[sample[slot]]
                to_r, to_x = am * y, am * u
                for k in range(d):
                    g[k] += to_r * r[k] + to_x * x[k]
                sum_a += y * u
                sum_s += to_x
        if start[m] < stop[m] or touched[m]:
            for k in range(d):
                gW[m, k] = scale * g[k]
        touched[m] = start[m] < stop[m]
        ga[m] = scale * sum_a
        gs[m] = scale * sum_s
        gt[m] = scale * sum_t / (2 * half)
        for k in range(d):
            pull[k] += gs[m] * W[m, k]


@njit(cache=True, fastmath=FAST, nogil=True)
def decode_gated(
    low, high, start, stop, sample, value, W, a, b, gain, shift, out, by_gate, counts, maxima, charged
):  # fmt: skip
    """Gated: the reconstructions from the magnitudes (`out`) and from the gates (`by_gate`), both (N, d).

    charged[m] = sum of the gates' values; counts, maxima: pairs whose magnitude is positive too, y = z + b.
    """
    d = W.shape[1]
    out[:] = 0
    by_gate[:] = 0
    for m in range(low, high):
        active = 0
        largest = value.dtype.type(0)
        total = value.dtype.type(0)
        for slot in range(start[m], stop[m]):
            z = value[slot]
            gate, size = z + b[m], gain[m] * z + shift[m]
            total += gate
            weight = a[m] * gate
            row = by_gate[sample[slot]]
            for k in range(d):
                row[k] += weight * W[m, k]
            if size > 0:
                active += 1
                largest = max(largest, gate)
                weight = a[m] * size
                row = out[sample[slot]]
                for k in range(d):
                    row[k] += weight * W[m, k]
        counts[m] = active
        maxima[m] = largest
        charged[m] = total


@njit(cache=True, fastmath=FAST, nogil=True)
def backward_gated(
    low, high, start, stop, sample, value, W, a, b, gain, shift, price, radial, charged, residual, by_gate, centred,
    scale, gW, ga, gs, gg, gm, touched, pull,
):  # fmt: skip
    """Gated: gradient rows of the neurons low..high, times `scale` = 1/N; see `simulator.methods.Gated`.

    price (M,) = weight ||w_m||, radial (M,) = weight / ||w_m||. Written: gW (M, d) and ga, gs, gg, gm (M,): W, a, b,
    log_gain, magnitude_bias; pull (d,) = what b_pre loses through z.
    """
    d = W.shape[1]
    pull[:] = 0
    g = np.empty(d, W.dtype)
    zero = W.dtype.type(0)
    for m in range(low, high):
        g[:] = 0
        sum_a, sum_s, sum_g, sum_m, sum_z = zero, zero, zero, zero, zero
        am = a[m]
        extra = abs(am) * price[m]
        for slot in range(start[m], stop[m]):
            at = sample[slot]
            r, q, x = residual[at], by_gate[at], centred[at]
            u, v = zero, zero
            for k in range(d):
                u += W[m, k] * r[k]
                v += W[m, k] * q[k]
            z = value[slot]
            gate, size = z + b[m], gain[m] * z + shift[m]
            slope = am * v + extra
            sum_s += slope
            sum_a += gate * v
            to_r, to_q = zero, am * gate
            if size > 0:
                to_r = am * size
                sum_a += size * u
                sum_g += am * u * z * gain[m]
                sum_m += am * u
                slope += am * u * gain[m]
            sum_z += slope
            for k in range(d):
                g[k] += to_r * r[k] + to_q * q[k] + slope * x[k]
        if start[m] < stop[m] or touched[m]:
            along = abs(am) * radial[m] * charged[m]
            for k in range(d):
                gW[m, k] = scale * (g[k] + along * W[m, k])
        touched[m] = start[m] < stop[m]
        ga[m] = scale * (sum_a + np.sign(am) * price[m] * charged[m])
        gs[m] = scale * sum_s
        gg[m] = scale * sum_g
        gm[m] = scale * sum_m
        for k in range(d):
            pull[k] += scale * sum_z * W[m, k]
