"""Command heat-map: recovery over the plane (d, p) at the paper's full size, cell by cell, resumable.

n = 65,536 Gaussian features, s = 3 (f = 3/n = 4.58e-5), M = 262,144 neurons, one target frequency p for
all of them (Chen et al. 2025, arXiv:2506.14002, the figure on selectivity). What the authors trained
with is not reported. The training here was sought at an eighth of the size (n = 8,192, p / f as in the
cell d = 101.6, p = 8.2e-5): features are learned once the learning rate has fallen far enough, so large
batches, a large rate and a long decay get there in the fewest samples. See the README.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures.cells import Cell, claimed, read_result, refuse_foreign, run_cell, write_csv, write_json
from figures.style import new_figure, save_figure
from simulator import BA, Exactly, RequestError, Training, World
from simulator.config import fingerprint
from simulator.rng import stream

# Axes and values read off the authors' picture: share of recovered features (which cosine counts is not
# known, 0.8 or 0.9), d = n^(0.35 + k/60).
D = (48.5, 58.4, 70.2, 84.4, 101.6, 122.2, 147.0, 176.9, 212.8)
P = (3.2e-5, 4.4e-5, 6.0e-5, 8.2e-5, 1.11e-4, 1.51e-4, 2.06e-4, 2.8e-4, 3.81e-4)
PAPER = np.array(
    [
        [0.00, 0.01, 0.01, 0.00, 0.03, 0.02, 0.02, 0.03, 0.03],
        [0.00, 0.04, 0.04, 0.03, 0.13, 0.10, 0.10, 0.15, 0.17],
        [0.00, 0.09, 0.20, 0.21, 0.50, 0.47, 0.51, 0.66, 0.73],
        [0.00, 0.09, 0.50, 0.81, 1.00, 1.00, 1.00, 1.00, 1.00],
        [0.00, 0.00, 0.30, 0.95, 1.00, 0.92, 0.91, 1.00, 1.00],
        [0.00, 0.00, 0.14, 0.50, 0.55, 0.97, 1.00, 1.00, 0.97],
        [0.00, 0.00, 0.00, 0.40, 0.96, 0.99, 0.94, 0.81, 0.50],
        [0.00, 0.00, 0.00, 0.00, 0.20, 0.19, 0.13, 0.09, 0.03],
        [0.00, 0.00, 0.00, 0.00, 0.00, 0.01, 0.06, 0.12, 0.14],
    ]
)
COLUMNS = (
    "d", "p", "seed", "frr_080", "frr_090", "frr_080_untrained", "frr_090_untrained", "paper", "mean_l0", "status",
    "steps", "batch", "buffer", "learning_rate", "decay", "seconds", "threads", "numbers", "version", "cell",
)  # fmt: skip
WATCHED = 256
"""Features whose recovery is written down while a cell trains."""


@dataclass(frozen=True)
class Size:
    """How large a cell is: `full` is the paper's."""

    n: int
    steps: int
    batch: int
    buffer: int
    learning_rate: float
    decay: float


SIZES = {
    "full": Size(65_536, 6_000, 2_048, 25_600, 6e-3, 0.8),
    "eighth": Size(8_192, 2_500, 256, 3_200, 1e-2, 0.7),
    "tiny": Size(256, 60, 64, 400, 1e-2, 0.7),
}


def cell_of(d: float, p: float, size: Size, seed: int) -> Cell:
    """The cell at dimension d (rounded) and target frequency p of the full-size map; smaller maps keep p / f."""
    scaled = p * SIZES["full"].n / size.n
    training = Training(
        BA(scaled, buffer=size.buffer), 4 * size.n, size.steps, size.batch, learning_rate=size.learning_rate,
        decay=size.decay, start_bias="quantile",
    )  # fmt: skip
    return Cell(World(size.n, round(d), Exactly(3)), training, seed, samples=2_000, references=False)


