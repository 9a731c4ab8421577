"""Preset thousand-features: n = 1,024 in d = 128, s = 3, M = 4,096, BA with p from 0.1 f to 32 f."""

from collections.abc import Sequence
from typing import Any

from figures.cells import Cell
from figures.experiments import Experiment
from figures.frequency_sweep import draw, summarise, sweep_cells
from simulator import BA, Exactly, Training, World

MULTIPLES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    if size == "tiny":
        world, training = World(32, 12, Exactly(2)), Training(BA(0.1, buffer=512), 64, 40, 64)
        return sweep_cells(world, training, (1.0, 4.0), ("quantile",), seeds)
    world, training = World(1024, 128, Exactly(3)), Training(BA(0.01, buffer=5120), 4096, 4000)
    # All seeds where the target is stated (p = 2 f), at most two elsewhere: the sweep shows a shape.
    seeds_at = {multiple: tuple(seeds) if multiple == 2.0 else tuple(seeds)[:2] for multiple in MULTIPLES}
    return sweep_cells(world, training, MULTIPLES, ("quantile",), seeds_at)


EXPERIMENT = Experiment(
    "thousand-features",
    "1,024 features in 128 dimensions: recovery against the target frequency",
    cells,
    summarise,
    draw,
)
