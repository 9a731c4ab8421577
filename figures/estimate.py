"""Time and memory of many cells before they are computed, from a few measured steps."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from figures.cells import Cell
from simulator import fit

MEASURED_STEPS = 5
SHAPES_PER_METHOD = 3
LARGEST_LOAD = 2**34
PROCESS_BYTES = 400e6
"""Of a worker before it holds any array, and of a step's buffers."""


@dataclass(frozen=True)
class Estimate:
    """Of a run that has not begun.

    Attributes:
        cells: how many are missing.
        seconds: wall time with the given number of jobs, without checks and tables.
        bytes: memory of all jobs together.
    """

    cells: int
    seconds: float
    bytes: float

    def text(self) -> str:
        """One line."""
        hours = self.seconds / 3600
        length = f"{hours:.1f} hours" if hours >= 1 else f"{self.seconds / 60:.0f} minutes"
        return (
            f"{self.cells} cells to compute: about {length} and {self.bytes / 1e9:.1f} GB of memory "
            "(from a few measured steps); interrupt at will, the same command continues"
        )


def load(cell: Cell, d: int) -> float:
    """Multiplications of one step's encoder product."""
    return float(cell.training.batch) * cell.training.neurons * d


def memory(cell: Cell, d: int) -> float:
    """Bytes of one cell: W, its gradient and two moments, V twice, the evaluation sample, and the process."""
    M, n = cell.training.neurons, 0 if cell.world is None else cell.world.n
    return 4.0 * d * (5 * M + 2 * n + 2 * cell.samples) + PROCESS_BYTES


def estimate(cells: Sequence[Cell], jobs: int) -> Estimate:
    """Measure a few steps of a few shapes of every method and interpolate the rest in the load of a step.

    Args:
        cells: those that are missing.
        jobs: cells side by side.
    """
    if not cells:
        return Estimate(0, 0.0, 0.0)
    d = cells[0].source().d if cells[0].world is None else 0
    shapes = [(type(cell.training.method).__name__, load(cell, cell.world.d if cell.world else d)) for cell in cells]
    seconds = 0.0
    for method in sorted({name for name, _ in shapes}):
        members = [i for i, (name, _) in enumerate(shapes) if name == method]
        by_load = sorted({shapes[i][1]: i for i in members}.items())
        picks = sorted({round(x) for x in np.linspace(0, len(by_load) - 1, SHAPES_PER_METHOD)})
        known = [(by_load[k][0], step_seconds(cells[by_load[k][1]])) for k in picks]
        x, y = np.log([item[0] for item in known]), np.log([item[1] for item in known])
        seconds += sum(cells[i].training.steps * float(np.exp(np.interp(np.log(shapes[i][1]), x, y))) for i in members)
    jobs = max(1, min(jobs, len(cells)))
    largest = max(memory(cell, cell.world.d if cell.world else d) for cell in cells)
    return Estimate(len(cells), seconds / jobs, largest * jobs)


def step_seconds(cell: Cell) -> float:
    """Median time of a step on one thread, the first one left out."""
    stamps: list[float] = []
    source = cell.source()
    # A step is measured on a part of a batch that would take seconds; its time grows in proportion.
    part = int(min(cell.training.batch, max(1, load(cell, source.d) // LARGEST_LOAD)))
    training = replace(cell.training, steps=MEASURED_STEPS, batch=cell.training.batch // part)
    fit(
        source, training, cell.seed, device="cpu", threads=1,
        progress=lambda step, loss: stamps.append(time.perf_counter()),
    )  # fmt: skip
    return part * float(np.median(np.diff(stamps)))
