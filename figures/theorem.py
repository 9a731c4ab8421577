"""`sae-recovery theorem NAME`: a theorem's hypotheses, real runs of the method that it speaks of, and the verdict."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

from figures.cells import claimed, plain, refuse_foreign, write_csv, write_json
from figures.report import table_text
from figures.style import ACCENT, DARK, MARKERS, new_figure, save_figure
from simulator import BA, Exactly, RequestError, Training, World, fit
from simulator.config import NUMBERS, fingerprint
from simulator.modified import ModifiedBA, population_fit
from simulator.training import start_directions
from theory.bounds import frequency_of_largest_epsilon, steps
from theory.evidence import assess, detectable_rate, seeds_needed, seeds_to_confirm
from theory.geometry import best_cosines
from theory.resonance import CONSTANTS, Setting, predict
from theory.theorems import THEOREMS, Case, Theorem, Verdict, recovery_epsilon

LEVEL = 0.05
RUNS = {"recovery": 24, "finite-recovery": 60, "resonance": 8}
OUTCOME = ("cosines", "untrained cosines")
CONTROLS = ("none", "oracle", "permuted", "independent", "untrained", "frozen")


@dataclass(frozen=True)
class Run:
    """One run: a case, a seed, and whether inputs are centred; `control` puts another dictionary in W's place."""

    theorem: str
    case: Case
    seed: int
    centred: bool = True
    control: str = "none"

    def config(self) -> dict[str, Any]:
        """What decides the cosines: the threshold and the rate asked for do not."""
        case = {name: value for name, value in asdict(self.case).items() if name not in ("tau", "delta")}
        return {"numbers": NUMBERS, **asdict(self), "case": case}


def default_cases(theorem: str, size: str) -> list[Case]:
    """The default grid."""
    if theorem == "recovery":
        if size == "tiny":
            return [Case(8, 6, 2, 2_000, 0.12), Case(8, 6, 2, 2_000, 0.25)]
        cases = []
        for n, d in ((16, 15), (24, 23), (32, 24), (32, 31)):
            found = frequency_of_largest_epsilon(n, d, 3, 300_000, 0.5)
            assert found is not None
            cases += [Case(n, d, 3, 300_000, found[0], tau=tau) for tau in (0.8, 0.9)]
            cases += [Case(n, d, 3, 300_000, 2 * 3 / n)] if n < 32 else []
        return cases
    if theorem == "finite-recovery":
        if size == "tiny":
            return [Case(12, 10, 2, 4_096, relative * 2 / 12, 1.0, 0.8, 0.5) for relative in (0.3, 1.5)]
        shapes = ((32, 24, 3, 16_384, 0.8), (64, 48, 2, 16_384, 0.8), (64, 56, 2, 65_536, 0.9))
        return [
            Case(n, d, s, M, relative * s / n, 1.0, tau) for n, d, s, M, tau in shapes for relative in (0.2, 0.5, 4.0)
        ]
    if size == "tiny":
        return [Case(24, 12, 2, 96, relative * 2 / 24, tau=0.8) for relative in (1.5, 4.0)]
    return [Case(256, 48, 3, 1_024, relative * 3 / 256) for relative in (0.25, 1.0, 2.0, 4.0, 8.0, 12.0)]


def compute(run: Run, tiny: bool = False) -> dict[str, list[float]]:
    """Every feature's cosine with its neuron, after the run and before."""
    case = run.case
    world = World(case.n, case.d, Exactly(case.s))
    V = world.features(run.seed)
    start = start_directions(run.seed, case.M, case.d, "float32")
    before = best_cosines(V, start)
    if run.control in ("oracle", "permuted"):
        W = V if run.control == "oracle" else V[np.random.default_rng(run.seed).permutation(case.n)]
    elif run.control in ("independent", "frozen"):
        W = start_directions(run.seed + 2**40, case.M if run.control == "frozen" else case.n, case.d, "float32")
    elif run.control == "untrained":
        W = start
    elif run.theorem == "resonance":
        training = Training(
            BA(case.p), case.M, 40 if tiny else 1_500, 64 if tiny else 512, learning_rate=3e-3, decay=0.7,
            start_bias="quantile",
        )  # fmt: skip
        W = fit(world.stream(run.seed), training, run.seed, device="cpu", threads=1, record_every=training.steps).W
    else:
        method = ModifiedBA(case.p, case.M, steps(case.sigma), centred=run.centred)
        theorem = THEOREMS[run.theorem]
        assert isinstance(theorem, Theorem)
        theorem.refuse_other(method)
        W = population_fit(V, case.s, method, run.seed).W
    return {"cosines": best_cosines(V, W).tolist(), "untrained cosines": before.tolist()}


