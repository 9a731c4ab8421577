"""Runs judged together: measures on held-out rows, MCS over seeds, loss recovered, proxies of the theory.

Runs that differ in their seed only form one column; runs on a control (a random model, shuffled tokens) stand beside
those on the real activations, so that every number has its chance level next to it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from llm_bridge.autoencoder import Autoencoder
from llm_bridge.loss_recovered import LossRecovered, loss_recovered
from llm_bridge.measures import Measures, gate, measure
from llm_bridge.models import LanguageModel, load_model
from llm_bridge.proxies import Proxies, proxies
from llm_bridge.runs import load_run, method_text
from llm_bridge.sources import StoredSource, open_rows
from llm_bridge.store import Store
from simulator.checks import whole
from simulator.errors import RequestError
from theory.consistency import chance_median, max_cosines, top_neurons

ALPHA, CONSISTENT = 0.05, 0.8
"""Share of the neurons, by Z-score, whose consistency is reported, and the MCS from which one counts."""
RECOVERED = ("ce_clean", "ce_spliced", "ce_zero", "ce_mean", "loss_recovered_zero", "loss_recovered_mean")
Tell = Callable[[str], None]


@dataclass
class Run:
    """One run and what was measured on it; `codes` of the held-out rows."""

    folder: Path
    autoencoder: Autoencoder
    known: Mapping[str, Any]
    store: Path
    layer: str | None
    measures: Measures
    codes: sparse.csr_array
    mcs: np.ndarray | None = None


@dataclass
class Column:
    """Runs that differ in their seed only.

    Attributes:
        label: method and control in words.
        control: "random-model", "shuffled-tokens" or None.
        runs: at least one.
        recovered: loss recovered of the first run; None where no model was at hand.
        estimates: proxies of the theory from the first run; None where there were too few features, `why` says it.
        notes: what a reader has to know beside the numbers, one line each.
    """

    label: str
    control: str | None
    runs: list[Run] = field(default_factory=list)
    recovered: LossRecovered | None = None
    estimates: Proxies | None = None
    why: str = ""
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, float | None]:
        """Means over the runs of what is one number per run; None for what was not measured."""
        found = pd.DataFrame([run.measures.summary() for run in self.runs]).mean().to_dict()
        first = self.runs[0].autoencoder
        found |= dict.fromkeys(("mcs_median", "mcs_top_share", *RECOVERED))
        medians, shares = [], []
        for run in self.runs:
            alive = run.measures.frequency > 0
            if run.mcs is None or not alive.any():
                continue
            medians.append(np.median(run.mcs[alive]))
            top = top_neurons(run.measures.scores.z_score, ALPHA, alive).neurons
            shares.append((run.mcs[top] > CONSISTENT).mean())
        if medians:
            found |= {"mcs_median": float(np.mean(medians)), "mcs_top_share": float(np.mean(shares))}
        found |= {"mcs_chance_median": chance_median(first.M, first.d), "seeds": len(self.runs)}
        if self.recovered is not None:
            told = self.recovered
            values = (told.clean, told.spliced, told.zero, told.mean, told.against_zero, told.against_mean)
            found |= dict(zip(RECOVERED, values, strict=True))
        return found


def evaluate(
    folders: Sequence[Path],
    *,
    store: Path | None = None,
    layer: str | None = None,
    samples: int = 20_000,
    contexts: int = 40,
    model: str | None = None,
    seed: int = 0,
    tell: Tell = lambda line: None,
) -> list[Column]:
    """Measure runs on the held-out rows of their stores.

    Args:
        folders: report folders of `sae-recovery train`, or SAELens folders (those need `store`).
        store, layer: activations to judge on; None: those that each run was trained on.
        samples: held-out rows.
        contexts: held-out contexts for the loss recovered; 0: the model is not run.
        model: name as in `load_model`; None: where the store says it came from, if it is there.
        seed: decides which held-out rows.
        tell: called with a line before anything slow.

    Returns:
        Columns, in the order in which their first runs are named.
    """
    if not folders:
        raise RequestError("no run; name at least one folder of sae-recovery train")
    if len({Path(folder).resolve() for folder in folders}) != len(folders):
        raise RequestError("a run is named twice; name each once")
    whole("samples", samples, 2)
    whole("contexts", contexts, 0)
    whole("seed", seed, 0, 2**63 - 1)
    opened = _open(folders, store, layer, seed)
    models = _Models(model)
    if model is not None:
        # Before anything slow: a model of another store ends the command.
        models.of(_with_text([source for *_, source in opened]))
    columns: dict[str, Column] = {}
    sources: dict[str, StoredSource] = {}
    for folder, autoencoder, known, source in opened:
        tell(f"measuring {folder}")
        measured, codes = measure(autoencoder, source.evaluation(samples, seed))
        place, path = Path(source.name), getattr(source.rows, "layer", None)
        control = source.rows.identity().get("control")
        key = json.dumps([_without_seed(known), str(place.resolve()), path], sort_keys=True)
        label = method_text(known) + (f", {control}" if control else "")
        sources.setdefault(key, source)
        column = columns.setdefault(key, Column(label, control))
        column.runs.append(Run(folder, autoencoder, known, place, path, measured, codes))
        if (note := _extended(folder, known, source)) is not None:
            column.notes.append(note)
    _tell_apart(list(columns.values()))
    for key, column in columns.items():
        _consistency(column)
        source = sources[key]
        try:
            column.estimates = estimate(column.runs[0], source.evaluation(samples, seed))
        except RequestError as error:
            column.why = str(error)
        if contexts:
            _recover(column, source, contexts, models, tell)
    return list(columns.values())


def _open(
    folders: Sequence[Path], store: Path | None, layer: str | None, seed: int
) -> list[tuple[Path, Autoencoder, dict[str, Any], StoredSource]]:
    """Every run with its rows; all of them, so that what is wrong with the last is said before the first is judged."""
    sources: dict[Any, StoredSource] = {}
    found = []
    for folder in map(Path, folders):
        autoencoder, known = load_run(folder)
        asked = data_of(folder, known, store, layer)
        if asked not in sources:
            sources[asked] = StoredSource(open_rows(*asked), seed, centre=False)
        fits(autoencoder, sources[asked], folder)
        found.append((folder, autoencoder, known, sources[asked]))
    return found


def _extended(folder: Path, known: Mapping[str, Any], source: StoredSource) -> str | None:
    """A note where the store of a run has changed since: other pages may be held out now."""
    data, own = known.get("config", {}).get("data", {}), known.get("origin", {}).get("store")
    if own is None or Path(own) != Path(source.name).resolve() or "store" not in data:
        return None
    there = source.rows.identity()
    if (data["store"], data.get("layer")) == (there["store"], there["layer"]):
        return None
    told = "another layer" if data["store"] == there["store"] else "other contents"
    return f"{folder} was trained on {told} of {source.name}; some of the rows it is judged on may not be held out"


def _tell_apart(columns: Sequence[Column]) -> None:
    """Different labels for different columns: by layer, store, or the first run's folder."""
    ways: list[Callable[[Run], str]] = [
        lambda run: str(run.layer), lambda run: run.store.resolve().name, lambda run: run.folder.resolve().name,
        lambda run: str(run.folder),
    ]  # fmt: skip
    for way in ways:
        for label in {column.label for column in columns}:
            same = [column for column in columns if column.label == label]
            told = [way(column.runs[0]) for column in same]
            if len(set(told)) > 1:
                for column, more in zip(same, told, strict=True):
                    column.label = f"{label}, {more}"


