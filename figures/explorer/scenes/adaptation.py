"""Page 3: the pre-activations of one neuron and the threshold that the rule of bias adaptation moves."""

from functools import lru_cache

import numpy as np
import torch
from scipy.stats import norm

from figures.explorer.scenes.scene import Scene, panel
from figures.style import ACCENT, DARK, LIGHT, MIDDLE
from simulator import Exactly, OneSided, TwoSided, World, stream
from simulator.adaptation import adapt
from simulator.checks import real, whole

N_FEATURES, D = 128, 42
BUFFER, BUFFERS, ADAPTATIONS = 5_120, 20, 150
"""Samples in a buffer, buffers (used in turn), adaptations shown."""
RULES = {"one-sided": OneSided(), "two-sided": TwoSided()}


@lru_cache(maxsize=16)
def _inputs(s: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit-norm inputs, whether feature 0 is active in them, and the direction of feature 0."""
    sample = World(N_FEATURES, D, Exactly(s)).sample(BUFFER * BUFFERS, seed)
    X = sample.X / np.linalg.norm(sample.X, axis=1, keepdims=True)
    active = np.zeros(len(X), dtype=bool)
    rows = np.repeat(np.arange(len(X)), np.diff(sample.H.indptr))
    active[rows[sample.H.indices == 0]] = True
    return X, active, sample.V[0] / np.linalg.norm(sample.V[0])


@lru_cache(maxsize=64)
def preactivations(cosine: float, s: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """u = <w, x> of a unit neuron w at that cosine with feature 0, and whether feature 0 is active."""
    X, active, v = _inputs(s, seed)
    other = stream(seed, "explorer neuron").standard_normal(D)
    other -= (other @ v) * v
    w = cosine * v + np.sqrt(1 - cosine * cosine) * other / np.linalg.norm(other)
    return X @ w.astype(X.dtype), active


def adapted(
    u: np.ndarray, mate: np.ndarray, p: float, rule: OneSided | TwoSided, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Threshold -b before each adaptation and after the last, and the frequency q measured in each buffer.

    The library's rule on a group of two: this neuron, and a random one that starts where it meets the target; without a
    mate that fires, a neuron that never fires has nothing to be raised by. q and r are the share and the largest of the
    pre-activations u + b above zero in a buffer.
    """
    b = torch.tensor([-threshold, -float(np.quantile(mate, 1 - p))], dtype=torch.float64)
    targets = torch.full_like(b, p)
    path, frequencies = [threshold], []
    buffers = np.stack([u, mate]).reshape(2, BUFFERS, BUFFER)
    for step in range(ADAPTATIONS):
        y = buffers[:, step % BUFFERS] + b.numpy()[:, None]
        q, r = torch.from_numpy((y > 0).mean(axis=1)), torch.from_numpy(np.maximum(y.max(axis=1), 0))
        frequencies.append(q[0].item())
        b = adapt(b, q, r, targets, [(0, 2)], rule)
        path.append(-b[0].item())
    return np.array(path), np.array(frequencies)


def show(p: float, cosine: float, start: float, s: int = 3, seed: int = 0) -> Scene:
    """Histogram of one neuron's pre-activations with the final thresholds; their way there under both rules.

    Args:
        p: target activation frequency, in (0, 0.5).
        cosine: of the neuron with its feature, 0 to 1.
        start: threshold -b at the start, 0 to 1.
        s: active features per sample. seed: of data and neuron.

    Raises:
        RequestError: a value outside its range.
    """
    p = real("target frequency p", p, 0, 0.5, open_low=True, open_high=True)
    cosine = real("cosine", cosine, 0, 1)
    start = real("threshold at the start", start, 0, 1)
    whole("s", s, 1, 8)
    u, active = preactivations(cosine, s, seed)
    mate, _ = preactivations(0.0, s, seed)
    f = s / N_FEATURES
    pictures, (left, middle, right) = zip(panel(), panel(), panel(), strict=True)
    bins = np.linspace(min(-0.6, float(u.min())), 1.0, 81)
    left.hist(u[~active], bins=bins, histtype="stepfilled", color=LIGHT, label="feature absent")
    left.hist(u[active], bins=bins, histtype="stepfilled", color=MIDDLE, label="feature active")
    left.set_yscale("log")
    left.set_ylim(top=40 * left.get_ylim()[1])  # room for the legend
    left.set_xlabel("pre-activation ⟨w, x⟩")
    left.set_ylabel("samples")
    numbers = {"f": f, "p": p}
    looks = {"one-sided": (ACCENT, "-"), "two-sided": (DARK, "--")}
    for name, rule in RULES.items():
        path, frequencies = adapted(u, mate, p, rule, start)
        colour, line = looks[name]
        left.axvline(path[-1], color=colour, ls=line, lw=1.6)
        middle.plot(path, color=colour, ls=line, lw=1.6, label=name)
        right.plot(np.maximum(frequencies, 1e-4), color=colour, ls=line, lw=1.2, label=name)
        last = u > path[-1]
        numbers |= {
            f"{name} threshold": float(path[-1]),
            f"{name} frequency": float(last.mean()),
            f"{name} own": float(last[active].mean()),
            f"{name} spurious": float(last[~active].mean()),
        }
    right.axhline(p, color=DARK, lw=0.8, ls=":")
    right.text(ADAPTATIONS, p, " p", va="bottom" if p >= f else "top", fontsize=9)
    right.axhline(f, color=MIDDLE, lw=0.8, ls=":")
    right.text(ADAPTATIONS, f, " f", va="top" if p >= f else "bottom", fontsize=9, color=MIDDLE)
    middle.set_xlabel("adaptations")
    middle.set_ylabel("threshold -b")
    right.set_yscale("log")
    right.set_ylim(9e-5, 1)
    right.set_xlabel("adaptations")
    right.set_ylabel("activation frequency q")
    left.legend(fontsize=8, frameon=False)
    middle.legend(fontsize=8, frameon=False)
    one, two = numbers["one-sided frequency"], numbers["two-sided frequency"]
    predicted = float(norm.isf(p)) / D**0.5
    text = (
        f"Feature 0 occurs in f = {f:.4f} of the samples; the target is p = {p:.4f} = {p / f:.2g} f. After "
        f"{ADAPTATIONS} adaptations the neuron fires in **{one:.4f}** of the samples under the one-sided rule (p is a "
        f"ceiling: below it nothing moves unless the neuron never fires) and in **{two:.4f}** under the two-sided rule "
        f"(p is a set point).\n\n"
        f"With the one-sided rule it sees {numbers['one-sided own']:.0%} of its feature's samples and fires on "
        f"{numbers['one-sided spurious']:.2%} of the others.{_still(numbers, p)} A random neuron would meet p at the "
        f"threshold Φ̄⁻¹(p)/√d = {predicted:.2f}."
    )
    return Scene(pictures, text, numbers)


def _still(numbers: dict[str, float], p: float) -> str:
    """Which rules have not come to rest: above the ceiling, or off the set point, by more than a fifth."""
    high, low = 1.2 * p, 0.8 * p
    moving = [
        name
        for name in RULES
        if numbers[f"{name} frequency"] > high or (name == "two-sided" and numbers[f"{name} frequency"] < low)
    ]
    return f" **Still on its way** after {ADAPTATIONS} adaptations: {' and '.join(moving)}." if moving else ""