def facts(found: Mapping[str, Sequence[float]], tau: float) -> dict[str, float]:
    """Smallest cosine, share of features above tau, and that before training."""
    cosine, before = np.array(found["cosines"]), np.array(found["untrained cosines"])
    return {
        "smallest cosine": float(cosine.min()), "recovered": float((cosine > tau).mean()),
        "untrained": float((before > tau).mean()),
    }  # fmt: skip


def run_theorem(
    name: str,
    folder: Path,
    *,
    seeds: int | None = None,
    size: str = "full",
    jobs: int = 0,
    centred: bool = True,
    control: str = "none",
    cases: Sequence[Case] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pd.DataFrame, list[Verdict]]:
    """Run what is missing of the theorem's grid and judge every case.

    Args:
        name: of a theorem about recovery.
        folder: the store; a run that is there is read.
        seeds: runs per case, seeds 0, 1, ...; None: the default of the theorem.
        size: "full" or "tiny".
        jobs: processes; 0: one per core.
        centred: whether Modified BA takes off the mean of the inputs.
        control: one of `CONTROLS`.
        cases: instead of the default grid.
        progress: called with (runs done, runs in all).

    Returns:
        One row per case, and the verdicts.
    """
    theorem = THEOREMS[name]
    if not isinstance(theorem, Theorem):
        raise RequestError(f"theorem {name} is judged on pairs of factorisations; see figures.theorem.identifiability")
    if control not in CONTROLS:
        raise RequestError(f"unknown control {control!r}; there are {', '.join(CONTROLS)}")
    count = (RUNS[name] if size == "full" else 4) if seeds is None else seeds
    if count < 1:
        raise RequestError(f"seeds = {count} must be a whole number of at least 1")
    if jobs < 0:
        raise RequestError(f"jobs = {jobs} must be a whole number of at least 0 (0: one per core)")
    chosen = default_cases(name, size) if cases is None else list(cases)
    runs = [Run(name, case, seed, centred, control) for case in chosen for seed in range(count)]
    config = _config(name, size, centred, control, cases)
    refuse_foreign(folder, config)
    with claimed(folder):
        write_json(folder / "result.json", {"config": config, "fingerprint": fingerprint(config), "rows": []})
        places = [folder / "runs" / f"{fingerprint(run.config())[:16]}.json" for run in runs]
        missing = list({place: i for i, place in enumerate(places) if _read(place) is None}.values())
        (folder / "runs").mkdir(exist_ok=True)
        done = len(runs) - len(missing)
        if progress is not None:
            progress(done, len(runs))
        tasks = (joblib.delayed(_into)(runs[i], places[i], size == "tiny") for i in missing)
        workers = min(jobs or os.cpu_count() or 1, max(1, len(missing)))
        for _ in joblib.Parallel(n_jobs=workers, return_as="generator_unordered")(tasks):
            done += 1
            if progress is not None:
                progress(done, len(runs))
        found = [_read(place) for place in places]
    rows, verdicts = [], []
    for k, case in enumerate(chosen):
        outcomes = pd.DataFrame([facts(item or {}, case.tau) for item in found[k * count : (k + 1) * count]])
        row, verdict = _judge(theorem, case, outcomes, len(chosen))
        rows.append(row)
        verdicts.append(verdict)
    return pd.DataFrame(rows), verdicts


def _read(place: Path) -> dict[str, list[float]] | None:
    """A finished run; None where there is none or the file is damaged, so that it is computed again."""
    try:
        found = json.loads(place.read_text())
        return found if isinstance(found, dict) and set(found) == set(OUTCOME) else None
    except (OSError, ValueError):
        return None


def _config(name: str, size: str, centred: bool, control: str, cases: Sequence[Case] | None) -> dict[str, Any]:
    """What a store belongs to."""
    own = {} if cases is None else {"cases": [asdict(case) for case in cases]}
    return {"theorem": name, "size": size, "centred": centred, "control": control, **own}


def _into(run: Run, place: Path, tiny: bool) -> None:
    write_json(place, compute(run, tiny))


