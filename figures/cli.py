"""The command line: `sae-recovery verify`, `check`, `run`, `plot`, `status`, `reproduce`, `theorem`, and others.

Every impossible request ends with one line on standard error and exit code 2; an interrupt with 130.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from figures import bridge_options, run_options
from figures import options as _options
from figures.bridge_options import Capture, Dashboard, Evaluate, Export, Train
from figures.options import Bench, Check, HeatMap, Identify, TheoremOptions, Verify
from figures.presets import PRESETS, load_preset
from figures.run_options import Compare, Explore, Plot, Reproduce, Run, Status
from simulator.errors import RequestError

COMMANDS = _options.COMMANDS | run_options.COMMANDS | bridge_options.COMMANDS
CONTINUED = ("verify", "heat-map", "theorem", "run", "reproduce", "compare", "capture", "train")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="replace")  # a terminal without the sign ± is no reason to fail
    logging.basicConfig(level=logging.WARNING, format="sae-recovery: %(message)s")
    try:
        code = _run(arguments)
    except RequestError as error:
        _complain(str(error))
        code = 2
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing to report, and nothing left to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except KeyboardInterrupt:
        again = "; the same command continues where this one stopped" if arguments and arguments[0] in CONTINUED else ""
        _complain(f"interrupted{again}")
        code = 130
    except MemoryError:
        _complain("out of memory; take fewer features, neurons or samples")
        code = 2
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _complain(f"{error.strerror or error}{where}; check the path, its permissions and the free space")
        code = 2
    sys.exit(code)


def _complain(message: str) -> None:
    if sys.stderr is not None:
        print(f"sae-recovery: {' '.join(message.split())}", file=sys.stderr)


def _run(arguments: list[str]) -> int:
    options = _parse(arguments)
    if isinstance(options, Check):
        from figures.check import check_files

        result, text = check_files(options)
    elif isinstance(options, Bench):
        result, text = _bench(options)
    elif isinstance(options, HeatMap):
        result, text = _heat_map(options)
    elif isinstance(options, TheoremOptions):
        result, text = _theorem(options)
    elif isinstance(options, Identify):
        from figures.identify import identify_files

        result, text = identify_files(options)
    elif isinstance(options, Run):
        from figures.runner import run_figure

        with _cells_bar(options.quiet or options.json) as progress:
            result, text = run_figure(options, lambda done, total: progress("", done, total), _tell)
    elif isinstance(options, Plot):
        from figures.runner import plot_figure

        result, text = plot_figure(options)
    elif isinstance(options, Status):
        from figures.runner import status_table

        result, text = status_table(options)
    elif isinstance(options, Reproduce):
        from figures.reproduce import reproduce

        with _cells_bar(options.quiet or options.json) as progress:
            result, text = reproduce(options, progress, _tell)
    elif isinstance(options, Compare):
        from figures.compare import run_compare

        with _cells_bar(options.quiet or options.json) as progress:
            result, text = run_compare(options, progress, _tell)
    elif isinstance(options, Explore):
        from figures.explorer.server import explore

        explore(options, _tell)
        return 0
    elif isinstance(options, Capture | Train | Evaluate | Dashboard | Export):
        result, text = _bridge(options)
    elif options.preset is not None:
        result, text = _preset(options)
    else:
        result, text = _verify(options, arguments)
    print(json.dumps(result, allow_nan=False) if options.json else text)
    return 0


def _parse(arguments: list[str]) -> Any:
    """Options from the command line; a bad one is a `RequestError` of one line instead of tyro's box."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="sae-recovery",
                description="Do sparse autoencoders recover the features?",
                args=arguments,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        lines = [re.sub(r"[│╭╮╰╯─├┤|]", " ", line).strip(" -") for line in box.getvalue().splitlines()]
        told = [line for line in lines if line and not line.startswith(("Argument helptext", "For full helptext"))]
        raise RequestError(f"{': '.join(told[:3])}; see sae-recovery {_command(arguments)}--help") from None