def data_of(folder: Path, known: Mapping[str, Any], store: Path | None, layer: str | None) -> tuple[Path, str | None]:
    """Store and layer that a run belongs to: those given, else those it was trained on."""
    origin = known.get("origin") or {}
    if store is not None:
        return Path(store), layer
    if "store" not in origin:
        raise RequestError(f"{folder} does not say which store it belongs to; name one with --store")
    if not Path(origin["store"]).is_dir():
        raise RequestError(f"the store of {folder} is not at {origin['store']} any more; name it with --store")
    return Path(origin["store"]), layer or origin.get("layer")


def fits(autoencoder: Autoencoder, source: StoredSource, folder: Path) -> None:
    """RequestError unless the autoencoder has the width of the rows."""
    if autoencoder.d != source.d:
        raise RequestError(f"{folder} works on d = {autoencoder.d}, {source.name} holds d = {source.d}; name its store")


def _without_seed(known: Mapping[str, Any]) -> Any:
    if "saelens" in known:
        return known["saelens"]
    config = {key: value for key, value in known["config"].items() if key != "seed"}
    return config | {"data": {key: value for key, value in config["data"].items() if key != "seed"}}


def _consistency(column: Column) -> None:
    """MCS of every neuron, mean over the other runs of its column."""
    arrays = [run.autoencoder.encoder for run in column.runs]
    for i, run in enumerate(column.runs):
        others = [max_cosines(arrays[i], other) for j, other in enumerate(arrays) if j != i]
        if others:
            run.mcs = np.mean(others, axis=0)