def _judge(theorem: Theorem, case: Case, outcomes: pd.DataFrame, cells: int) -> tuple[dict[str, Any], Verdict]:
    share = theorem.name == "resonance"
    failed = (outcomes["recovered"] < 0.5) if share else (outcomes["smallest cosine"] <= case.tau)
    promised = theorem.promise(case)
    evidence = assess(len(outcomes), int(failed.sum()), promised, cells=cells, level=LEVEL)
    untrained = float(outcomes["untrained"].mean())
    verdict = theorem.judge(case, evidence, untrained)
    level = LEVEL / cells
    needed = seeds_needed(promised, min(1.0, max(0.5, 2 * promised)), level) if promised < 1 else None
    row: dict[str, Any] = {
        "n": case.n, "d": case.d, "s": case.s, "M": case.M, "p": case.p, "p / f": case.p / case.frequency,
    }  # fmt: skip
    if theorem.name == "recovery":
        row["eps"] = recovery_epsilon(case)
    row |= {
        "T": 1_500 if share else steps(case.sigma), "tau": case.tau, "slack": verdict.slack, "promised": promised,
        "runs": evidence.runs, "failed": evidence.failures, "rate low": evidence.low, "rate high": evidence.high,
        "recovered": float(outcomes["recovered"].mean()), "untrained": untrained,
        "detectable": detectable_rate(evidence.runs, promised, level) if promised < 1 else None,
        "seeds to refute": needed,
        "verdict": verdict.quadrant + " (vacuous)" * verdict.vacuous + " fragile" * verdict.fragile,
    }  # fmt: skip
    if promised < 1 and seeds_to_confirm(promised, level) > 200:
        row["verdict"] += " untestable"
    if share:
        setting = Setting(case.n, case.d, case.s, case.M, case.p, "one-sided", 5_120, 150)
        row["predicted"] = float(predict([setting], case.tau).recovered[0])
    return row, verdict


def speaking(verdicts: Sequence[Verdict]) -> str:
    """One line: does any case speak for or against the theorem?"""
    counted = [verdict for verdict in verdicts if not verdict.vacuous]
    if not counted:
        return (
            "No case of this grid can speak for the theorem: every promise is vacuous or already met before training."
        )
    told = {name: sum(v.quadrant == name for v in counted) for name in ("confirmed", "counterexample", "undecided")}
    named = ", ".join(f"{count} {name}" for name, count in told.items() if count)
    rest = len(verdicts) - len(counted)
    return f"{len(counted)} of {len(verdicts)} cases are not vacuous: {named or 'none within the hypotheses'}" + (
        f"; {rest} vacuous" if rest else ""
    )


def own_case(options: Any) -> Case | None:
    """The case that the options describe; None for the default grid."""
    if options.n is None and options.d is None and options.p is None:
        return None
    if options.n is None or options.d is None or options.p is None:
        raise RequestError("a world of your own needs --n, --d and --p (and --s, --neurons where not the defaults)")
    M = options.neurons or (4 * options.n if options.name == "resonance" else 65_536)
    sigma = 1.0 if options.name == "finite-recovery" else options.sigma
    return Case(options.n, options.d, options.s, M, options.p, sigma, options.tau)


