"""What a finished run learned: recovery against the planted features, codes on fresh samples, references."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures.cells import Cell, evaluation_sample, load_fit
from simulator import Fit, Sample, TopK
from simulator.sae import encode
from simulator.training import prepare
from theory.absorption import absorption
from theory.baselines import reference_rows
from theory.benchmark import benchmark_scores, feature_scores
from theory.codes import CodeMetrics, code_metrics, normalised
from theory.explain import explain
from theory.geometry import Recovery, check
from theory.scores import NeuronScores, neuron_scores

# Fields of a result that stay empty where nothing was planted.
RECOVERY_KEYS = (
    "frr_080", "frr_090", "frr_080_untrained", "frr_090_untrained", "neuron_precision_080",
    "neuron_precision_090", "mcc", "mcc_chance", "uniqueness", "mean_feature_cosine",
)  # fmt: skip

CODE_KEYS = ("loss", "explained_variance", "mean_l0", "mean_l0_pre", "dead")


def judge(cell: Cell, outcome: Fit, source: Any) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Metrics, table rows (the trained network first) and tables of a finished run.

    Args:
        cell: what was computed.
        outcome: the fit.
        source: where its batches came from.

    Returns:
        metrics: flat numbers for result.json. rows: one per dictionary, same keys. tables: history,
        neurons and, where features were planted, features.
    """
    drawn = evaluation_sample(cell, source)
    tables: dict[str, Any] = {"history": pd.DataFrame(outcome.history)}
    method = type(cell.training.method).__name__
    if not all(np.isfinite(value).all() for value in (outcome.W, outcome.a, outcome.b, outcome.b_pre)):
        # Nothing can be measured on a network that diverged; the cell is still a row of its table.
        empty = {"n": None, "M": cell.training.neurons, "d": outcome.W.shape[1], "samples": cell.samples}
        metrics = {**dict.fromkeys((*RECOVERY_KEYS, *CODE_KEYS)), **empty}
        return metrics, [{"row": f"{method}, diverged", **metrics}], tables
    if isinstance(drawn, Sample):
        X, H = normalised(drawn.X, drawn.H) if cell.training.normalise else (drawn.X, drawn.H)
        codes = outcome.encode(drawn.X)
        frequency = np.bincount(codes.indices, minlength=cell.training.neurons) / len(X)
        law = cell.world.frequencies() if cell.world is not None else None
        recovery = check(
            drawn.V, outcome.W, W_start=outcome.W_start, frequencies=law, alive=frequency > 0, seed=cell.seed
        )
        judged = code_metrics(codes, outcome.a, outcome.W, outcome.b_pre, X, H, recovery, V=drawn.V)
        scores = benchmark_scores(codes, outcome.a, outcome.W, outcome.b_pre, X, H, drawn.V, recovery, judged)
        every = feature_scores(recovery, judged, frequencies=law)
        metrics = {**recovery.summary(), **judged.summary(), **scores.summary(), **every.summary()}
        if cell.world is not None and cell.world.hierarchy is not None:
            parents = cell.world.hierarchy.parents
            metrics |= absorption(codes, outcome.W, H, drawn.V, parents, recovery).summary()
        scores = neuron_scores(X, outcome.W, outcome.b, outcome.b_pre, codes)
        tables |= {
            "features": features_table(recovery, judged),
            "neurons": neurons_table(outcome, recovery, judged).join(scores_table(scores)),
        }
        V = drawn.V
    else:
        X, V = outcome.prepare(drawn), None
        codes = outcome.encode(drawn)
        frequency = np.bincount(codes.indices, minlength=cell.training.neurons) / len(X)
        residual = outcome.decode(codes) - X
        energy = float((X.astype(np.float64) ** 2).sum())
        spread = float(((X - X.mean(axis=0)).astype(np.float64) ** 2).sum())
        missed = float((residual.astype(np.float64) ** 2).sum())
        metrics = {
            **dict.fromkeys(RECOVERY_KEYS),
            "n": None, "M": cell.training.neurons, "d": X.shape[1],
            "loss": missed / energy if energy else None,
            "explained_variance": 1 - missed / spread if spread else None,
            "mean_l0": codes.nnz / len(X), "dead": int((frequency == 0).sum()),
        }  # fmt: skip
        scores = neuron_scores(X, outcome.W, outcome.b, outcome.b_pre, codes)
        known = {"neuron": np.arange(len(frequency)), "target": _targets(outcome), "frequency": frequency}
        tables["neurons"] = pd.DataFrame({**known, "a": outcome.a, "b": outcome.b}).join(scores_table(scores))
    metrics["samples"] = len(X)
    metrics["mean_l0_pre"] = float(scores.pre_frequency.sum())
    rows: list[dict[str, Any]] = [{"row": f"{method}, trained", **metrics}]
    if V is not None:
        # A recovery rate is never given without what the same network had before training.
        before = {f"frr_{tau}": metrics[f"frr_{tau}_untrained"] for tau in ("080", "090")}
        rows.append({"row": f"{method}, untrained", **dict.fromkeys(metrics), **before})
    if cell.references:
        found = reference_rows(V, X, cell.training.neurons, W_start=outcome.W_start, seed=cell.seed)
        rows += [{"row": row.pop("name"), **row} for row in found]
    return metrics, rows, tables


