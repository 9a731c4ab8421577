"""Command compare: every method on every world at every width, tuned alike, judged by the truth.

1. tune: every method tries five values of its one knob on a validation seed, three far apart and two around the best;
2. choose: its own best value, and the value that gives the L0 of a perfect dictionary (interpolated in the logarithms
   of knob and L0; where no trial came near that L0, up to two more that look for it and count for nothing else);
3. compete: both, on seeds that tuning has not seen, with equal samples and batches.

All methods see the same dictionary, batches and initial directions at one seed. Cells are kept, so the same command
continues, and a larger question (more seeds, worlds, methods) computes only what is new.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures.cells import Cell, plain, refuse_foreign, write_csv, write_json
from figures.compare_rows import bound_rows
from figures.contenders import CONTENDERS, VALIDATION_SEED, WORLDS, Budget, chosen, perfect_l0
from figures.estimate import Estimate, estimate
from figures.experiments import Experiment, Finished, Workers, compute_missing, finished_cells, mean_and_interval
from figures.run_options import Compare
from figures.sparsity_match import close, matched
from simulator import RequestError, World
from simulator.config import fingerprint

SEARCHES = 2
"""Further trials for a matched L0, where the trials of the knob have not come near it."""
BUDGETS = {
    "tiny": Budget(n=128, d=32, batch=256, steps=40, learning_rate=5e-3, samples=1_000, trials=2),
    "reduced": Budget(n=256, d=64, batch=512, steps=600, learning_rate=5e-3),
    "full": Budget(n=1_024, d=128, batch=1_024, steps=2_500, learning_rate=3e-3, samples=20_000),
}
REDUCED_WORLDS = ("mixture", "zipf", "synth-sae-bench")
CRITERIA = {
    "frr": ("frr_090", "mean_feature_cosine"),
    "mcc": ("mcc", "mean_feature_cosine"),
    "f1": ("detection_f1_feature", "mean_feature_cosine"),
}
"""What "own best" means: the first number, and the second where the first ties."""
NEAR_L0 = 1.25
"""A run counts as one at matched L0 up to this factor."""

SHOWN = {
    "feature_frr_090": "FRR 0.9", "frr_090_untrained": "untrained", "feature_frr_090_chance": "chance FRR",
    "feature_cosine": "best cosine", "feature_cosine_chance": "chance cosine", "feature_f1": "F1, all features",
    "feature_f1_chance": "chance F1", "benchmark_mcc": "MCC", "mcc_chance": "chance MCC",
    "benchmark_f1": "F1, neurons", "benchmark_precision": "precision", "benchmark_recall": "recall",
    "benchmark_uniqueness": "uniqueness", "benchmark_explained_variance": "EV", "benchmark_shrinkage": "shrinkage",
    "benchmark_l0": "L0", "benchmark_dead_latents": "dead", "frr_frequent": "FRR, frequent half",
    "frr_rare": "FRR, rare half", "absorption_rate": "absorption", "absorption_excess_silence": "excess silence",
    "absorption_leak": "leak", "absorption_hedging": "hedging", "splitting": "neurons per feature",
    "seconds": "seconds",
}  # fmt: skip
"""Column of a cell -> name in the table: ours (every feature counts), the benchmark's, by frequency, hierarchy."""

EXACT = ("true L0", "knob", "seconds", "untrained", "chance FRR", "chance cosine", "chance F1", "chance MCC")
"""Columns whose interval says nothing."""