def theorem_report(options: Any, progress: Callable[[int, int], None] | None = None) -> tuple[dict[str, Any], str]:
    """What the command prints and writes."""
    if options.name == "identifiability":
        return identifiability(options)
    case = own_case(options)
    config = _config(options.name, options.size, options.centred, options.control, None if case is None else [case])
    default = options.size if case is None else fingerprint(config)[:10]
    folder = options.out or Path("runs") / f"theorem-{options.name}-{default}"
    table, verdicts = run_theorem(
        options.name, folder, seeds=options.seeds, size=options.size, jobs=options.jobs, centred=options.centred,
        control=options.control, progress=progress, cases=None if case is None else [case],
    )  # fmt: skip
    theorem = THEOREMS[options.name]
    write_csv(folder / "table.csv", table)
    draw(table, folder / "theorem.png")
    rows = plain(table.to_dict("records"))
    result = {
        "theorem": theorem.name, "status": theorem.status, "statement": theorem.statement, "rows": rows,
        "summary": speaking(verdicts), "config": config, "fingerprint": fingerprint(config),
        "hypotheses": [[asdict(slack) for slack in verdict.hypotheses] for verdict in verdicts],
    }  # fmt: skip
    write_json(folder / "result.json", result)
    shown = table.drop(columns=["rate low", "s"], errors="ignore")
    if options.name == "recovery":
        shown = shown.drop(columns=["detectable"])
    text = [theorem.title, f"Status: {theorem.status}", theorem.statement, "", table_text(shown), ""]
    if options.name == "resonance":
        text += ["The predictor's constants (theory.resonance):"]
        text += [f"  {name} = {constant.value:g}: {constant.origin}" for name, constant in CONSTANTS.items()] + [""]
    text += [f"Level {LEVEL:g} over {len(table)} cases (Bonferroni). {speaking(verdicts)}", f"Report: {folder}"]
    return plain(result), "\n".join(text)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Slack against the failure rate with its interval, one marker per verdict."""
    figure, axis = new_figure(width=5.2, height=3.6)
    kinds = ("confirmed", "counterexample", "beyond", "outside", "undecided")
    for kind, marker in zip(kinds, MARKERS, strict=True):
        part = table[table["verdict"].str.startswith(kind)]
        if not len(part):
            continue
        rate = part["failed"] / part["runs"]
        low, high = (rate - part["rate low"]).clip(lower=0), (part["rate high"] - rate).clip(lower=0)
        colour = ACCENT if kind == "counterexample" else DARK
        axis.errorbar(
            part["slack"], rate, yerr=[low, high], fmt=marker, color=colour, ms=5, lw=0.8, capsize=2, label=kind,
            mfc=colour if kind in ("confirmed", "counterexample") else "white",
        )  # fmt: skip
    axis.axvline(0, color=ACCENT, lw=0.8, ls="--")
    axis.set_xlabel("smallest slack of a hypothesis (right of the line: all hold)")
    axis.set_ylabel("failure rate, exact interval")
    axis.set_ylim(-0.03, 1.03)
    axis.legend(fontsize=8, frameon=False)
    save_figure(figure, path)


def identifiability(options: Any) -> tuple[dict[str, Any], str]:
    """The identifiability theorem on the counterexample families: both ends of every dial and between."""
    from theory.counterexamples import FAMILIES

    theorem = THEOREMS.identifiability
    if options.n is not None:
        return own_conditions(options)
    rows = []
    for name, family in FAMILIES.items():
        values = family.values if options.size == "full" else (family.values[0],)
        for dial in values:
            pair = family.build(dial)
            verdict = theorem.judge(pair.H, pair.V, pair.H_prime, pair.V_prime)
            forward = verdict.comparison.forward
            row: dict[str, Any] = {"violates": name, "dial": float(dial)}
            for condition, other in zip(verdict.truth, verdict.alternative, strict=True):
                row[condition.name] = min(condition.slack, other.slack)
            joint = min(verdict.truth.joint.slack, verdict.alternative.joint.slack)
            row |= {
                "s max|cos| < 1": joint, "eps lower": forward.eps_lower, "eps upper": forward.eps_upper,
                "verdict": verdict.quadrant,
            }  # fmt: skip
            rows.append(row)
    table = pd.DataFrame(rows)
    config = {"theorem": "identifiability", "size": options.size}
    result = plain(
        {"theorem": theorem.name, "status": theorem.status, "statement": theorem.statement, "rows": rows,
         "config": config, "fingerprint": fingerprint(config)}
    )  # fmt: skip
    text = [theorem.title, f"Status: {theorem.status}", theorem.statement, "", table_text(table), ""]
    text.append("H1 .. V1: smaller slack of the two factorisations, log(limit / measured); > 0 holds.")
    refuted = [row for row in rows if row["verdict"] == "counterexample"]
    if refuted:
        text.append(
            f"{len(refuted)} pairs meet all four surrogates and are not equivalent: one by one the surrogates are "
            "not enough at finite size (the asymptotic theorem is not touched)."
        )
    if options.out is not None:
        refuse_foreign(options.out, config)
        options.out.mkdir(parents=True, exist_ok=True)
        write_csv(options.out / "table.csv", table)
        write_json(options.out / "result.json", result)
        text.append(f"Report: {options.out}")
    return result, "\n".join(text)


def own_conditions(options: Any) -> tuple[dict[str, Any], str]:
    """H1, H2, H3, V1 of a world of Gaussian features: does the identifiability theorem speak about it?"""
    from theory.conditions import of_world

    if options.d is None:
        raise RequestError("a world of your own needs --n and --d (and --s where not 3)")
    told = of_world(World(options.n, options.d, Exactly(options.s)))
    rows = [
        {
            "condition": slack.name,
            "slack": slack.slack,
            "from": slack.low,
            "to": slack.high,
            "surrogate": slack.surrogate,
        }
        for slack in (*told, told.joint)
    ]
    answer = "yes" if told.satisfied else "no" if any(slack.fails for slack in told) else "undecided"
    config = {"theorem": "identifiability", "n": options.n, "d": options.d, "s": options.s}
    result = plain({"rows": rows, "satisfied": told.satisfied, "config": config, "fingerprint": fingerprint(config)})
    text = [
        f"{options.n} Gaussian features in {options.d} dimensions, {options.s} active: class conditions, log(limit / "
        "measured), 95 % interval", "", table_text(pd.DataFrame(rows)), "", f"All four hold: {answer}",
    ]  # fmt: skip
    if options.out is not None:
        refuse_foreign(options.out, config)
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(options.out / "result.json", result)
        text.append(f"Report: {options.out}")
    return result, "\n".join(text)


def wrong_by(theorem: Theorem, factor: float) -> Theorem:
    """A control: the same statement with a frequency bound wrong by `factor`, which real runs must catch."""
    return replace(
        theorem, name=theorem.name,
        hypotheses=lambda case: theorem.hypotheses(replace(case, p=case.p / factor)),
        promise=lambda case: theorem.promise(replace(case, p=case.p / factor)),
    )  # fmt: skip