def _command(arguments: list[str]) -> str:
    return f"{arguments[0]} " if arguments and arguments[0] in COMMANDS else ""


@contextlib.contextmanager
def _bar(total: int, unit: str, quiet: bool) -> Any:
    """A progress bar on standard error, shown on a terminal only: yields (done, note) -> None."""
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, disable=True if quiet else None, leave=False) as bar:

        def advance(done: int, note: str = "") -> None:
            if note:
                bar.set_postfix_str(note, refresh=False)
            bar.update(done - bar.n)

        yield advance


@contextlib.contextmanager
def _cells_bar(quiet: bool) -> Any:
    """A progress bar over cells with the time left, one per figure: yields (figure, done, total) -> None."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def advance(name: str, done: int, total: int) -> None:
        if name not in bars:
            for bar in bars.values():
                bar.close()
            # What was done before does not count for the speed.
            bars[name] = tqdm(
                total=total, initial=done, unit="cell", desc=name or None, disable=True if quiet else None, leave=False
            )
        bars[name].update(done - bars[name].n)

    try:
        yield advance
    finally:
        for bar in bars.values():
            bar.close()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _verify(options: Verify, arguments: list[str]) -> tuple[dict[str, Any], str]:
    from figures.cells import run_cell
    from figures.report import result_text
    from simulator.config import fingerprint
    from simulator.rng import stream

    options.refuse_idle()
    stream(options.seed, "check")  # refuses an impossible seed before anything is made
    cell = options.cell()
    if options.explain is not None:
        _check_feature(options, cell)
    folder = options.out or Path("runs") / f"verify-{fingerprint(cell.config())[:10]}"
    with _bar(cell.training.steps, "step", options.quiet or options.json) as advance:
        result = run_cell(
            cell, folder, device=options.device, engine=options.engine, threads=options.threads,
            checkpoint_seconds=options.checkpoint_seconds,
            progress=lambda step, loss: advance(step, f"loss {loss:.4f}" if step % 50 == 0 else ""),
        )  # fmt: skip
    text = result_text(result, folder)
    if options.explain is not None:
        from figures.judge import explain_cell

        told = explain_cell(cell, folder, options.explain)
        result, text = {**result, "explanation": told}, f"{text}\n\n{told}"
    return result, text


def _check_feature(options: Verify, cell: Any) -> None:
    if cell.world is None:
        raise RequestError("--explain needs planted features; with --activations there are none")
    if not 0 <= options.explain < cell.world.n:  # type: ignore[operator]
        raise RequestError(f"--explain {options.explain}: features are numbered 0 to {cell.world.n - 1}")


def _preset(options: Verify) -> tuple[dict[str, Any], str]:
    from figures.experiments import experiment_config, mean_references, run_experiment
    from figures.report import table_text

    if options.preset not in PRESETS:
        raise RequestError(f"unknown preset {options.preset!r}; there are {', '.join(PRESETS)}")
    changed = [
        name
        for name, default in vars(Verify()).items()
        if getattr(options, name) != default and name not in ("preset", "out", "seeds", "jobs", "size", "json", "quiet")
    ]
    if changed:
        raise RequestError(f"--{changed[0].replace('_', '-')} is decided by the preset {options.preset}; leave it out")
    if options.jobs < 0:
        raise RequestError(f"jobs = {options.jobs} must be a whole number of at least 0 (0: one per core)")
    experiment = load_preset(options.preset)
    folder = options.out or Path("runs") / f"{options.preset}-{options.size}"
    with _bar(0, "cell", options.quiet or options.json) as advance:
        bar: Callable[..., None] = advance

        def progress(done: int, total: int) -> None:
            bar(done, f"of {total} cells")

        table, references = run_experiment(
            experiment, folder, seeds=options.seeds, size=options.size, jobs=options.jobs, progress=progress
        )
    from figures.cells import plain, write_csv, write_json
    from simulator.config import fingerprint

    short = experiment.summarise(table)
    beside = mean_references(references)
    write_csv(folder / "cells.csv", table)
    write_csv(folder / "table.csv", short)
    experiment.draw(table, folder / f"{experiment.name}.png")
    result = plain(
        {
            "config": experiment_config(experiment, options.size),
            "fingerprint": fingerprint(experiment_config(experiment, options.size)),
            "preset": experiment.name, "size": options.size, "rows": short.to_dict("records"),
            "references": beside.to_dict("records"), "cells": table.to_dict("records"),
        }
    )  # fmt: skip
    write_json(folder / "result.json", result)
    tables = "\n\n".join(table_text(part) for part in (short, beside) if len(part))
    text = f"{experiment.title}\n\n{tables}\n\nEvery cell, the table and the picture: {folder}"
    return result, text


def _bridge(options: Any) -> tuple[dict[str, Any], str]:
    from figures import bridge

    if isinstance(options, Export):
        return bridge.run_export(options)
    if isinstance(options, Dashboard):
        return bridge.run_dashboard(options, _tell)
    if isinstance(options, Evaluate):
        result, text = bridge.run_evaluate(options, _tell)
        if sys.stdout is not None and sys.stdout.isatty():
            text = re.sub(r"(?m)^.*greyed: .*$", lambda line: f"\033[90m{line[0]}\033[0m", text)
        return result, text
    if isinstance(options, Capture):
        with _bar(options.tokens, "token", options.quiet or options.json) as advance:
            return bridge.run_capture(
                options, lambda rows, rate: advance(min(rows, options.tokens), f"{rate:,.0f} tokens/s")
            )
    with _bar(options.steps, "step", options.quiet or options.json) as advance:
        return bridge.run_train(options, lambda step, loss: advance(step, f"loss {loss:.4f}" if step % 20 == 0 else ""))


def _bench(options: Bench) -> tuple[dict[str, Any], str]:
    from figures.bench import run_bench
    from figures.cells import plain
    from figures.report import table_text

    def progress(what: str) -> None:
        if not options.json:
            print(f"measuring {what}", file=sys.stderr)

    tables = run_bench(
        options.out, options.size, options.rounds, options.peer_python, progress, options.store, options.layer
    )
    result = plain({name: table.to_dict("records") for name, table in tables.items()})
    text = "\n\n".join(table_text(table) for table in tables.values())
    return result, f"{text}\n\nTables and pictures: {options.out}"


def _heat_map(options: HeatMap) -> tuple[dict[str, Any], str]:
    from figures.cells import plain
    from figures.heat_map import run_heat_map
    from figures.report import table_text

    folder = options.out or Path("runs") / f"heat-map-{options.size}"
    if options.threads is not None and options.threads < 1:
        raise RequestError(f"threads = {options.threads} must be a whole number of at least 1")
    with _bar(0, "step", options.quiet or options.json) as advance:
        bar: Callable[..., None] = advance

        def progress(done: int, total: int, step: int, loss: float) -> None:
            bar(step, f"cell {done + 1} of {total}, loss {loss:.4f}")

        table = run_heat_map(
            folder, d=options.d, p=options.p, size=options.size, seed=options.seed, threads=options.threads,
            progress=progress,
        )  # fmt: skip
    shown = table[["d", "p", "seed", "frr_080", "frr_090", "frr_090_untrained", "paper", "seconds"]]
    return plain({"cells": table.to_dict("records")}), f"{table_text(shown)}\n\nEvery cell and the map: {folder}"


def _theorem(options: TheoremOptions) -> tuple[dict[str, Any], str]:
    from figures.theorem import theorem_report

    with _bar(0, "run", options.quiet or options.json) as advance:
        bar: Callable[..., None] = advance
        return theorem_report(options, lambda done, total: bar(done, f"of {total}"))


if __name__ == "__main__":
    main()
