"""The typed options of the commands about figures: run, plot, status, reproduce. Light, like `figures.options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from figures.cells import Activations

Size = Literal["tiny", "small", "paper"]


def chosen_activations(path: Path | None, layer: str | None) -> Activations | None:
    """A file as it is, a folder as a store; None without a path.

    Raises:
        RequestError: a layer without a store.
    """
    from simulator.errors import RequestError

    if path is not None and path.is_dir():
        from llm_bridge.sources import StoredActivations

        return StoredActivations(path, layer)
    if layer is not None:
        raise RequestError("--layer belongs to a store of activations; leave it out")
    return path


@dataclass(frozen=True)
class Run:
    """Compute the cells of a figure that are missing, and draw it. The same command continues."""

    name: Annotated[str, tyro.conf.Positional]
    """bias-adaptation, loss-sparsity, consistency, group-ablation, selectivity, zscore, imbalanced-toy,
    co-occurrence, width, frequency-spread, dynamics; and proxies, targets, which are not in the paper."""
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
    """A .npy or .safetensors matrix, or a store of sae-recovery capture, to train on instead of the planted world
    (loss-sparsity, consistency, group-ablation, zscore)."""
    layer: str | None = None
    """Layer of a store that holds several."""
    out: Path = Path("runs")
    """Store: cells/ is shared by all figures, figures/ has tables and pictures."""
    quiet: bool = False
    """No progress bar."""
    json: bool = False
    """Print one JSON object on standard output instead of the table."""

    def data(self) -> Activations | None:
        """The real activations, if any."""
        return chosen_activations(self.activations, self.layer)


@dataclass(frozen=True)
class Compare:
    """Every method on every world at every width, tuned alike and judged by the truth. The same command continues."""

    size: Literal["tiny", "reduced", "full"] = "reduced"
    """tiny: a minute, to try the command; reduced: n = 256, d = 64, under half an hour on two cores; full: n = 1,024,
    d = 128. An estimate is printed first."""
    worlds: tuple[str, ...] = ()
    """mixture, zipf, synth-sae-bench, synth-sae-bench-unscaled, noise, dense. Default: the first three, at size full
    all."""
    methods: tuple[str, ...] = ()
    """BA, GBA, "GBA two-sided", "GBA data-driven", TopK, BatchTopK, Matryoshka, JumpReLU, Gated, L1. Default: all."""
    widths: tuple[float, ...] = (0.25, 0.5, 1.0, 4.0)
    """Neurons over features, M / n."""
    seeds: tuple[int, ...] | None = None
    """Seeds that compete. Default: 0 to 4. Knobs are tuned on seed 100."""
    criterion: Literal["frr", "mcc", "f1"] = "frr"
    """What a method's own best means: features recovered at cosine 0.9, MCC, or mean F1 over all features."""
    classical: bool = False
    """Also scikit-learn's dictionary learning, SPAMS and k-means, those that are installed."""
    jobs: int = 0
    """Runs side by side, one thread each; 0: one per core."""
    out: Path = Path("runs")
    """Store: cells/ and rows/ are shared, figures/compare-SIZE has tables and pictures."""
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
    layer: str | None = None
    """As in run."""
    out: Path = Path("runs")
    """The store."""
    json: bool = False
    """Print one JSON object on standard output instead of text."""

    def data(self) -> Activations | None:
        """The real activations, if any."""
        return chosen_activations(self.activations, self.layer)


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


@dataclass(frozen=True)
class Explore:
    """Five pages in the browser that run the library live: the model, identifiability, bias adaptation, resonance, and
    a world of your own. Needs the extra [explore]."""

    port: int = 0
    """On this machine; 0: any free one."""
    browser: bool = True
    """Open a browser."""


COMMANDS = {"run": Run, "plot": Plot, "status": Status, "reproduce": Reproduce, "compare": Compare, "explore": Explore}
