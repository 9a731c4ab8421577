"""Page 4: which share of the features is learned at a target frequency, predicted and live."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from figures.explorer.scenes.scene import Scene, panel
from figures.style import ACCENT, DARK, LIGHT, MIDDLE
from simulator import BA, Exactly, Training, World, fit
from theory.geometry import best_cosines
from theory.resonance import Setting, predict

TAU = 0.9
"""Cosine above which a feature counts as recovered."""
BATCH, STEPS, BUFFER = 512, 1_500, 5_120
RATIOS = np.geomspace(0.02, 40, 40)
"""p / f at which the prediction is drawn."""


@dataclass(frozen=True)
class Place:
    """Everything but the target frequency."""

    n: int = 256
    d: int = 48
    s: int = 3
    M: int = 768

    @property
    def f(self) -> float:
        """How often a feature occurs."""
        return self.s / self.n

    def setting(self, p: float) -> Setting:
        """The predictor's view."""
        return Setting(self.n, self.d, self.s, self.M, p, buffer=BUFFER, adaptations=STEPS * BATCH // BUFFER)


@dataclass
class Trial:
    """A run at one target, as far as it is.

    Attributes:
        place, p, seed: what is trained.
        steps, shares: recovery over steps, appended while it runs.
        cosines: of every feature at the end; empty until then.
    """

    place: Place
    p: float
    seed: int
    steps: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)

    def train(self, progress: Callable[[int, float], None]) -> "Trial":
        """Run it; `shares` grow meanwhile."""
        world = World(self.place.n, self.place.d, Exactly(self.place.s))
        source = world.stream(self.seed)
        training = Training(
            BA(self.p, buffer=BUFFER), self.place.M, STEPS, BATCH, learning_rate=3e-3, decay=0.7, start_bias="quantile"
        )

        def observe(step: int, W, b) -> dict[str, float]:
            share = float((best_cosines(source.V, W) > TAU).mean())
            self.steps.append(step)
            self.shares.append(share)
            return {"recovered": share}

        outcome = fit(source, training, self.seed, threads=1, record_every=50, observe=observe, progress=progress)
        self.cosines = best_cosines(source.V, outcome.W).tolist()
        return self


@lru_cache(maxsize=256)
def band(place: Place) -> tuple[np.ndarray, np.ndarray]:
    """(p / f, predicted share), where p < 0.5."""
    ratios = RATIOS[place.f * RATIOS < 0.5]
    return ratios, predict([place.setting(float(ratio * place.f)) for ratio in ratios], TAU).recovered


def show(place: Place, p: float, trials: Sequence[Trial] = ()) -> Scene:
    """The predicted share over p / f, this p, and the runs so far, finished or not.

    Args:
        place: the world and the width.
        p: target frequency that the dial stands at.
        trials: runs at this place, the newest last.

    Raises:
        RequestError: a target or a world that the predictor cannot take.
    """
    here = predict([place.setting(p)], TAU)
    expected = float(here.recovered[0])
    ratios, shares = band(place)
    pictures, (left, middle, right) = zip(panel(), panel(), panel(), strict=True)
    left.fill_between(ratios, shares, color=LIGHT, label="predicted")
    left.axvline(p / place.f, color=ACCENT, lw=1, ls=":")
    for trial in trials:
        if trial.shares:
            done = bool(trial.cosines)
            left.plot([trial.p / place.f], [trial.shares[-1]], "o", ms=6, color=DARK, mfc=DARK if done else "white")
    left.set_xscale("log")
    left.set_xlabel("p / f")
    left.set_ylabel("features recovered, cosine > 0.9")
    left.set_title("predicted band and live runs", fontsize=10)
    numbers = {"predicted": expected, "f": place.f, "measured": float("nan")}
    latest = trials[-1] if trials else None
    waiting = "no run yet" if latest is None else "no result yet"
    shares_so_far = [] if latest is None else list(latest.shares)  # a live run goes on appending
    if latest is not None and shares_so_far:
        middle.plot(latest.steps[: len(shares_so_far)], shares_so_far, color=ACCENT, lw=1.6)
        numbers["measured"] = shares_so_far[-1]
    else:
        middle.text(STEPS / 2, 0.5, waiting, ha="center", color=MIDDLE)
    if latest is not None and latest.cosines:
        right.hist(latest.cosines, bins=np.linspace(0, 1, 41), histtype="stepfilled", color=MIDDLE)
    else:
        right.text(0.45, 0.5, waiting, ha="center", color=MIDDLE)
    right.axvline(TAU, color=DARK, lw=1, ls=":")
    middle.set_xlim(0, STEPS)
    right.set_xlim(0, 1)
    for axis in (left, middle):
        axis.set_ylim(0, 1.04)
    middle.set_xlabel("step")
    middle.set_title("share recovered while training", fontsize=10)
    right.set_xlabel("cosine with the nearest neuron")
    right.set_ylabel("features")
    right.set_title("features at the end", fontsize=10)
    edges = _edges(ratios, shares)
    text = (
        f"f = s / n = {place.f:.4f}, p = {p:.4f} = **{p / place.f:.2f} f**: predicted share **{expected:.2f}**. More "
        f"than half of the features should be learned for p / f {edges}."
    )
    if latest is not None and latest.cosines:
        text += f" The last run, at {latest.p / place.f:.2f} f, learned **{numbers['measured']:.2f}**."
    return Scene(pictures, text, numbers)


def _edges(ratios: np.ndarray, shares: np.ndarray) -> str:
    """Where more than half is learned, in words; an end of what is drawn is no end of the band."""
    inside = np.flatnonzero(shares > 0.5)
    if not len(inside):
        return "nowhere"

    def crossing(i: int, j: int) -> float:
        share = (0.5 - shares[i]) / (shares[j] - shares[i])
        return float(np.exp(np.log(ratios[i]) + share * np.log(ratios[j] / ratios[i])))

    first, last = int(inside[0]), int(inside[-1])
    low = None if first == 0 else crossing(first - 1, first)
    high = None if last == len(ratios) - 1 else crossing(last, last + 1)
    if low is None:
        return "everywhere" if high is None else f"up to {high:.2g}"
    return f"from {low:.2g} on" if high is None else f"in {low:.2g} to {high:.2g}"
