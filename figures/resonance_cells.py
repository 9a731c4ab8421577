"""The cells on which the resonance predictor is scored, and those that test the two hypotheses about its edges.

The predictor (`theory.resonance`) was developed on n = 256 and 512, s = 3 and 4, buffers 512, 5,120 and 51,200,
M / n = 1, 2, 4, 8, 16 and the one-sided rule. The scored cells have other n, s, M and buffers, and half of the
sweeps use the two-sided rule, which was never run in development.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from figures.cells import Cell
from simulator import BA, Exactly, OneSided, Training, TwoSided, World
from theory.bounds import frequency_band, resonance_band_limit
from theory.resonance import Rectangle, Setting, held_activations, predict

STEPS, BATCH = 1_500, 512
RELATIVE = (0.2, 0.6, 1.2, 2.4, 4.8, 9.6, 16.0)
"""p / f of the sweeps in p."""
ONE, TWO = "one-sided", "two-sided"
# n, d, s, M / n, buffer, rule
P_SWEEPS = (
    (384, 40, 3, 3, 2_048, ONE),
    (768, 48, 2, 4, 10_240, ONE),
    (1_024, 96, 5, 3, 7_680, ONE),
    (384, 64, 5, 6, 1_024, ONE),
    (768, 32, 3, 3, 20_480, ONE),
    (1_024, 28, 2, 2, 1_536, TWO),
    (384, 24, 2, 6, 2_560, TWO),
    (768, 112, 5, 3, 15_360, TWO),
)
# n, s, M / n, buffer, rule; p = 1.7 f
D_SWEEPS = ((384, 3, 3, 2_048, ONE), (1_024, 2, 3, 10_240, ONE), (768, 5, 4, 4_096, TWO))
DIMENSIONS = (5, 7, 10, 14, 20, 28)
"""d / s of the sweeps in d."""
RECTANGLE = Rectangle(1.1224, 5.2465, 25.56)
"""Fitted to the 81 digitised cells of the paper's map (`figures.resonance.paper_rectangle`, tested)."""


def setting_of(
    n: int, d: int, s: int, ratio: float, buffer: int, rule: Literal["one-sided", "two-sided"], relative: float
) -> Setting:
    """The setting with M = ratio n, p = relative s / n and the reference training's number of adaptations."""
    return Setting(n, d, s, round(ratio * n), relative * s / n, rule, buffer, adaptations(buffer, STEPS, BATCH))


def adaptations(buffer: int, steps: int, batch: int) -> int:
    """How often the biases move: whenever whole batches have filled the buffer."""
    return max(1, steps // -(-buffer // batch))


def held_out() -> list[tuple[str, Setting]]:
    """The scored settings with the name of their sweep."""
    found = []
    for k, sweep in enumerate(P_SWEEPS):
        found += [(f"p {k + 1}", setting_of(*sweep, relative)) for relative in RELATIVE]
    for k, (n, s, ratio, buffer, rule) in enumerate(D_SWEEPS):
        found += [(f"d {k + 1}", setting_of(n, s * size, s, ratio, buffer, rule, 1.7)) for size in DIMENSIONS]
    return found


def cell_of(setting: Setting, seed: int, steps: int = STEPS, batch: int = BATCH) -> Cell:
    """The run of a setting with the reference training: AdamW 3e-3, falling to 0 over the last 0.7 of the steps."""
    rule = OneSided() if setting.rule == ONE else TwoSided()
    training = Training(
        BA(setting.p, rule, setting.buffer), setting.M, steps, batch, learning_rate=3e-3, decay=0.7,
        start_bias="quantile",
    )  # fmt: skip
    world = World(setting.n, setting.d, Exactly(setting.s))
    return Cell(world, training, seed, samples=2_000, references=False)


def labels(sweeps: Sequence[str], settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """What is known of each setting before it is run: its numbers and what every predictor says."""
    ours = {tau: predict(settings, tau) for tau in (0.8, 0.9)}
    rectangle = RECTANGLE.predict(settings)
    rows = []
    for i, (sweep, setting) in enumerate(zip(sweeps, settings, strict=True)):
        f = setting.frequency
        low, high = frequency_band(setting.n, setting.d, setting.s, 0.0, 0.0)[:2]
        limit_low, limit_high = resonance_band_limit(f, setting.d)
        rows.append(
            {
                "sweep": sweep, "n": setting.n, "d": setting.d, "s": setting.s, "M": setting.M,
                "buffer": setting.buffer, "rule": setting.rule, "p / f": setting.p / f, "d / s": setting.d / setting.s,
                "p": setting.p,
                "predicted 0.8": float(ours[0.8].recovered[i]), "predicted 0.9": float(ours[0.9].recovered[i]),
                "predicted cosine": float(ours[0.9].cosine[i]), "rectangle": rectangle[i],
                "theorem band": float(low <= setting.p <= high),
                "limit band": float(limit_low <= setting.p <= limit_high),
            }
        )  # fmt: skip
    return rows


def held_out_cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    """Label columns and cell of the scored settings."""
    if size == "tiny":
        chosen = [("p 1", Setting(24, 12, 2, 48, relative * 2 / 24, ONE, 512, 5)) for relative in (0.5, 1.5, 5.0)]
        chosen += [("d 1", Setting(24, 2 * size, 2, 48, 0.14, TWO, 512, 5)) for size in (4, 8)]
        run = {"steps": 20, "batch": 128}
    else:
        chosen, run = held_out(), {}
    rows = labels([sweep for sweep, _ in chosen], [setting for _, setting in chosen])
    return [
        (row, cell_of(setting, seed, **run)) for row, (_, setting) in zip(rows, chosen, strict=True) for seed in seeds
    ]


@dataclass(frozen=True)
class BufferWorld:
    """A world on which p / f and f B are crossed with both rules."""

    n: int
    d: int
    s: int
    M: int
    steps: int
    batch: int
    buffered: tuple[float, ...]
    relative: tuple[float, ...]


# In the first f B = 0.3 is one batch. The second is that of the scored sweep which has a lower edge.
BUFFER_WORLDS = (
    BufferWorld(1_024, 96, 3, 2_048, 7_500, 102, (0.3, 1.0, 3.0, 10.0, 100.0), (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)),
    BufferWorld(384, 64, 5, 2_304, 1_500, 512, (13.3, 53.0, 213.0), (0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 2.0)),
)


def buffer_cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    """Label columns and cell of the test of the count balance: p / f against f B, both rules."""
    worlds = BUFFER_WORLDS if size == "full" else (BufferWorld(24, 12, 2, 48, 20, 102, (10.0,), (0.5, 1.0)),)
    found = []
    for world in worlds:
        f = world.s / world.n
        for rule in (ONE, TWO):
            for count in world.buffered:
                buffer = round(count / f)
                for relative in world.relative:
                    T = adaptations(buffer, world.steps, world.batch)
                    setting = Setting(world.n, world.d, world.s, world.M, relative * f, rule, buffer, T)
                    held = min(1.0, held_activations(setting.p * buffer) / count) if rule == ONE else np.nan
                    row = {
                        "world": f"n {world.n}, d {world.d}, s {world.s}, M {world.M}", "rule": rule, "f B": count,
                        "p / f": relative, "adaptations": T, "floor(p B)": int(np.floor(setting.p * buffer + 1e-9)),
                        "count balance": held, "predicted 0.9": float(predict([setting]).recovered[0]),
                    }  # fmt: skip
                    found += [(row, cell_of(setting, seed, world.steps, world.batch)) for seed in seeds]
    return found
