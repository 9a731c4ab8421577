"""One cell: sample a world, train on it, judge what was learned, write the report folder.

A folder holds one cell. `result.json` is written last and under a temporary name, so its existence
means that everything else is complete; until then a checkpoint lets the same command continue.
"""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llm_bridge.sources import LiveActivations, StoredActivations
from simulator import ActivationMatrix, Fit, RequestError, Sample, Training, World, fit
from simulator.checks import whole
from simulator.config import NUMBERS, difference, fingerprint, to_config
from simulator.storage import claimed, digest, load_tensors, save_tensors, write_atomically
from simulator.train import Observer
from simulator.training import start_directions
from theory import targets
from theory.alignment import follow

logger = logging.getLogger(__name__)

RESULT, CHECKPOINT, FIT, WORLD = (
    "result.json",
    "checkpoint.safetensors",
    "fit.safetensors",
    "world.safetensors",
)


MEASURES = 4
"""Raised whenever a cell's tables gain or lose a column, so that a figure never meets a cell without it."""


Activations = Path | StoredActivations | LiveActivations
"""A file with a matrix, a folder with a store, or a model and a text: real activations in place of a world."""


def activations_name(data: Activations) -> str:
    """What a folder of results calls them."""
    return data.stem if isinstance(data, Path) else data.label


@dataclass(frozen=True)
class Watch:
    """What joins the history of a cell, line by line."""

    neurons: tuple[int, ...]
    """Neurons whose bias and activation frequency are written down."""
    features: int = 0
    """Features, nearest before training, whose cosine with each of those neurons is followed."""
    every: int | None = None
    """Steps between two lines; None: 200 lines."""


@dataclass(frozen=True)
class Cell:
    """What is computed: a world or real activations, a training, a seed, and how it is judged."""

    world: World | None
    training: Training
    seed: int
    activations: Activations | None = None
    samples: int = 20_000
    """Fresh samples on which codes are judged."""
    references: bool = True
    """Whether the reference rows are computed too."""
    dictionary_seed: int | None = None
    """Of V, where several seeds are to learn one and the same V; None: `seed`."""
    watch: Watch | None = None
    pilot: bool = False
    """Whether a pilot on the same data chooses GBA's targets (`theory.targets`); its samples are the run's."""

    def __post_init__(self) -> None:
        whole("samples", self.samples, 10, 100_000_000)
        whole("seed", self.seed, 0, 2**63 - 1)

    def source(self) -> Any:
        """The batches to train on."""
        if self.world is not None:
            return self.world.stream(self.seed, dtype=self.training.dtype, dictionary_seed=self.dictionary_seed)
        assert self.activations is not None
        if not isinstance(self.activations, Path):
            return self.activations.source(self.seed)
        if self.activations.is_dir():
            return StoredActivations(self.activations).source(self.seed)
        return ActivationMatrix(self.activations, self.seed)

    def config(self, source: Any = None) -> dict[str, Any]:
        """Everything that decides the numbers, JSON-able and type-tagged; `source` where it is at hand already."""
        data = to_config(self.world) if self.world is not None else (source or self.source()).config()
        config = {
            "numbers": NUMBERS, "measures": MEASURES, "data": data, "training": to_config(self.training),
            "seed": self.seed, "samples": self.samples, "references": self.references,
        }  # fmt: skip
        if self.dictionary_seed is not None:
            config["dictionary_seed"] = self.dictionary_seed
        if self.pilot:
            config["pilot"] = targets.VERSION
        return config if self.watch is None else config | {"watch": to_config(self.watch)}


def read_result(folder: Path) -> dict[str, Any] | None:
    """The finished result of a folder, or None."""
    file = folder / RESULT
    if not file.exists():
        return None
    try:
        result = json.loads(file.read_text())
    except (OSError, ValueError):
        result = None
    if not isinstance(result, dict) or not isinstance(result.get("rows"), list) or "fingerprint" not in result:
        raise RequestError(f"{file} is damaged or not ours; remove it, or name another folder")
    return result


