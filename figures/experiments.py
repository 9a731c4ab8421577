"""Many cells: computed once, side by side, kept in a store; running again computes what is missing.

A preset is one file with an `Experiment`: its cells, the columns that tell them apart, and `draw`,
which sees the finished table only.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from scipy import stats

from figures.cells import Cell, claimed, read_result, refuse_foreign, run_cell
from simulator import RequestError
from simulator.config import fingerprint

# A cell is never too large for an exact MCC here; an interval keeps both ends in result.json.
METRICS = (
    "frr_080", "frr_090", "frr_090_untrained", "neuron_precision_090", "mcc", "mcc_chance", "loss", "mean_l0",
    "dead", "status", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """A question that takes many cells to answer.

    Attributes:
        name: of the preset and of its files.
        title: one line that says what is asked.
        cells: label columns and cell, for given seeds and size.
        summarise: from the table of cells to the short table that is printed and kept beside it.
        draw: (table of cells, file) -> picture; computes no result.
        seeds: seeds unless told otherwise.
        measure: further columns from the folder of a finished cell.
    """

    name: str
    title: str
    cells: Callable[[Sequence[int], str], list[tuple[dict[str, Any], Cell]]]
    summarise: Callable[[pd.DataFrame], pd.DataFrame]
    draw: Callable[[pd.DataFrame, Path], None]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    measure: Callable[[Path], dict[str, float]] | None = None


def run_experiment(
    experiment: Experiment,
    folder: Path,
    *,
    seeds: Sequence[int] | None = None,
    size: str = "full",
    jobs: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compute what is missing, one thread per cell, and return one row per cell.

    Args:
        experiment: what to run.
        folder: the store; one subfolder per cell, named by the hash of its configuration.
        seeds: instead of the experiment's own.
        size: "tiny" or "full".
        jobs: cells side by side; 0: as many as cores.
        progress: called with (cells done, cells in all).

    Returns:
        Table with the label columns, `seed`, the metrics, and `cell` (the hash); and the reference rows
        (true dictionary, random ones, k-means) of the cells that have them, with the same metrics.
    """
    chosen = experiment.seeds if seeds is None else tuple(seeds)
    if not chosen:
        raise RequestError("--seeds needs at least one seed, e.g. --seeds 0 1 2")
    if len(set(chosen)) != len(chosen):
        raise RequestError(f"seeds {chosen} repeat; each may be named once")
    labelled = experiment.cells(chosen, size)
    keys = [fingerprint(cell.config())[:16] for _, cell in labelled]
    refuse_foreign(folder, experiment_config(experiment, size))
    with claimed(folder):
        jobs = jobs or os.cpu_count() or 1
        missing = [i for i, key in enumerate(keys) if read_result(folder / "cells" / key) is None]
        # One identical cell under two labels is computed once.
        missing = list({keys[i]: i for i in missing}.values())
        done = len(labelled) - len(missing)
        if progress is not None:
            progress(done, len(labelled))
        tasks = (joblib.delayed(_compute)(labelled[i][1], folder / "cells" / keys[i], os.getpid()) for i in missing)
        if missing:
            parallel = joblib.Parallel(n_jobs=min(jobs, len(missing)), return_as="generator_unordered")
            for _ in parallel(tasks):
                done += 1
                if progress is not None:
                    progress(done, len(labelled))
        rows, references = [], []
        for (label, cell), key in zip(labelled, keys, strict=True):
            result = read_result(folder / "cells" / key) or {}
            row = {**label, "seed": cell.seed, **{name: result.get(name) for name in METRICS}, "cell": key}
            if experiment.measure is not None:
                row |= experiment.measure(folder / "cells" / key)
            rows.append(row)
            references += [{**other, "seed": cell.seed} for other in result.get("rows", [])[1:]]
        return pd.DataFrame(rows), pd.DataFrame(references)


def experiment_config(experiment: Experiment, size: str) -> dict[str, Any]:
    """What a store belongs to. Seeds do not: more of them extend it."""
    return {"preset": experiment.name, "size": size}


def _compute(cell: Cell, folder: Path, parent: int) -> None:
    """One cell in a worker, which stops when the command that started it is gone."""

    def alive(step: int, loss: float) -> None:
        if parent not in (os.getppid(), os.getpid()):
            os._exit(1)

    # A worker of a killed command may hold the cell for one more step.
    run_cell(cell, folder, device="cpu", threads=1, picture=False, progress=alive, patience=30)


def mean_references(references: pd.DataFrame) -> pd.DataFrame:
    """The reference dictionaries, mean over seeds."""
    if not len(references):
        return references
    columns = {"frr_080": "FRR 0.8", "frr_090": "FRR 0.9", "neuron_precision_090": "precision", "mcc": "MCC",
               "loss": "loss", "mean_l0": "L0"}  # fmt: skip
    short = mean_and_interval(references, ["row"], columns)
    return short[["row", "seeds", *columns.values()]].rename(columns={"row": "reference"})


def mean_and_interval(table: pd.DataFrame, by: Sequence[str], columns: Mapping[str, str]) -> pd.DataFrame:
    """Per group of equal labels: number of seeds, mean, and half-width of the 95 % t interval of each column.

    Args:
        table: one row per cell.
        by: label columns, in whose first order of appearance the groups stay.
        columns: column of the table -> name in the result.
    """
    rows = []
    for label, group in table.groupby(list(by), sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(by, label if isinstance(label, tuple) else (label,), strict=True))
        row["seeds"] = len(group)
        for column, name in columns.items():
            values = group[column].astype(float).to_numpy()
            row[name] = values.mean()
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else np.nan
            row[f"{name} ±"] = half
        rows.append(row)
    return pd.DataFrame(rows)
