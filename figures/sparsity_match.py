"""Command compare: the value of a method's knob that gives the L0 of a perfect dictionary."""

import numpy as np
import pandas as pd

from figures.contenders import CONTENDERS

CLOSE = 1.1
"""A trial whose L0 is within this factor of the wanted one needs no further trial."""


def matched(trials: pd.DataFrame, wanted: float, M: int) -> float:
    """The knob value whose L0 should be `wanted`: log L0 is interpolated in log knob.

    Between the two neighbouring trials that enclose `wanted`; where several pairs do (L0 need not be monotone in the
    knob), those that recover more. Where none does, from the trial that comes nearest, outward along the line through
    its neighbour if that trial is the first or last one tried and the line leads towards `wanted`, at most to four
    times (or a quarter of) its knob; otherwise the nearest trial's own value. Within what the method can take.

    Args:
        trials: rows with method, knob, mean_l0 and frr_090 of one competitor.
        wanted: L0.
        M: number of neurons.
    """
    contender = CONTENDERS[trials["method"].iloc[0]]
    if contender.whole:  # the L0 of TopK is its k
        return float(min(M, max(1, round(wanted))))
    known = trials[(trials["mean_l0"] > 0) & trials["mean_l0"].notna()].sort_values("knob")
    if known.empty:
        return float(trials["knob"].iloc[0])
    knob, gap = np.log(known["knob"].to_numpy(float)), np.log(known["mean_l0"].to_numpy(float) / wanted)
    value = _inside(knob, gap, known["frr_090"].fillna(0.0).to_numpy(float))
    if value is None:
        value = _outside(knob, gap)
    low, high = contender.ends(M)
    return float(min(max(np.exp(value), low), high))


def close(trials: pd.DataFrame, wanted: float) -> bool:
    """Whether a trial has come so near that another one would teach nothing."""
    l0 = trials["mean_l0"].to_numpy(float)
    return bool((np.abs(np.log(l0[l0 > 0] / wanted)) <= np.log(CLOSE)).any())


def _inside(knob: np.ndarray, gap: np.ndarray, recovered: np.ndarray) -> float | None:
    """The crossing of zero between the enclosing pair that recovers more; None where no pair encloses it."""
    pairs = np.flatnonzero(gap[:-1] * gap[1:] <= 0)
    if not len(pairs):
        return None
    at = int(pairs[np.argmax(recovered[pairs] + recovered[pairs + 1])])
    rise = gap[at + 1] - gap[at]
    share = -gap[at] / rise if rise else 0.0
    return float(knob[at] + share * (knob[at + 1] - knob[at]))


def _outside(knob: np.ndarray, gap: np.ndarray) -> float:
    """Outward from the nearest trial where that leads on, the nearest trial itself where not."""
    near = int(np.argmin(np.abs(gap)))
    inner = {0: 1, len(knob) - 1: len(knob) - 2}.get(near)
    if inner is None or len(knob) < 2 or abs(gap[inner] - gap[near]) < 1e-9:
        return float(knob[near])
    slope = (gap[near] - gap[inner]) / (knob[near] - knob[inner])
    step = -gap[near] / slope  # outward: the neighbour is further from zero, on the same side of it
    return float(knob[near] + np.clip(step, -np.log(4), np.log(4)))
