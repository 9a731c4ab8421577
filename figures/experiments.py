"""Many cells: computed once, side by side, kept in a store; running again computes what is missing.

An experiment is one file with an `Experiment`: its cells, what is collected from them, and `draw`, which
sees the finished table only.
"""

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from scipy import stats

from figures.cells import (
    CHECKPOINT,
    FIT,
    RESULT,
    Activations,
    Cell,
    claimed,
    intact,
    refuse_foreign,
    run_cell,
)
from figures.claims import Claim
from simulator import RequestError
from simulator.config import fingerprint

logger = logging.getLogger(__name__)

# A cell is never too large for an exact MCC here; an interval keeps both ends in result.json.
METRICS = (
    "frr_080", "frr_090", "frr_080_untrained", "frr_090_untrained", "neuron_precision_090", "mcc", "mcc_chance", "loss",
    "mean_l0", "mean_l0_pre", "dead", "status", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """A finished cell as `Experiment.collect` sees it."""

    label: dict[str, Any]
    cell: Cell
    folder: Path
    result: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """Labels, seed, metrics, and the name of the cell."""
        found = {name: self.result.get(name) for name in METRICS}
        return {**self.label, "seed": self.cell.seed, **found, "cell": self.folder.name}


@dataclass(frozen=True)
class Experiment:
    """A question that takes many cells to answer.

    Attributes:
        name: of the experiment and of its files.
        title: one line that says what is asked.
        cells: label columns and cell, for given seeds and size.
        summarise: from the table to the short table that is printed and kept beside it.
        draw: (table, file) -> picture; computes no result.
        seeds: seeds unless told otherwise.
        measure: further columns from the folder of a finished cell.
        collect: the table from the finished cells, where it is not one row of metrics per cell.
        needs: files of a cell that `measure` and `collect` read; cells without them are computed again.
        small_seeds: seeds at size small, where they are fewer.
        claims: the paper's statements about this figure, tested on the table.
        on_activations: like `cells`, the trainings to run on real activations in place of the planted world; None
            where the question is about planted features.
    """

    name: str
    title: str
    cells: Callable[[Sequence[int], str], list[tuple[dict[str, Any], Cell]]]
    summarise: Callable[[pd.DataFrame], pd.DataFrame]
    draw: Callable[[pd.DataFrame, Path], None]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    measure: Callable[[Path], dict[str, float]] | None = None
    collect: Callable[[Sequence[Finished]], pd.DataFrame] | None = None
    needs: tuple[str, ...] = ()
    small_seeds: tuple[int, ...] | None = None
    claims: Callable[[pd.DataFrame], list[Claim]] | None = None
    on_activations: Callable[[Sequence[int], str], list[tuple[dict[str, Any], Cell]]] | None = None

    def chosen_seeds(self, size: str, seeds: Sequence[int] | None = None) -> tuple[int, ...]:
        """The seeds of a run.

        Raises:
            RequestError: no seed, or one named twice.
        """
        own = self.small_seeds if size == "small" and self.small_seeds else self.seeds
        chosen = (own[:2] if size == "tiny" else own) if seeds is None else tuple(seeds)
        if not chosen:
            raise RequestError("--seeds needs at least one seed, e.g. --seeds 0 1 2")
        if len(set(chosen)) != len(chosen):
            raise RequestError(f"seeds {chosen} repeat; each may be named once")
        return chosen


@dataclass(frozen=True)
class Workers:
    """Who computes the cells.

    Attributes:
        jobs: cells side by side; 0: as many as cores (local) or as the cluster has threads (dask).
        backend: "local" processes, or a "dask" cluster.
        scheduler: address of the dask scheduler, e.g. tcp://host:8786.
        device: of every cell; jobs that share a GPU share its memory.
    """

    jobs: int = 0
    backend: str = "local"
    scheduler: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.jobs < 0:
            raise RequestError(f"jobs = {self.jobs} must be a whole number of at least 0 (0: one per core)")
        if self.backend not in ("local", "dask"):
            raise RequestError(f"unknown backend {self.backend!r}; there are local and dask")
        if (self.backend == "dask") != (self.scheduler is not None):
            raise RequestError("--backend dask and --scheduler ADDRESS go together, e.g. --scheduler tcp://host:8786")

    @property
    def cells_at_once(self) -> int:
        """On this machine."""
        return self.jobs or os.cpu_count() or 1

    @contextlib.contextmanager
    def parallel(self, tasks: int) -> Iterator[joblib.Parallel]:
        """joblib's Parallel for so many tasks, unordered, results as they come.

        Raises:
            RequestError: dask is not installed, or nobody answers at the address.
        """
        if self.backend == "local":
            with warnings.catch_warnings():
                # joblib replaces workers as it sees fit and says so; nothing is lost.
                warnings.filterwarnings("ignore", "A worker stopped while some jobs")
                yield joblib.Parallel(n_jobs=min(self.cells_at_once, tasks), return_as="generator_unordered")
            return
        try:
            from distributed import Client
        except ImportError:
            raise RequestError("--backend dask needs the extra: pip install 'sae-recovery[dask]'") from None
        try:
            client = Client(self.scheduler, timeout=10)
        except (OSError, TimeoutError, ValueError) as error:
            raise RequestError(f"no dask scheduler answers at {self.scheduler}: {error}") from None
        with client, joblib.parallel_config("dask", client=client, n_jobs=self.jobs or -1):
            yield joblib.Parallel(return_as="generator_unordered")


def labelled_cells(
    experiment: Experiment, size: str, seeds: Sequence[int] | None = None, activations: Activations | None = None
) -> list[tuple[dict[str, Any], Cell, dict[str, Any]]]:
    """Label, cell and its configuration of every cell of a run.

    Args:
        experiment, size, seeds: as in `run_experiment`.
        activations: train every cell on these instead of its planted world.
    """
    chosen = experiment.chosen_seeds(size, seeds)
    if activations is None:
        return [(label, cell, cell.config()) for label, cell in experiment.cells(chosen, size)]
    if experiment.on_activations is None:
        raise RequestError(f"{experiment.name} asks about planted features; it does not run on --activations")
    found = experiment.on_activations(chosen, size)
    source = None
    rows = []
    for label, cell in found:
        cell = replace(cell, world=None, dictionary_seed=None, activations=activations, references=False)
        if source is None:  # the file is read once; a seed only changes the order of its rows
            source = cell.source()
        rows.append((label, cell, cell.config(source.with_seed(cell.seed))))
    return rows


def finished_cells(
    labelled: Sequence[tuple[dict[str, Any], Cell, dict[str, Any]]], store: Path, needs: Sequence[str] = ()
) -> list[Finished | None]:
    """The finished cell of a store, or None, for every labelled one."""
    found, seen = [], {}
    for label, cell, config in labelled:
        folder = store / "cells" / fingerprint(config)[:16]
        if folder not in seen:
            seen[folder] = intact(folder, config, needs)
        result = seen[folder]
        found.append(None if result is None else Finished(label, cell, folder, result))
    return found


def run_experiment(
    experiment: Experiment,
    folder: Path,
    *,
    seeds: Sequence[int] | None = None,
    size: str = "full",
    jobs: int = 0,
    workers: Workers | None = None,
    store: Path | None = None,
    activations: Activations | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compute what is missing and return the table, one row per cell unless the experiment says otherwise.

    Args:
        experiment: what to run.
        folder: of the experiment, for this size.
        seeds: instead of the experiment's own.
        size: "tiny", "small" or "paper" ("full" is "paper").
        jobs: cells side by side on this machine; 0: as many as cores.
        workers: in place of `jobs`, also other machines.
        store: where cells are kept, in a subfolder named by the hash of their configuration; experiments that
            share cells share them there. None: `folder`.
        activations: real ones, to train on in place of the planted world.
        progress: called with (cells done, cells in all).

    Returns:
        Table with the label columns, `seed`, the metrics, and `cell` (the hash), or what the experiment collects;
        and the reference rows (true dictionary, random ones, k-means) of the cells that have them.
    """
    workers = workers or Workers(jobs)
    store = store or folder
    labelled = labelled_cells(experiment, size, seeds, activations)
    refuse_foreign(folder, experiment_config(experiment, size, activations))
    with claimed(folder):
        found = finished_cells(labelled, store, experiment.needs)
        compute_missing(experiment, labelled, found, store, workers, progress)
        if any(one is None for one in found):
            found = finished_cells(labelled, store, experiment.needs)
    missing = sum(one is None for one in found)
    if missing:
        raise RequestError(f"{missing} cells are not in {store}; every worker must see this folder under this path")
    done = [one for one in found if one is not None]
    references = [{**other, "seed": one.cell.seed} for one in done for other in one.result.get("rows", [])[1:]]
    return collected(experiment, done), pd.DataFrame(references)


def compute_missing(
    experiment: Experiment,
    labelled: Sequence[tuple[dict[str, Any], Cell, dict[str, Any]]],
    found: Sequence[Finished | None],
    store: Path,
    workers: Workers,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Compute every cell that is None in `found`, each once."""
    # One identical cell under two labels is computed once.
    missing = {
        fingerprint(config)[:16]: cell
        for (_, cell, config), one in zip(labelled, found, strict=True)
        if one is None
    }  # fmt: skip
    total = len({fingerprint(config) for *_, config in labelled})
    done = total - len(missing)
    if progress is not None:
        progress(done, total)
    if not missing:
        return
    local = workers.backend == "local"
    parent = os.getpid() if local else None
    place = (store / "cells").absolute()
    tasks = (
        joblib.delayed(_compute)(cell, place / key, parent, experiment.needs, workers.device)
        for key, cell in missing.items()
    )
    with workers.parallel(len(missing)) as parallel:
        for _ in parallel(tasks):
            done += 1
            if progress is not None:
                progress(done, total)


def learned(done: Sequence[Finished]) -> list[Finished]:
    """Those that did not diverge: only they have neurons to look at. The others are named in the log."""
    for one in done:
        if one.result["status"] != "finished":
            logger.warning("%s diverged (%s, seed %d) and is left out", one.folder, one.label, one.cell.seed)
    return [one for one in done if one.result["status"] == "finished"]


def collected(experiment: Experiment, done: Sequence[Finished]) -> pd.DataFrame:
    """The table of an experiment from its finished cells."""
    if experiment.collect is not None:
        return experiment.collect(done)
    more = experiment.measure or (lambda folder: {})
    return pd.DataFrame([one.row() | more(one.folder) for one in done])


def experiment_config(experiment: Experiment, size: str, activations: Activations | None = None) -> dict[str, Any]:
    """What a folder belongs to. Seeds do not: more of them extend it."""
    config = {"preset": experiment.name, "size": size}
    if activations is None:
        return config
    if isinstance(activations, Path):
        return config | {"activations": activations.name}
    # Stores are often called the same.
    place = getattr(activations, "folder", None)
    return config | {"activations": activations.label, "folder": None if place is None else str(Path(place).resolve())}


def _compute(cell: Cell, folder: Path, parent: int | None, needs: Sequence[str], device: str) -> None:
    """One cell in a worker, which stops when the command that started it is gone.

    One thread, however many cells are left: sums over threads round differently, and a table must not depend on the
    number of jobs or on where a run was interrupted.
    """

    def alive(step: int, loss: float) -> None:
        if parent is not None and parent not in (os.getppid(), os.getpid()):
            os._exit(1)

    if (folder / RESULT).exists():
        if intact(folder, cell.config(), needs) is not None:
            return  # another command has computed it since
        logger.warning("%s is damaged or lacks a file and is computed again", folder)
        (folder / RESULT).unlink(missing_ok=True)

    def run() -> None:
        # Another command, or a worker of a killed one, may hold the cell: the first to finish serves both.
        run_cell(
            cell, folder, device=device, threads=1, picture=False, arrays=FIT in needs, progress=alive,
            patience=math.inf,
        )  # fmt: skip

    try:
        run()
    except RequestError:
        if not (folder / CHECKPOINT).exists():
            raise
        logger.warning("%s cannot be continued and is computed again", folder / CHECKPOINT)
        (folder / CHECKPOINT).unlink()
        run()


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


def measured(short: pd.DataFrame) -> pd.DataFrame:
    """A short table without the quantities that no row has; an interval alone is missing where there is one seed."""
    empty = [name for name in short if not name.endswith("±") and short[name].isna().all()]
    return short.drop(columns=[name for name in short if name.removesuffix(" ±") in empty])
