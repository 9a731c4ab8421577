"""The commands run, plot and status: figures in a store that all of them share.

OUT/cells/HASH/            one finished cell; several figures may ask for it
OUT/figures/NAME-SIZE/     table.csv behind the picture, summary.csv, NAME.png, NAME.pdf, result.json
"""

import logging
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from figures.cells import Activations, activations_name, plain, refuse_foreign, write_csv, write_json
from figures.estimate import estimate
from figures.experiments import (
    Experiment,
    Workers,
    collected,
    experiment_config,
    finished_cells,
    labelled_cells,
    run_experiment,
)
from figures.presets import FIGURES, SIZES, load_figure
from figures.report import table_text
from figures.run_options import Plot, Run, Status
from simulator import RequestError
from simulator.config import fingerprint

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def figure_folder(out: Path, name: str, size: str, activations: Activations | None = None) -> Path:
    """Where the table and the pictures of a figure are."""
    own = "" if activations is None else f"-{activations_name(activations)}"
    return out / "figures" / f"{name}-{size}{own}"


def run_figure(options: Run, progress: Progress, tell: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """Compute what is missing, collect, draw.

    Args:
        options: of the command.
        progress: called with (cells done, cells in all).
        tell: called with the estimate of time and memory before a run at paper size starts.

    Returns:
        Content of result.json, and the text for a person.
    """
    experiment, data = load_figure(options.name), options.data()
    workers = Workers(options.jobs, options.backend, options.scheduler, options.device)
    folder = figure_folder(options.out, options.name, options.size, data)
    if options.size == "paper":
        labelled = labelled_cells(experiment, "paper", options.seeds, data)
        found = finished_cells(labelled, options.out, experiment.needs)
        missing = [cell for (_, cell, _), one in zip(labelled, found, strict=True) if one is None]
        tell(f"{options.name}: {estimate(missing, workers.cells_at_once).text()}")
    began = time.monotonic()
    table, _ = run_experiment(
        experiment, folder, seeds=options.seeds, size=options.size, workers=workers, store=options.out,
        activations=data, progress=progress,
    )  # fmt: skip
    short = write_figure(experiment, table, folder, experiment.name)
    config = experiment_config(experiment, options.size, data)
    result = plain(
        {
            "config": config, "fingerprint": fingerprint(config), "figure": options.name, "size": options.size,
            "seeds": list(experiment.chosen_seeds(options.size, options.seeds)), "rows": short.to_dict("records"),
            "wall_seconds": round(time.monotonic() - began, 1),
            "versions": {name: version(name) for name in ("sae-recovery", "torch", "numpy", "matplotlib")},
        }
    )  # fmt: skip
    write_json(folder / "result.json", result)
    text = f"{experiment.title}\n\n{table_text(short)}\n\nTable, PNG and PDF: {folder}"
    return result, text


def write_figure(experiment: Experiment, table: pd.DataFrame, folder: Path, name: str) -> pd.DataFrame:
    """The table, its summary (returned) and the picture as PNG and PDF."""
    if not len(table):
        reason = "they diverged, or there are fewer than two seeds"
        raise RequestError(f"{experiment.name}: the finished cells give no row to draw: {reason}")
    short = experiment.summarise(table)
    write_csv(folder / ("table.csv" if name == experiment.name else f"{name}.csv"), table)
    write_csv(folder / "summary.csv", short)
    for suffix in ("png", "pdf"):
        experiment.draw(table, folder / f"{name}.{suffix}")
    return short


def plot_figure(options: Plot) -> tuple[dict[str, Any], str]:
    """Draw from the table of a finished run, else from the cells that are there."""
    experiment, data = load_figure(options.name), options.data()
    folder = figure_folder(options.out, options.name, options.size, data)
    refuse_foreign(folder, experiment_config(experiment, options.size, data))
    file, again = folder / "table.csv", f"sae-recovery run {options.name} --size {options.size}"
    if file.exists():
        try:
            table = pd.read_csv(file)
            for suffix in ("png", "pdf"):
                experiment.draw(table, folder / f"{experiment.name}.{suffix}")
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise RequestError(f"{file} is damaged ({error}); {again} writes it again") from None
        done = {"picture": str(folder / f"{experiment.name}.png"), "rows": len(table), "complete": True}
        return done, f"Drawn from {file}: {done['picture']} and .pdf"
    labelled = labelled_cells(experiment, options.size, None, data)
    found = [one for one in finished_cells(labelled, options.out, experiment.needs) if one is not None]
    if not found:
        raise RequestError(f"no cell of {options.name} at size {options.size} is in {options.out}; {again} computes it")
    name = f"{experiment.name}-partial"
    table = collected(experiment, found)
    write_figure(experiment, table, folder, name)
    done = {"picture": str(folder / f"{name}.png"), "rows": len(table), "complete": False}
    return done, f"{len(found)} of {len(labelled)} cells are finished; drawn from those: {done['picture']} and .pdf"


def status_table(options: Status) -> tuple[dict[str, Any], str]:
    """Cells finished, cells in all, and whether the picture is drawn, per figure and size."""
    rows = []
    for name in FIGURES:
        experiment = load_figure(name)
        for size in SIZES:
            labelled = labelled_cells(experiment, size)
            found = finished_cells(labelled, options.out, experiment.needs)
            done = sum(one is not None for one in found)
            picture = figure_folder(options.out, name, size) / f"{name}.png"
            rows.append(
                {"figure": name, "size": size, "cells done": done, "of": len(labelled),
                 "picture": "drawn" if picture.exists() else "-"}
            )  # fmt: skip
    return {"figures": rows}, table_text(pd.DataFrame(rows))