def _targets(outcome: Fit) -> np.ndarray:
    return np.full(len(outcome.W), np.nan) if outcome.targets is None else outcome.targets


def features_table(recovery: Recovery, judged: CodeMetrics) -> pd.DataFrame:
    """One row per planted feature: its frequency, its best neuron and how well that neuron detects it."""
    return pd.DataFrame(
        {
            "feature": np.arange(recovery.n),
            "frequency": recovery.frequencies,
            "cosine": recovery.feature_cosine,
            "cosine_untrained": recovery.untrained_cosine,
            "neuron": recovery.feature_neuron,
            "neurons_above_090": recovery.neurons_per_feature[recovery.thresholds.index(0.9)],
            "precision": judged.features.precision,
            "recall": judged.features.recall,
            "f1": judged.features.f1,
            "coefficient_error": judged.coefficient_error,
        }
    )


def neurons_table(outcome: Fit, recovery: Recovery, judged: CodeMetrics) -> pd.DataFrame:
    """One row per neuron: its target and measured frequency, its best feature and how well it detects it."""
    return pd.DataFrame(
        {
            "neuron": np.arange(recovery.M),
            "target": _targets(outcome),
            "frequency": judged.neurons.frequency,
            "cosine": recovery.neuron_cosine,
            "feature": recovery.neuron_feature,
            "features_above_090": recovery.features_per_neuron[recovery.thresholds.index(0.9)],
            "precision": judged.neurons.precision,
            "recall": judged.neurons.recall,
            "f1": judged.neurons.f1,
            "a": outcome.a,
            "b": outcome.b,
        }
    )


def scores_table(scores: NeuronScores) -> pd.DataFrame:
    """One row per neuron: the scores that need no planted features."""
    names = ("max_activation", "z_score", "post_z_score", "pre_frequency")
    return pd.DataFrame({name: getattr(scores, name) for name in names})


def explain_cell(cell: Cell, folder: Path, feature: int) -> str:
    """Why a feature was or was not learned, from a finished folder and fresh samples of its world."""
    saved = load_fit(folder)
    drawn = evaluation_sample(cell, cell.source())
    assert isinstance(drawn, Sample)
    assert cell.world is not None
    training = cell.training
    k = training.method.k if isinstance(training.method, TopK) else None
    X = prepare(drawn.X, training)
    codes = encode(X, saved["W"], saved["b"], saved["b_pre"], training.gate, k, threshold=saved.get("threshold"))
    told = explain(
        feature, drawn.V, saved["W"], frequencies=cell.world.frequencies(), H=drawn.H, codes=codes,
        targets=training.targets(),
    )  # fmt: skip
    return told.text()
