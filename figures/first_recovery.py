"""Preset first-recovery: n = 128 features in d = 42 dimensions, s = 3, BA with p from 0.1 f to 16 f, and GBA."""

from collections.abc import Sequence
from typing import Any

from figures.cells import Cell
from figures.experiments import Experiment
from figures.frequency_sweep import draw, summarise, sweep_cells
from simulator import BA, GBA, Exactly, Training, World

# 1.28 f is p = 0.03, the setting of `sae-recovery verify` in the README.
MULTIPLES = (0.1, 0.25, 0.5, 1.0, 1.28, 2.0, 4.0, 8.0, 16.0)


def cells(seeds: Sequence[int], size: str) -> list[tuple[dict[str, Any], Cell]]:
    if size == "tiny":
        world, training = World(16, 8, Exactly(2)), Training(BA(0.1, buffer=512), 32, 40, 64)
        return sweep_cells(world, training, (1.0, 4.0), ("zero",), seeds, GBA(0.3, 0.05, 3, buffer=512))
    world, training = World(128, 42, Exactly(3)), Training(BA(0.03), 512, 6000)
    return sweep_cells(world, training, MULTIPLES, ("zero", "quantile"), seeds, GBA())


EXPERIMENT = Experiment(
    "first-recovery",
    "128 features in 42 dimensions: recovery against the target frequency",
    cells,
    summarise,
    draw,
)
