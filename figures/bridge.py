"""The commands on language models: capture, train, evaluate, dashboard, export."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures.bridge_options import Capture, Dashboard, Evaluate, Export, Train, text_of
from figures.cells import Cell, plain, run_cell, write_csv, write_json
from figures.report import result_text, table_text
from figures.spectrum import draw_spectrum, spectrum
from llm_bridge.autoencoder import Autoencoder
from llm_bridge.capture import capture
from llm_bridge.dashboard import collect_neurons, logit_effects, write_dashboard
from llm_bridge.evaluate import Column, data_of, evaluate, fits, model_of, neurons_table
from llm_bridge.measures import measure
from llm_bridge.models import LanguageModel
from llm_bridge.proxies import TRUSTED
from llm_bridge.runs import load_run, method_text
from llm_bridge.saelens import write_saelens
from llm_bridge.sources import StoredSource, open_rows
from llm_bridge.store import INDEX, Store
from simulator import RequestError
from simulator.checks import whole
from simulator.config import fingerprint
from simulator.devices import torch_threads

Tell = Callable[[str], None]

WRITERS = ("mlp", "self_attn", "attn", "attention", "o_proj", "down_proj", "c_proj", "dense_4h_to_h", "fc2", "out_proj")
METRICS = {
    "loss": "normalised loss",
    "explained_variance": "explained variance",
    "explained_variance_model": "explained variance, model's scale",
    "mean_l0": "active neurons per token (L0)",
    "fraction": "fraction of activated neurons, post",
    "fraction_pre": "fraction of activated neurons, pre",
    "dead": "dead neurons",
    "activation_fraction_median": "activation fraction, median neuron",
    "max_activation_median": "maximum activation, median neuron",
    "z_score_median": "Z-score, median neuron",
    "mcs_median": "MCS over seeds, median neuron",
    "mcs_top_share": "MCS > 0.8 among the top 5 % by Z-score",
    "mcs_chance_median": "MCS of random directions, median",
    "ce_clean": "cross-entropy, nats per token",
    "ce_spliced": "the same, reconstruction spliced in",
    "ce_zero": "the same, layer set to zero",
    "ce_mean": "the same, layer set to its mean",
    "loss_recovered_zero": "loss recovered, against zero",
    "loss_recovered_mean": "loss recovered, against the mean",
}


@contextlib.contextmanager
def _threads(number: int | None) -> Any:
    if number is None:
        yield
    else:
        with torch_threads(number):
            yield


def run_capture(options: Capture, progress: Callable[[int, float], None]) -> tuple[dict[str, Any], str]:
    """Capture, and one line on what the store holds."""
    if options.threads is not None:
        whole("threads", options.threads, 1)
    with _threads(options.threads):
        done = capture(
            options.model, options.layer, text_of(options), options.tokens, options.out, dtype=options.dtype,
            revision=options.revision, control=options.control, batch=options.batch, shard_rows=options.shard_rows,
            progress=progress,
        )  # fmt: skip
    rate = done.new / done.seconds if done.seconds else None
    result = plain(
        {"store": str(options.out), "rows": done.rows, "new": done.new, "tokens_per_second": rate,
         "exhausted": done.exhausted, "layers": Store(options.out, options.layer[0], verify=False).index["layers"]}
    )  # fmt: skip
    told = f"{done.rows:,} activations in {options.out}"
    told += f", {done.new:,} of them new at {rate:,.0f} tokens/s" if rate else "; nothing was missing"
    if done.exhausted:
        told += f". The text ended before the {options.tokens:,} that were asked for"
    return result, told


def run_train(options: Train, advance: Callable[[int, float], None]) -> tuple[dict[str, Any], str]:
    """Train and judge on held-out rows; the report folder is that of `verify`."""
    options.refuse_idle()
    pilot = options.targets == "pilot"
    cell = Cell(None, options.training(), options.seed, options.data(), options.samples, references=False, pilot=pilot)
    source = cell.source()
    folder = options.out or Path("runs") / f"train-{fingerprint(cell.config(source))[:10]}"
    result = run_cell(
        cell, folder, device=options.device, engine=options.engine, threads=options.threads,
        checkpoint_seconds=options.checkpoint_seconds, progress=advance, source=source,
    )  # fmt: skip
    return result, result_text(result, folder)


def run_evaluate(options: Evaluate, tell: Tell) -> tuple[dict[str, Any], str]:
    """The table of all columns, the proxies, and neurons.csv of the first run."""
    if options.model is not None and options.contexts == 0:
        raise RequestError("--model belongs to --contexts above 0; leave it out")
    folder = options.out or Path(*options.runs[:1]) / "evaluation"
    _refuse_others_files(folder)
    columns = evaluate(
        options.runs, store=options.store, layer=options.layer, samples=options.samples, contexts=options.contexts,
        model=options.model, seed=options.seed, tell=tell,
    )  # fmt: skip
    table = metrics_table(columns)
    estimates = proxies_table(columns)
    result = plain(
        {"columns": [{"label": one.label, "control": one.control, "runs": [str(run.folder) for run in one.runs],
                      **one.summary(), "proxies": "" if one.estimates else one.why, "notes": one.notes}
                     for one in columns],
         "proxies": estimates.to_dict("records")}
    )  # fmt: skip
    # First: it marks the files beside it as those of an evaluation, also after an interrupt.
    write_json(folder / "evaluation.json", result)
    write_csv(folder / "metrics.csv", table)
    write_csv(folder / "neurons.csv", neurons_table(columns[0].runs[0]))
    if len(estimates):
        write_csv(folder / "proxies.csv", estimates)
    else:
        (folder / "proxies.csv").unlink(missing_ok=True)  # of an earlier evaluation
    first = columns[0].runs[0]
    bars = spectrum(first)
    write_csv(folder / "spectrum.csv", bars)
    draw_spectrum(bars, columns[0].estimates, targets_of(first.folder, first.autoencoder.M), folder / "spectrum.png")
    text = [
        table_text(table),
        "",
        "Estimates where V and H are unknown; rank correlation: with the truth on planted worlds (n <= 456, d <= 192: "
        "larger is extrapolation), below 0.8 greyed:",
    ]
    text += [table_text(estimates)] if len(estimates) else []
    text += [f"none for {one.label}: {one.why}" for one in columns if one.estimates is None]
    text += [
        f"greyed: all of {one.label}: {one.estimates.doubt}"
        for one in columns if one.estimates is not None and one.estimates.doubt
    ]  # fmt: skip
    text += ["", *notes] if (notes := [f"{one.label}: {note}" for one in columns for note in one.notes]) else []
    return result, "\n".join([*text, "", f"Tables: {folder}"])


def _refuse_others_files(folder: Path) -> None:
    """An evaluation replaces an earlier one and nothing else: a run has a neurons.csv too."""
    if (folder / "evaluation.json").exists():
        return
    for name in ("result.json", "metrics.csv", "neurons.csv", "proxies.csv", "spectrum.csv", "spectrum.png"):
        if (folder / name).exists():
            raise RequestError(f"{folder / name} is not of an evaluation and would be replaced; name another --out")


def metrics_table(columns: list[Column]) -> pd.DataFrame:
    """One row per metric, one column per group of runs."""
    found = [column.summary() for column in columns]
    rows = [{"metric": words} | {c.label: f.get(name) for c, f in zip(columns, found, strict=True)}
            for name, words in METRICS.items()]  # fmt: skip
    labels = ["metric", *(column.label for column in columns)]
    return pd.DataFrame(rows, columns=labels).dropna(how="all", subset=labels[1:])


def proxies_table(columns: list[Column]) -> pd.DataFrame:
    """One row per quantity: what each column gives, and how far the estimate followed the truth on planted worlds."""
    told = [(column.label, column.estimates.rows()) for column in columns if column.estimates is not None]
    rows = []
    for same in zip(*(found for _, found in told), strict=True):
        sure = same[0].correlation >= TRUSTED
        note = "trusted" if sure else f"greyed: {same[0].correlation:.2f}"
        if all(column.estimates.doubt for column in columns if column.estimates is not None):
            note = "greyed: see below"
        row: dict[str, Any] = {"quantity": same[0].quantity, "rank correlation": same[0].correlation, "note": note}
        for (label, _), one in zip(told, same, strict=True):
            row[label] = float(one.estimate)
            row[f"slack, {label}"] = one.slack
        rows.append(row)
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def run_dashboard(options: Dashboard, tell: Tell) -> tuple[dict[str, Any], str]:
    """One self-contained page with the neurons of highest Z-score."""
    if options.neurons < 1 or options.rows < 2 or options.contexts < 1:
        raise RequestError("--neurons and --contexts must be at least 1, --rows at least 2")
    autoencoder, known = load_run(options.run)
    place, layer = data_of(options.run, known, options.store, options.layer)
    rows = open_rows(place, layer)
    if not isinstance(rows, Store):
        raise RequestError(f"{place} has no text behind its rows; a store of sae-recovery capture is needed")
    source = StoredSource(rows, 0, centre=False)
    fits(autoencoder, source, options.run)
    file = options.out or (options.run / "dashboard.html")
    _refuse_other_page(file)
    model = model_of(source, options.model)
    taken = min(options.rows, rows.N)
    tell(f"encoding {taken:,} of {rows.N:,} activations")
    measured, codes = measure(autoencoder, rows.read(0, taken))
    alive = np.flatnonzero(measured.frequency > 0)
    if not len(alive):
        raise RequestError(f"no neuron of {options.run} is ever active on these {taken} activations")
    order = alive[np.argsort(-measured.scores.z_score[alive], kind="stable")][: options.neurons]
    contexts = rows.marks("contexts", 0, taken)
    tokens = rows.context_tokens(np.arange(int(contexts.max()) + 1))
    pages = collect_neurons(
        codes, contexts, rows.marks("positions", 0, taken), tokens, order, top=options.contexts
    )  # fmt: skip
    effects = _effects(model, autoencoder, order, rows.layer)
    used = {int(t) for page in pages for part in page.contexts for t in part.tokens}
    if effects is not None:
        used |= {int(t) for t in np.unique(np.concatenate([effects.promoted, effects.suppressed]))}
    strings = dict(zip(sorted(used), model.text(sorted(used)), strict=True))
    write_dashboard(
        file, f"{method_text(known)} on {rows.layer}", facts(rows, known, measured, len(order), taken),
        _table(options.run, measured, codes, order), pages, strings, effects,
    )  # fmt: skip
    size = file.stat().st_size
    told = f"{len(order):,} neurons, {size / 1e6:.1f} MB: {file}"
    return {"page": str(file), "neurons": len(order), "bytes": size}, told


def _refuse_other_page(file: Path) -> None:
    """A page of ours is replaced, anything else is not."""
    if not file.exists():
        return
    with contextlib.suppress(OSError):
        if file.is_file():
            head = file.read_bytes()[:400]
            if head.startswith(b"<!doctype html>") and b"default-src 'none'" in head:
                return
    raise RequestError(f"{file} exists and is no dashboard; name another file with --out")


def _effects(model: LanguageModel, autoencoder: Autoencoder, neurons: np.ndarray, layer: str) -> Any:
    """Logit effects, where the layer writes into the residual stream: a block, its attention or MLP, or their output.

    Told by the module's name, for queries, say, can have the same width.
    """
    last = layer.rsplit(".", 1)[-1]
    writes = last.isdigit() or last in WRITERS
    if not writes or model.unembedding.shape[1] != autoencoder.d:
        return None
    return logit_effects(autoencoder.decoder[neurons], model.unembedding, model.final_norm)


def facts(rows: Store, known: Any, measured: Any, shown: int, taken: int) -> list[tuple[str, str]]:
    """What the head of the page says."""
    control = rows.index.get("control")
    return [
        ("model", rows.index["model"]["name"] + (f" ({control})" if control else "")), ("layer", rows.layer),
        ("method", method_text(known)), ("activations", f"{taken:,} of {rows.N:,}, {rows.index['dropped']} dropped"),
        ("normalised loss here", f"{measured.loss:.3f}"), ("L0", f"{measured.mean_l0:.1f}"),
        ("dead", f"{measured.dead:,} of {len(measured.frequency):,}"), ("shown", f"{shown:,} of highest Z-score"),
    ]  # fmt: skip


def _table(run: Path, measured: Any, codes: Any, order: np.ndarray) -> pd.DataFrame:
    """The list of the page; with MCS where `evaluate` has measured it.

    The maximum is that of the codes, as in the histograms; `evaluate` has the paper's, of the margin over the gate.
    """
    table = pd.DataFrame(
        {
            "neuron": order, "frequency": measured.frequency[order],
            "max_activation": np.asarray(codes.max(axis=0).todense()).ravel()[order],
            "z_score": measured.scores.z_score[order], "target": np.nan,
        }
    )  # fmt: skip
    target = targets_of(run, len(measured.frequency))
    if target is not None:
        table["target"] = target[order]
    mcs = _column(run / "evaluation" / "neurons.csv", "mcs", len(measured.frequency))
    return table if mcs is None else table.assign(mcs=mcs[order])


def targets_of(run: Path, M: int) -> np.ndarray | None:
    """Target activation frequency of every neuron of a run, (M,); None where it had none."""
    target = _column(run / "neurons.csv", "target", M)
    return target if target is not None and np.isfinite(target).all() else None


def _column(file: Path, name: str, rows: int) -> np.ndarray | None:
    """A column of numbers of a table; None where there is none of so many rows."""
    try:
        found = pd.read_csv(file)[name].to_numpy(float)
    except (OSError, ValueError, KeyError):
        return None
    return found if len(found) == rows else None


def run_export(options: Export) -> tuple[dict[str, Any], str]:
    """A SAELens folder."""
    autoencoder, known = load_run(options.run)
    metadata: dict[str, Any] = {"method": method_text(known)}
    with contextlib.suppress(RequestError):
        place, layer = data_of(options.run, known, None, None)
        if (place / INDEX).exists():
            rows = Store(place, layer, verify=False)
            metadata |= {
                "model_name": rows.index["model"]["name"], "hook_name": rows.layer,
                "context_size": rows.index["text"]["context"], "prepend_bos": False,
            }  # fmt: skip
    write_saelens(options.out, autoencoder, metadata)
    told = "; it expects activations with the mean taken off: see metadata in cfg.json" if (
        autoencoder.offset is not None and autoencoder.offset.any() and autoencoder.rows != "none"
    ) else ""  # fmt: skip
    return {"folder": str(options.out)}, f"SAELens folder: {options.out}{told}"
