"""The typed options of the commands about figures: run, plot, status, reproduce. Light, like `figures.options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Size = Literal["tiny", "small", "paper"]


@dataclass(frozen=True)
class Run:
    """Compute the cells of a figure that are missing, and draw it. The same command continues."""

    name: Annotated[str, tyro.conf.Positional]
    """bias-adaptation, loss-sparsity, consistency, group-ablation, selectivity, zscore, imbalanced-toy,
    co-occurrence, width, frequency-spread, dynamics."""
    size: Size = "small"
    """tiny: seconds; small: minutes on a laptop; paper: the paper's sizes, an estimate is printed first."""
    seeds: tuple[int, ...] | None = None
    """Seeds instead of the figure's own."""
    jobs: int = 0
    """Cells side by side; 0: one per core (or per thread of the cluster)."""
    backend: Literal["local", "dask"] = "local"
    """Processes on this machine, or a dask cluster whose workers see the folder --out under the same path."""
    scheduler: str | None = None
    """Address of the dask scheduler, e.g. tcp://host:8786."""
    device: str = "cpu"
    """cpu, cuda, or auto (first GPU, else CPU); with a GPU take --jobs 1 unless its memory holds several."""
    activations: Path | None = None
    """A .npy or .safetensors matrix to train on instead of the planted world (loss-sparsity, consistency,
    group-ablation, zscore)."""
    out: Path = Path("runs")
    """Store: cells/ is shared by all figures, figures/ has tables and pictures."""
    quiet: bool = False
    """No progress bar."""
    json: bool = False
    """Print one JSON object on standard output instead of the table."""


@dataclass(frozen=True)
class Plot:
    """Draw a figure again from its table, or from the cells that are finished so far; computes no cell."""

    name: Annotated[str, tyro.conf.Positional]
    """As in run."""
    size: Size = "small"
    """As in run."""
    activations: Path | None = None
    """As in run."""
    out: Path = Path("runs")
    """The store."""
    json: bool = False
    """Print one JSON object on standard output instead of text."""


@dataclass(frozen=True)
class Status:
    """What is done: cells finished and pictures drawn, per figure and size."""

    out: Path = Path("runs")
    """The store."""
    json: bool = False
    """Print one JSON object on standard output instead of the table."""


@dataclass(frozen=True)
class Reproduce:
    """Run every figure and write one page: ours beside the paper's numbers, the difference, and what agrees."""

    size: Size = "small"
    """As in run."""
    jobs: int = 0
    """As in run."""
    backend: Literal["local", "dask"] = "local"
    """As in run."""
    scheduler: str | None = None
    """As in run."""
    device: str = "cpu"
    """As in run."""
    out: Path = Path("runs")
    """The store."""
    report: Path | None = None
    """Folder of the page and its pictures. Default: reproduction-SIZE in the store."""
    quiet: bool = False
    """No progress bar."""
    json: bool = False
    """Print one JSON object on standard output instead of text."""


COMMANDS = {"run": Run, "plot": Plot, "status": Status, "reproduce": Reproduce}