def refuse_foreign(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The finished result of a folder if it has this configuration, None if there is none.

    Raises:
        RequestError: the folder holds the result of something else, which is left alone.
    """
    finished = read_result(folder)
    if finished is not None and finished["fingerprint"] != fingerprint(config):
        raise RequestError(
            f"{folder} holds the result of another command ({difference(finished.get('config'), config)}); "
            "repeat that one or name another folder"
        )
    return finished


def run_cell(
    cell: Cell,
    folder: Path,
    *,
    device: str = "auto",
    engine: Any = "auto",
    threads: int | None = None,
    checkpoint_seconds: float = 20.0,
    progress: Callable[[int, float], None] | None = None,
    observe: Observer | None = None,
    picture: bool = True,
    arrays: bool = True,
    patience: float = 0.0,
    source: Any = None,
) -> dict[str, Any]:
    """Compute a cell into its folder, continue it, or read it if it is finished.

    Args:
        cell: what to compute.
        folder: where; made if needed. Refused if it holds another cell.
        device, engine, threads, checkpoint_seconds, progress, observe: as in `simulator.fit`.
        picture: whether to draw report.png.
        arrays: whether to keep W, a, b, b_pre and V.
        patience: seconds to wait for another process that holds the folder.
        source: `cell.source()`, where it is at hand already.

    Returns:
        The content of result.json.
    """
    source = source or (cell.source() if cell.world is None else None)
    config = cell.config(source)
    key = fingerprint(config)
    finished = refuse_foreign(folder, config)
    if finished is not None:
        with contextlib.suppress(OSError):
            (folder / CHECKPOINT).unlink(missing_ok=True)  # of a process killed just before its last line
        return finished
    with claimed(folder, patience):
        # Another process may have finished it while this one waited.
        finished = refuse_foreign(folder, config)
        if finished is not None:
            return finished
        from figures.judge import judge
        from figures.report import draw_report

        source = source or cell.source()
        chosen = {}
        if cell.pilot:
            found = targets.choose_targets(source, cell.training, cell.seed, threads=threads)
            cell = replace(cell, training=found.training(cell.training))
            chosen = {"htf": found.htf, "ltf": found.ltf, "groups": found.groups, "pilot_on": found.on}
            chosen["pilot_samples"] = found.samples
        watch = cell.watch or Watch(())
        if watch.features:
            start = start_directions(cell.seed, cell.training.neurons, source.d, cell.training.dtype)
            observe = follow(source.V, start, watch.neurons, watch.features)
        outcome = fit(
            source, cell.training, cell.seed, device=device, engine=engine, threads=threads,
            checkpoint=folder / CHECKPOINT, checkpoint_seconds=checkpoint_seconds, progress=progress,
            observe=observe, watch=watch.neurons, record_every=watch.every,
        )  # fmt: skip
        metrics, rows, tables = judge(cell, outcome, source)
        result = {
            **metrics,
            **chosen,
            "status": outcome.status,
            "seconds": round(outcome.seconds, 3),
            "steps": outcome.steps,
            "rows": rows,
            "config": config,
            "fingerprint": key,
            "versions": {name: version(name) for name in ("sae-recovery", "torch", "numpy", "scipy", "numba")},
            "device": outcome.device,
            "engine": outcome.engine,
            "threads": outcome.threads,
        } | origin(cell)
        if arrays:
            save_fit(folder, outcome, getattr(source, "offset", None))
        if arrays and cell.world is not None:
            save_tensors(folder / WORLD, {"V": source.V}, {"config": config["data"], "seed": cell.seed})
        for name, table in tables.items():
            write_csv(folder / f"{name}.csv", table)
        if picture:
            draw_report(folder / "report.png", result, tables)
        written = [FIT, WORLD] if arrays and cell.world is not None else [FIT] if arrays else []
        result["files"] = {name: digest(folder / name) for name in (*written, *(f"{name}.csv" for name in tables))}
        write_json(folder / RESULT, result)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return json.loads(json.dumps(plain(result)))


def intact(folder: Path, config: dict[str, Any], needs: Sequence[str] = ()) -> dict[str, Any] | None:
    """The finished result of a cell of a store, or None if it is missing, damaged, or lacks a file.

    Args:
        folder: of the cell.
        config: what the folder must hold.
        needs: files that must be among those written.
    """
    try:
        result = refuse_foreign(folder, config)
        files = {} if result is None else result.get("files", {})
        if result is None or any(name not in files for name in needs):
            return None
        return result if all(digest(folder / name) == known for name, known in files.items()) else None
    except (RequestError, OSError, AttributeError):
        return None


def origin(cell: Cell) -> dict[str, Any]:
    """Where real activations came from, so that later commands find them; no part of the configuration."""
    data = cell.activations
    if isinstance(data, LiveActivations):
        return {"origin": {"model": data.model, "layer": data.layer}}
    if data is None or (isinstance(data, Path) and not data.is_dir()):
        return {}
    folder, layer = (data, None) if isinstance(data, Path) else (data.folder, data.layer)
    return {"origin": {"store": str(Path(folder).resolve()), "layer": layer}}


def save_fit(folder: Path, outcome: Fit, offset: np.ndarray | None = None) -> None:
    """The learned arrays: fit.safetensors with W (M x d), a, b, b_pre, thresholds that are not zero, and the offset
    taken off the activations."""
    arrays = {"W": outcome.W, "a": outcome.a, "b": outcome.b, "b_pre": outcome.b_pre}
    if outcome.threshold.any():
        arrays["threshold"] = outcome.threshold
    if offset is not None:
        arrays["offset"] = offset
    save_tensors(folder / FIT, arrays, {"training": to_config(outcome.training), "status": outcome.status})


def load_fit(folder: Path) -> dict[str, np.ndarray]:
    """W, a, b, b_pre of a finished folder."""
    return {name: tensor.numpy() for name, tensor in load_tensors(folder / FIT)[0].items()}


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, written atomically; numbers that are not finite become null."""
    write_atomically(path, (json.dumps(plain(value), indent=1, allow_nan=False) + "\n").encode())


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """A table as CSV, written atomically."""
    write_atomically(path, table.to_csv(index=False, float_format="%.6g").encode())


def plain(value: Any) -> Any:
    """JSON has no NaN and knows no NumPy: both become what a reader expects."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def evaluation_sample(cell: Cell, source: Any) -> Sample | np.ndarray:
    """Fresh samples of the world (stream "evaluation"), or rows of the activations, held out where they are many."""
    if cell.world is not None:
        return cell.world.sample(
            cell.samples, cell.seed, name="evaluation", dtype=cell.training.dtype, dictionary_seed=cell.dictionary_seed
        )
    return np.asarray(source.evaluation(cell.samples, cell.seed), dtype=cell.training.dtype)
