"""The rows of `sae-recovery compare` that are no training of ours: oracles and classical learners.

Every row is computed once and kept in the store under rows/, named by the hash of what it depends on.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from scipy import sparse

from figures.cells import plain, write_json
from figures.contenders import VALIDATION_SEED, Budget
from figures.experiments import Workers, mean_and_interval
from simulator import World
from simulator.config import NUMBERS, fingerprint, to_config

logger = logging.getLogger(__name__)

Place = tuple[str, World, int, int]
"""Name of a world, the world, width M, seed."""
PENALTIES = tuple(float(f"{value:.3g}") for value in np.geomspace(0.02, 0.3, 5))
"""Tried by every classical learner on the validation seed, on inputs of unit norm."""
FITTED, CLASSICAL_FITTED = 5, 2
"""Samples that a probe and a classical learner are fitted to, in evaluation sets."""
ROWS_VERSION = 2
"""Raised whenever a stored row changes its meaning."""


def bound_rows(
    places: Sequence[Place],
    budget: Budget,
    store: Path,
    workers: Workers,
    progress: Callable[[str, int, int], None],
    *,
    classical: bool,
) -> pd.DataFrame:
    """What the true dictionary, a supervised probe, random directions and, if wanted, classical learners reach.

    The true dictionary and the probe know what no method knows; M plays no part in them.
    """
    tasks: list[tuple[dict[str, Any], dict[str, Any], World]] = []
    worlds = {name: world for name, world, _, _ in places}
    seeds = list(dict.fromkeys(seed for *_, seed in places))
    for name, world in worlds.items():
        for seed in seeds:
            for kind in ("true dictionary", "logistic probe"):
                tasks.append(({"world": name, "row": kind, "M": world.n, "seed": seed}, {}, world))
    if classical:
        from theory.classical import LEARNERS

        best = _tuned_penalties(list(LEARNERS), places, budget, store, workers, progress)
        for name, world, M, seed in places:
            for kind in LEARNERS:
                penalty = best[name, M, kind]
                tasks.append(({"world": name, "row": kind, "M": M, "seed": seed}, {"penalty": penalty}, world))
    rows = _stored("oracles", [(one | more, world) for one, more, world in tasks], budget, store, workers, progress)
    table = pd.DataFrame([one | found for (one, _, _), found in zip(tasks, rows, strict=True)])
    columns = {"frr_090": "FRR 0.9", "mcc": "MCC", "detection_f1_feature": "F1, all features",
               "detection_f1_neuron": "F1, neurons", "explained_variance": "EV", "mean_l0": "L0",
               "seconds": "seconds"}  # fmt: skip
    for name in columns:
        if name not in table:
            table[name] = np.nan
    short = mean_and_interval(table, ["world", "row", "M"], columns)
    notes = table.groupby(["world", "row", "M"], sort=False)["note"].first().reset_index(drop=True)
    short["note"] = notes.to_numpy()
    keep = [name for name in short if not name.endswith("±") or name == "F1, all features ±"]
    return short[keep]


def _tuned_penalties(
    kinds: Sequence[str], places: Sequence[Place], budget: Budget, store: Path, workers: Workers, progress: Any
) -> dict[tuple[str, int, str], float]:
    """The penalty of each learner that is best on the validation seed, by world and width."""
    from theory.classical import WITHOUT_PENALTY

    shapes = list({(name, M): (name, world, M) for name, world, M, _ in places}.values())
    tasks = [
        ({"world": name, "row": kind, "M": M, "seed": VALIDATION_SEED, "penalty": penalty}, world)
        for name, world, M in shapes for kind in kinds
        for penalty in PENALTIES[: 1 if kind in WITHOUT_PENALTY else budget.all_trials]
    ]  # fmt: skip
    rows = _stored("classical tuning", tasks, budget, store, workers, progress)
    best: dict[tuple[str, int, str], tuple[float, float]] = {}
    for (one, _), found in zip(tasks, rows, strict=True):
        key = (one["world"], one["M"], one["row"])
        score = found.get("frr_090")
        score = -1.0 if score is None else score + 1e-3 * found["mean_feature_cosine"]
        if key not in best or score > best[key][0]:
            best[key] = (score, one["penalty"])
    return {key: penalty for key, (_, penalty) in best.items()}


def _stored(
    stage: str, tasks: Sequence[tuple[dict[str, Any], World]], budget: Budget, store: Path, workers: Workers,
    progress: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """What each task found, computed where the store lacks it; a row that says "not installed" is never kept."""
    files = [store / "rows" / f"{fingerprint(_identity(one, world, budget))[:16]}.json" for one, world in tasks]
    missing = [index for index, file in enumerate(files) if _read(file) is None]
    done, fresh = len(files) - len(missing), {}
    progress(stage, done, len(files))
    if missing:
        (store / "rows").mkdir(parents=True, exist_ok=True)
        with workers.parallel(len(missing)) as parallel:
            jobs = (joblib.delayed(_row)(index, tasks[index][0], tasks[index][1], budget) for index in missing)
            for index, found in parallel(jobs):
                fresh[index] = found
                if not str(found.get("note", "")).startswith("not installed"):
                    write_json(files[index], found)
                done += 1
                progress(stage, done, len(files))
    return [fresh[index] if index in fresh else _read(file) or {} for index, file in enumerate(files)]


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _identity(one: dict[str, Any], world: World, budget: Budget) -> dict[str, Any]:
    if one["row"] in ("true dictionary", "logistic probe"):
        one = {key: value for key, value in one.items() if key != "M"}
    one = {key: value for key, value in one.items() if key != "world"}
    known = {"samples": budget.samples, "batch": budget.batch}
    return {"rows": ROWS_VERSION, "numbers": NUMBERS, "world": to_config(world), "row": one, **known}


def _row(index: int, one: dict[str, Any], world: World, budget: Budget) -> tuple[int, dict[str, Any]]:
    return index, plain(_bound(one, world, budget))


def _bound(one: dict[str, Any], world: World, budget: Budget) -> dict[str, Any]:
    """One oracle or classical row on the evaluation samples that the methods are judged on."""
    from theory.baselines import fit_threshold
    from theory.classical import classical_dictionary, threshold_codes
    from theory.codes import code_metrics, normalised
    from theory.geometry import check
    from theory.probes import best_thresholds, probe_scores
    from theory.validation import unit_rows

    seed, kind = one["seed"], one["row"]
    fitted = world.sample(
        budget.samples * (FITTED if kind == "logistic probe" else CLASSICAL_FITTED), seed, name="fitting"
    )
    judged = world.sample(budget.samples, seed, name="evaluation")
    X_fit, _ = normalised(fitted.X, fitted.H)
    X, H = normalised(judged.X, judged.H)
    if kind == "logistic probe":
        found = probe_scores(X_fit, fitted.H, X, judged.H).summary()
        return {
            "detection_f1_feature": found["f1"], "precision": found["precision"], "recall": found["recall"],
            "seconds": found.get("seconds"), "note": "knows the supports of its training samples",
        }  # fmt: skip
    if kind == "true dictionary":
        W, seconds, note = unit_rows(fitted.V), 0.0, "knows V, and supports for a threshold per feature"
        mean = X_fit.mean(axis=0, dtype=np.float64)
        z_fit = (X_fit - mean) @ W.T
        bars = best_thresholds(z_fit, fitted.H)
        # The scale of least squares error on the same samples, as the encoder of the classical rows has it.
        shown = np.where(z_fit > bars, z_fit, 0.0) @ W
        a = np.full(len(W), float((shown * (X_fit - mean)).sum() / max((shown * shown).sum(), 1e-300)))
        z = (X - mean) @ W.T
        codes, b_pre = sparse.csr_array(np.where(z > bars, z, 0.0)), mean
    else:
        learnt = classical_dictionary(kind, X_fit, one["M"], penalty=one["penalty"], seed=seed, batch=budget.batch)
        if learnt.dictionary is None:
            return {"note": learnt.note, "frr_090": None}
        W, seconds, note = unit_rows(learnt.dictionary), learnt.seconds, learnt.note
        codes, a, _, b_pre = threshold_codes(W, X, fit_threshold(W, X_fit))
    recovery = check(judged.V, W, frequencies=world.frequencies(), seed=seed)
    measured = code_metrics(codes, a, W, b_pre, X, H, recovery)
    return {**recovery.summary(), **measured.summary(), "seconds": seconds, "note": note}
