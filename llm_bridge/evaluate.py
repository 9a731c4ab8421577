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
from simulator.errors import RequestError
from theory.consistency import chance_median, max_cosines, top_neurons

ALPHA, CONSISTENT = 0.05, 0.8
"""Share of the neurons, by Z-score, whose consistency is reported, and the MCS from which one counts."""
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
    """

    label: str
    control: str | None
    runs: list[Run] = field(default_factory=list)
    recovered: LossRecovered | None = None
    estimates: Proxies | None = None
    why: str = ""

    def summary(self) -> dict[str, float | None]:
        """Means over the runs of what is one number per run."""
        found = pd.DataFrame([run.measures.summary() for run in self.runs]).mean().to_dict()
        first, scored = self.runs[0], [run for run in self.runs if run.mcs is not None]
        M, d = first.autoencoder.M, first.autoencoder.d
        mcs: dict[str, float | None] = dict.fromkeys(("mcs_median", "mcs_top_share"))
        if scored:
            mcs["mcs_median"] = float(np.mean([np.median(run.mcs[run.measures.frequency > 0]) for run in scored]))  # type: ignore[index]
            shares = []
            for run in scored:
                top = top_neurons(run.measures.scores.z_score, ALPHA, run.measures.frequency > 0).neurons
                shares.append(float((run.mcs[top] > CONSISTENT).mean()) if len(top) else 0.0)  # type: ignore[index]
            mcs["mcs_top_share"] = float(np.mean(shares))
        found |= mcs | {"mcs_chance_median": chance_median(M, d), "seeds": len(self.runs)}
        if self.recovered is not None:
            told = self.recovered
            found |= {
                "ce_clean": told.clean, "ce_spliced": told.spliced, "ce_zero": told.zero, "ce_mean": told.mean,
                "loss_recovered_zero": told.against_zero, "loss_recovered_mean": told.against_mean,
            }  # fmt: skip
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
    columns: dict[str, Column] = {}
    sources: dict[Any, StoredSource] = {}
    for folder in folders:
        autoencoder, known = load_run(folder)
        place, path = data_of(Path(folder), known, store, layer)
        if (place, path) not in sources:
            tell(f"reading {place}")
            sources[place, path] = StoredSource(open_rows(place, path), seed, centre=False)
        source = sources[place, path]
        fits(autoencoder, source, folder)
        tell(f"measuring {folder}")
        measured, codes = measure(autoencoder, source.evaluation(samples, seed))
        control = source.rows.index.get("control") if isinstance(source.rows, Store) else None
        key = json.dumps([_without_seed(known), str(place), path], sort_keys=True)
        label = method_text(known) + (f", {control}" if control else "")
        column = columns.setdefault(key, Column(label, control))
        column.runs.append(Run(Path(folder), autoencoder, known, place, path, measured, codes))
    for column in columns.values():
        _consistency(column)
        first = column.runs[0]
        source = sources[first.store, first.layer]
        try:
            column.estimates = estimate(first, source.evaluation(samples, seed))
        except RequestError as error:
            column.why = str(error)
        if contexts and isinstance(source.rows, Store):
            column.recovered = _recovered(column, source, contexts, model, tell)
    return list(columns.values())


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
    # Projections on unit rows, whatever the activation function makes of them.
    shift = run.autoencoder.b_enc * (1 if run.autoencoder.threshold is None else 0)
    lengths = np.linalg.norm(W, axis=1)
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


def _recovered(
    column: Column, source: StoredSource, contexts: int, name: str | None, tell: Tell
) -> LossRecovered | None:
    try:
        model = model_of(source, name)
    except RequestError as error:
        if name is not None:
            raise
        tell(f"no loss recovered: {error}")
        return None
    assert isinstance(source.rows, Store)
    chosen = source.held_out_contexts()[:contexts]
    if not len(chosen):
        tell("no loss recovered: the store is too small to hold out a whole context")
        return None
    tell(f"running the model on {len(chosen)} held-out contexts, {column.label}")
    tokens = source.rows.context_tokens(chosen)
    return loss_recovered(model, source.rows.layer, column.runs[0].autoencoder, tokens, source.rows.mean)


def neurons_table(run: Run) -> pd.DataFrame:
    """One row per neuron of a run: scores, frequency, target where it has one, MCS where it was measured."""
    scores = run.measures.scores
    table = pd.DataFrame(
        {
            "neuron": np.arange(run.autoencoder.M), "frequency": run.measures.frequency,
            "max_activation": scores.max_activation, "z_score": scores.z_score, "post_z_score": scores.post_z_score,
            "activation_fraction": scores.pre_frequency,
        }
    )  # fmt: skip
    return table if run.mcs is None else table.assign(mcs=run.mcs)