def watcher(cell: Cell) -> Callable[[int, np.ndarray, np.ndarray], dict[str, float]]:
    """Recovery of a random few features, for the history of a run."""
    assert cell.world is not None
    V = cell.world.stream(cell.seed).V.astype(np.float32)
    V = V[stream(cell.seed, "watched").permutation(len(V))[:WATCHED]]
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    every = max(1, cell.training.steps // 25)

    def observe(t: int, W: np.ndarray, b: np.ndarray) -> dict[str, float]:
        if t % every and t != cell.training.steps:
            return {"watched_080": np.nan, "watched_090": np.nan}
        best = np.zeros(len(V), np.float32)
        for first in range(0, len(W), 4096):
            np.maximum(best, (V @ W[first : first + 4096].T).max(axis=1), out=best)
        return {"watched_080": float((best > 0.8).mean()), "watched_090": float((best > 0.9).mean())}

    return observe


def nearest(wanted: Sequence[float], axis: Sequence[float], name: str) -> list[int]:
    """Positions on an axis of the map; RequestError for a value that is not one of them."""
    found = []
    for value in wanted:
        near = [i for i, x in enumerate(axis) if abs(x - value) <= 0.011 * x]
        if not near:
            raise RequestError(f"{name} = {value:g} is no {name} of the map; take some of {', '.join(map(str, axis))}")
        found.append(near[0])
    return found or list(range(len(axis)))


def run_heat_map(
    folder: Path,
    *,
    d: Sequence[float] = (),
    p: Sequence[float] = (),
    size: str = "full",
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int, int, int, float], None] | None = None,
) -> pd.DataFrame:
    """Compute the cells of the chosen d and p that are missing, one after the other, all threads on each.

    Args:
        folder: the store; finished cells in it are read, an interrupted one is continued.
        d, p: of the full-size map; empty: all nine.
        size: one of `SIZES`.
        seed: of world and training.
        threads: per cell; None: as many as torch uses.
        progress: called with (cells done, cells in all, step, loss) after every step.

    Returns:
        All finished cells of the store, see `COLUMNS`; also written to heat-map.csv and drawn.
    """
    if size not in SIZES:
        raise RequestError(f"unknown size {size!r}; there are {', '.join(SIZES)}")
    stream(seed, "watched")
    rows, columns = nearest(p, P, "p"), nearest(d, D, "d")
    config = {"command": "heat-map", "size": size}
    refuse_foreign(folder, config)
    with claimed(folder):
        write_json(folder / "result.json", {"config": config, "fingerprint": fingerprint(config), "rows": []})
        wanted = [(i, j) for i in rows for j in columns]
        for done, (i, j) in enumerate(wanted):
            cell = cell_of(D[j], P[i], SIZES[size], seed)
            place = folder / "cells" / fingerprint(cell.config())[:16]
            if read_result(place) is not None:
                continue

            def step(t: int, loss: float, done: int = done) -> None:
                if progress is not None:
                    progress(done, len(wanted), t, loss)

            run_cell(
                cell, place, device="cpu", threads=threads, checkpoint_seconds=120, picture=False,
                observe=watcher(cell), progress=step,
            )  # fmt: skip
        table = collect(folder)
    write_csv(folder / "heat-map.csv", table)
    draw(table, folder / "heat-map.png")
    return table


def collect(folder: Path) -> pd.DataFrame:
    """One row per finished cell of a store, in the order of the map."""
    rows: list[dict[str, Any]] = []
    for place in sorted((folder / "cells").glob("*/result.json")):
        result = read_result(place.parent) or {}
        method, world = result["config"]["training"]["method"], result["config"]["data"]
        p = method["p"] * world["n"] / SIZES["full"].n
        i, j = nearest([p], P, "p")[0], int(np.argmin([abs(round(x) - world["d"]) for x in D]))
        training = result["config"]["training"]
        own = {name: training[name] for name in ("batch", "learning_rate", "decay")}
        rows.append(
            {name: result.get(name) for name in COLUMNS}
            | {"d": D[j], "p": P[i], "paper": PAPER[i, j], "buffer": method["buffer"], "cell": place.parent.name}
            | {"seed": result["config"]["seed"], "numbers": result["config"]["numbers"], **own}
            | {"version": result["versions"]["sae-recovery"]}
        )
    return pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(["p", "d", "seed"], ignore_index=True)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Two maps, ours (mean over seeds, empty where not computed) and the authors' as read off their picture."""
    ours = np.full(PAPER.shape, np.nan)
    for (p, d), group in table.groupby(["p", "d"]):
        ours[P.index(p), D.index(d)] = group["frr_090"].astype(float).mean()
    figure, axes = new_figure(width=4.6, height=4.2, columns=2)
    for axis, values, title in zip(axes, (ours, PAPER), ("here: cosine > 0.9", "authors (read off)"), strict=True):
        axis.imshow(values, origin="lower", cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for i, j in np.argwhere(np.isfinite(values)):
            shade = "black" if values[i, j] > 0.5 else "white"
            axis.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=7, color=shade)
        axis.set_xticks(range(len(D)), [f"{d:g}" for d in D], fontsize=7)
        axis.set_yticks(range(len(P)), [f"{p * 1e6:.0f}" for p in P], fontsize=7)
        axis.set_xlabel("dimension d")
        axis.set_title(title, fontsize=9, loc="left")
    axes[0].set_ylabel("target frequency p (millionths)")
    save_figure(figure, path)