def estimate(run: Run, X: np.ndarray) -> Proxies:
    """Proxies of the theory from one run; X: the rows that its codes belong to.

    Raises:
        RequestError: too few features, as in `proxies`.
    """
    W = gate(run.autoencoder)[0]
    U = run.autoencoder.inputs(X)
    # Projections on unit rows, whatever the activation function makes of them: only b_enc shifts codes.
    shift, lengths = run.autoencoder.b_enc, np.linalg.norm(W, axis=1)
    if run.autoencoder.rank_by_decoder_norm:
        shift = shift * np.linalg.norm(run.autoencoder.decoder, axis=1)
    values = (run.codes.data - shift[run.codes.indices]) / np.where(lengths > 0, lengths, 1)[run.codes.indices]
    codes = sparse.csr_array((np.maximum(values, 0), run.codes.indices, run.codes.indptr), shape=run.codes.shape)
    energy = float(np.square(U, dtype=np.float64).sum() / len(U))
    return proxies(W, codes, run.mcs, mean=U.mean(axis=0), energy=energy)


def model_of(source: StoredSource, name: str | None) -> LanguageModel:
    """The language model that a store came from, as it was captured.

    Raises:
        RequestError: it cannot be loaded, or is another one.
    """
    assert isinstance(source.rows, Store)
    index = source.rows.index
    control = index.get("control") if index.get("control") == "random-model" else None
    model = load_model(
        name or index.get("loaded_from") or index["model"]["name"], index["dtype"], control=control,
        revision=index.get("asked_revision"), seed=index["text"]["seed"],
    )  # fmt: skip
    if model.revision != index["model"]["revision"]:
        raise RequestError(
            f"{model.name} is not the model that {source.name} was captured from; name that with --model"
        )
    return model


class _Models:
    """The language models of stores, the last one kept: columns on one store share it."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.kept: tuple[Any, LanguageModel] | None = None

    def of(self, source: StoredSource) -> LanguageModel:
        assert isinstance(source.rows, Store)
        index = source.rows.index
        key = [index.get(name) for name in ("loaded_from", "model", "asked_revision", "dtype", "control", "text")]
        if self.kept is None or self.kept[0] != key:
            self.kept = None  # let go of the old one before the new one is read
            self.kept = key, model_of(source, self.name)
        return self.kept[1]


def _with_text(sources: Sequence[StoredSource]) -> StoredSource:
    """The first source that has contexts to run a model on."""
    for source in sources:
        if isinstance(source.rows, Store):
            return source
    raise RequestError("--model needs a store of sae-recovery capture, whose contexts it runs on; leave it out")


def _recover(column: Column, source: StoredSource, contexts: int, models: _Models, tell: Tell) -> None:
    """Loss recovered of a column's first run, or a note why there is none."""
    try:
        chosen = source.held_out_contexts()[:contexts]
        model = models.of(source) if len(chosen) else None
    except RequestError as error:
        if models.name is not None and isinstance(source.rows, Store):
            raise
        column.notes.append(f"no loss recovered: {error}")
        return
    if model is None:
        column.notes.append(f"no loss recovered: {source.name} is too small to hold out a whole context")
        return
    assert isinstance(source.rows, Store)
    tell(f"running the model on {len(chosen)} held-out contexts, {column.label}")
    tokens = source.rows.context_tokens(chosen)
    column.recovered = loss_recovered(
        model, source.rows.layer, column.runs[0].autoencoder, tokens, source.rows.mean
    )  # fmt: skip


def neurons_table(run: Run) -> pd.DataFrame:
    """One row per neuron of a run: frequency, scores, MCS where it was measured."""
    scores = run.measures.scores
    table = pd.DataFrame(
        {
            "neuron": np.arange(run.autoencoder.M), "frequency": run.measures.frequency,
            "max_activation": scores.max_activation, "z_score": scores.z_score, "post_z_score": scores.post_z_score,
            "activation_fraction": scores.pre_frequency,
        }
    )  # fmt: skip
    return table if run.mcs is None else table.assign(mcs=run.mcs)