Tell = Callable[[str], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Question:
    """What is compared: names, widths as numbers of neurons, seeds, and the budget."""

    worlds: tuple[str, ...]
    methods: tuple[str, ...]
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    budget: Budget
    criterion: str

    def world(self, name: str) -> World:
        """The world of that name at the budget's size."""
        return WORLDS[name][1](self.budget.n, self.budget.d)

    def entries(self) -> list[tuple[str, str, int]]:
        """World, method and width of everything that competes."""
        return [(world, method, M) for world in self.worlds for M in self.widths for method in self.methods]


def question(options: Compare) -> Question:
    """The question that the options ask.

    Raises:
        RequestError: unknown names, impossible widths or seeds, or a validation seed among the seeds.
    """
    budget = BUDGETS[options.size]
    worlds = chosen(options.worlds, WORLDS, "world") or (tuple(WORLDS) if options.size == "full" else REDUCED_WORLDS)
    methods = chosen(options.methods, CONTENDERS, "method") or tuple(CONTENDERS)
    seeds = options.seeds or ((0, 1) if options.size == "tiny" else (0, 1, 2, 3, 4))
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise RequestError(f"seeds {seeds} must be different whole numbers of at least 0")
    if VALIDATION_SEED in seeds:
        raise RequestError(f"seed {VALIDATION_SEED} is the one that knobs are tuned on; take another")
    widths = []
    for ratio in options.widths:
        M = round(ratio * budget.n) if math.isfinite(ratio) else 0
        if not 1 <= M <= 64 * budget.n:
            raise RequestError(f"width {ratio:g} n must give 1 to {64 * budget.n} neurons, e.g. --widths 0.25 1 4")
        widths.append(M)
    if len(set(widths)) != len(widths):
        raise RequestError(f"--widths {options.widths} name one width twice")
    return Question(worlds, methods, tuple(sorted(widths)), tuple(seeds), budget, options.criterion)


def run_compare(options: Compare, progress: Progress, tell: Tell) -> tuple[dict[str, Any], str]:
    """Tune, choose, compete, and write the tables and the figure.

    Args:
        options: of the command.
        progress: called with (stage, done, total).
        tell: called with the estimate before the run starts, and with remarks.

    Returns:
        Content of result.json, and the text for a person.
    """
    asked = question(options)
    folder = options.out / "figures" / f"compare-{options.size}"
    # Another budget or criterion is refused. The tables are of the latest question; cells of earlier ones are kept.
    config = {"preset": "compare", "size": options.size, "criterion": options.criterion, "budget": vars(asked.budget)}
    refuse_foreign(folder, config)
    store, workers = options.out, Workers(options.jobs)
    tell(_forecast(asked, store, workers))
    began = time.monotonic()

    def compute(stage: str, labelled: list) -> list[Finished]:
        return _computed(stage, labelled, store, workers, progress)

    def attempt(entry: tuple[str, str, int], value: float) -> tuple[dict[str, Any], Cell]:
        world, method, M = entry
        return label(world, method, M) | {"knob": value}, cell(asked, world, method, M, value, VALIDATION_SEED)

    tuned = [entry for entry in asked.entries() if not CONTENDERS[entry[1]].pilot]
    trials = [attempt(entry, value) for entry in tuned for value in first_values(asked, *entry)]
    tuning = table_of(compute("tuning", trials))
    for entry in tuned:
        mine = rows_of(tuning, *entry)
        more = CONTENDERS[entry[1]].refined(list(mine["knob"]), own_best(mine, asked.criterion), entry[2])
        trials += [attempt(entry, value) for value in more]
    tuning = table_of(compute("tuning, second round", trials)).assign(round="knob")
    wanted = {(world, M): perfect_l0(asked.world(world), M) for world in asked.worlds for M in asked.widths}
    seen, searches = tuning, []
    for _ in range(SEARCHES):
        for entry in tuned:
            world, method, M = entry
            mine = rows_of(seen, *entry)
            value = typed(matched(mine, wanted[world, M], M))
            if not CONTENDERS[method].whole and not close(mine, wanted[world, M]) and value not in set(mine["knob"]):
                searches.append(attempt(entry, value))
        found = table_of(compute("looking for the matched L0", searches)).assign(round="L0")
        seen = pd.concat([tuning, found], ignore_index=True)
    finals = []
    for world, method, M in asked.entries():
        points = {"best": 0.0}
        if not CONTENDERS[method].pilot:
            points = {
                "best": own_best(rows_of(tuning, world, method, M), asked.criterion),
                "matched L0": matched(rows_of(seen, world, method, M), wanted[world, M], M),
            }
        for point, value in points.items():
            for seed in asked.seeds:
                more = {"point": point, "knob": typed(value)}
                finals.append((label(world, method, M) | more, cell(asked, world, method, M, typed(value), seed)))
    table = table_of(compute("competing", finals))
    table["true L0"] = [wanted[place] for place in zip(table["world"], table["M"], strict=True)]
    bounds = bound_rows(
        [(world, asked.world(world), M, seed) for world in asked.worlds for M in asked.widths for seed in asked.seeds],
        asked.budget, store, workers, progress, classical=options.classical,
    )  # fmt: skip
    return _written(options, asked, folder, config, table, seen, bounds, time.monotonic() - began)


def typed(value: float) -> float:
    """The value as a number that a person can type again."""
    return float(f"{value:.6g}")


def label(world: str, method: str, M: int) -> dict[str, Any]:
    """The columns that say which competitor a row is about."""
    return {"world": world, "method": method, "M": M}


def rows_of(table: pd.DataFrame, world: str, method: str, M: int) -> pd.DataFrame:
    """The rows of one competitor."""
    return table[(table["world"] == world) & (table["method"] == method) & (table["M"] == M)]


def first_values(asked: Question, world: str, method: str, M: int) -> list[float]:
    """The knob values of the first round, as a person can type them."""
    found = CONTENDERS[method].values(asked.world(world), M, asked.budget.trials)
    return list(dict.fromkeys(float(f"{value:.4g}") for value in found))


def cell(asked: Question, world: str, method: str, M: int, value: float, seed: int) -> Cell:
    """The run of a method at a value of its knob."""
    law = asked.world(world)
    training = CONTENDERS[method].training(value, law, M, asked.budget)
    return Cell(
        law, training, seed, samples=asked.budget.samples, references=False, pilot=CONTENDERS[method].pilot
    )  # fmt: skip


def own_best(trials: pd.DataFrame, criterion: str) -> float:
    """The knob value of the best trial."""
    first, second = CRITERIA[criterion]
    ranked = trials.assign(first=trials[first].fillna(-1.0), second=trials[second].fillna(-1.0))
    return float(ranked.sort_values(["first", "second"], ascending=False, kind="stable")["knob"].iloc[0])


def _computed(
    stage: str, labelled: list[tuple[dict[str, Any], Cell]], store: Path, workers: Workers, progress: Progress
) -> list[Finished]:
    """Every labelled cell, computed where the store lacks it."""
    frame = Experiment("compare", "", lambda seeds, size: [], lambda t: t, lambda t, p: None, needs=("features.csv",))
    rows = [(one, item, item.config()) for one, item in labelled]
    found = finished_cells(rows, store, frame.needs)
    compute_missing(frame, rows, found, store, workers, lambda done, total: progress(stage, done, total))
    if any(one is None for one in found):
        found = finished_cells(rows, store, frame.needs)
    done = [one for one in found if one is not None]
    if len(done) < len(rows):
        raise RequestError(f"{len(rows) - len(done)} cells are not in {store}; run the command again")
    return done


def table_of(done: Sequence[Finished]) -> pd.DataFrame:
    """One row per cell: labels, seed, the peers' scores and ours."""
    rows = []
    for one in done:
        numbers = {key: value for key, value in one.result.items() if isinstance(value, int | float | None)}
        numbers.pop("seed", None)
        halves = dict.fromkeys(("frr_frequent", "frr_rare"))
        if (one.folder / "features.csv").exists():
            features = pd.read_csv(one.folder / "features.csv").sort_values("frequency", ascending=False, kind="stable")
            learned = features["cosine"].to_numpy() > 0.9
            middle = len(learned) // 2
            halves = {"frr_frequent": learned[:middle].mean(), "frr_rare": learned[middle:].mean()}
        status = {"status": one.result["status"], "cell": one.folder.name}
        rows.append({**one.label, "seed": one.cell.seed, **numbers, **halves, **status})
    return pd.DataFrame(rows)


def _forecast(asked: Question, store: Path, workers: Workers) -> str:
    """Time and memory of what is missing. Values that tuning will choose are stood in for by the middle one."""
    cells = []
    for world, method, M in asked.entries():
        contender = CONTENDERS[method]
        values = first_values(asked, world, method, M)
        middle = values[len(values) // 2]
        second = [] if contender.pilot else contender.refined(values, middle, M)
        trials = [] if contender.pilot else [(value, VALIDATION_SEED) for value in (*values, *second)]
        points = [middle] if contender.pilot else (second or values)[:2]
        later = [(value, seed) for value in points for seed in asked.seeds]
        cells += [({}, cell(asked, world, method, M, value, seed)) for value, seed in trials]
        cells += [({}, cell(asked, world, method, M, value, seed)) for value, seed in later]
    labelled = [(one, item, item.config()) for one, item in cells]
    found = finished_cells(labelled, store, ("features.csv",))
    missing = [item for (_, item, _), one in zip(labelled, found, strict=True) if one is None]
    # Judging, sampling the evaluation set and reading back cost about as much again per cell as these seconds.
    guess = estimate(missing, workers.cells_at_once)
    rest = 0.5 * len(missing) / min(workers.cells_at_once, max(1, len(missing)))
    return f"compare: {Estimate(guess.cells, guess.seconds + rest, guess.bytes).text()}"


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval over the seeds of every competitor at both points, and whether its L0 is the matched one."""
    columns = {name: shown for name, shown in SHOWN.items() if name in table and table[name].notna().any()}
    short = mean_and_interval(
        table, ["world", "M", "method", "point"], columns | {"knob": "knob", "true L0": "true L0"}
    )
    short = short.drop(columns=[name for name in short if name.endswith("±") and name.split(" ±")[0] in EXACT])
    near = np.abs(np.log(short["L0"] / short["true L0"])) <= np.log(NEAR_L0)
    short.insert(4, "L0 matched", np.where(near, "yes", "no"))
    return short


def paired(table: pd.DataFrame, reference: str = "GBA") -> pd.DataFrame:
    """FRR 0.9 of every method minus that of the reference, seed by seed, both at their own best.

    Methods see the same dictionary, batches and initial directions at one seed, so the mean of the differences has a
    narrower interval than the difference of two means. Empty where the reference does not compete.
    """
    best = table[table["point"] == "best"]
    other = best[best["method"] == reference][["world", "M", "seed", "frr_090"]]
    both = best[best["method"] != reference].merge(other, on=["world", "M", "seed"], suffixes=("", "_reference"))
    both["difference"] = both["frr_090"] - both["frr_090_reference"]
    name, by = f"FRR 0.9 minus {reference}'s", ["world", "M", "method"]
    found = mean_and_interval(both, by, {"difference": name})
    return found if len(found) else pd.DataFrame(columns=[*by, "seeds", name, f"{name} ±"])


def digest(short: pd.DataFrame) -> pd.DataFrame:
    """What is printed: a row per competitor, its own best beside its FRR at matched L0 (blank where not reached)."""
    best = short[short["point"] == "best"]
    kept = ["world", "M", "method", "knob", "L0", "FRR 0.9", "FRR 0.9 ±", "MCC", "chance MCC", "F1, all features",
            "F1, neurons", "EV", "seconds"]  # fmt: skip
    told = best[[name for name in kept if name in best]]
    other = short[(short["point"] == "matched L0") & (short["L0 matched"] == "yes")]
    other = other[["world", "M", "method", "FRR 0.9", "L0"]]
    return told.merge(
        other.rename(columns={"FRR 0.9": "FRR at matched L0", "L0": "that L0"}), on=["world", "M", "method"], how="left"
    )


def _written(
    options: Compare, asked: Question, folder: Path, config: dict[str, Any], table: pd.DataFrame,
    tuning: pd.DataFrame, bounds: pd.DataFrame, wall: float,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    from figures.compare_figure import draw_compare
    from figures.report import table_text

    short, differences = summary(table), paired(table)
    tables = {"table": table, "tuning": tuning, "summary": short, "paired": differences, "bounds": bounds}
    for name, part in tables.items():
        write_csv(folder / f"{name}.csv", part)
    for suffix in ("png", "pdf"):
        draw_compare(short, bounds, asked.budget.n, folder / f"compare.{suffix}")
    result = plain(
        {
            "config": config, "fingerprint": fingerprint(config), "size": options.size, "budget": vars(asked.budget),
            "worlds": asked.worlds, "methods": asked.methods, "widths": asked.widths, "seeds": asked.seeds,
            "rows": short.to_dict("records"), "paired": differences.to_dict("records"),
            "bounds": bounds.to_dict("records"), "wall_seconds": round(wall, 1),
        }
    )  # fmt: skip
    write_json(folder / "result.json", result)
    text = f"{table_text(digest(short))}\n\n{table_text(bounds)}"
    return result, f"{text}\n\nTables, figure and every cell: {folder}"
