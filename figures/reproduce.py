"""The command reproduce: every figure, then one page with ours beside the paper's numbers."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pandas as pd

from figures.cells import plain, write_json
from figures.claims import Claim
from figures.presets import FIGURES, load_figure
from figures.run_options import Reproduce, Run
from figures.runner import figure_folder, run_figure
from simulator.storage import write_atomically

SOURCE = "Chen et al. 2025, *Taming Polysemanticity in LLMs*, [arXiv:2506.14002](https://arxiv.org/abs/2506.14002)"


def reproduce(
    options: Reproduce, progress: Callable[[str, int, int], None], tell: Callable[[str], None]
) -> tuple[dict[str, Any], str]:
    """Run all figures at a size and write the page.

    Args:
        options: of the command.
        progress: called with (figure, cells done, cells in all).
        tell: called with each estimate at paper size.

    Returns:
        The claims as JSON-able data, and the text for a person.
    """
    folder = options.report or options.out / f"reproduction-{options.size}"
    sections, facts = [], []
    for name in FIGURES:
        run = Run(
            name, size=options.size, jobs=options.jobs, backend=options.backend, scheduler=options.scheduler,
            device=options.device, out=options.out,
        )  # fmt: skip

        def advance(done: int, total: int, name: str = name) -> None:
            progress(name, done, total)

        result, _ = run_figure(run, advance, tell)
        experiment = load_figure(name)
        place = figure_folder(options.out, name, options.size)
        claims = experiment.claims(pd.read_csv(place / "table.csv")) if experiment.claims else []
        write_atomically(folder / f"{name}.png", (place / f"{name}.png").read_bytes())
        sections.append(section(name, experiment.title, result, claims))
        facts += [{"figure": name, **plain(vars(claim)), "verdict": claim.verdict} for claim in claims]
    page = "\n".join([*head(options.size, facts), *sections])
    write_atomically(folder / "README.md", page.encode())
    written = {"size": options.size, "claims": facts, "report": str(folder / "README.md")}
    write_json(folder / "claims.json", written)
    agree = sum(fact["verdict"] == "agrees" for fact in facts)
    return written, f"{agree} of {len(facts)} statements agree. Report: {folder / 'README.md'}"


def head(size: str, facts: list[dict[str, Any]]) -> list[str]:
    """Title, command and the count of verdicts."""
    counts = {word: sum(fact["verdict"] == word for fact in facts) for word in ("agrees", "does not agree", "open")}
    versions = ", ".join(f"{name} {version(name)}" for name in ("sae-recovery", "torch", "numpy"))
    return [
        f"# Reproduction report, size {size}",
        "",
        f"The figures of {SOURCE}, made again on planted worlds. The paper's numbers are read off its figures "
        "(about ±0.02); those on language models stand beside planted worlds here, so their sizes can differ where "
        "their order should not.",
        "",
        f"Command: `sae-recovery reproduce --size {size}`. Versions: {versions}.",
        "",
        f"Statements tested: {len(facts)}; {counts['agrees']} agree, {counts['does not agree']} do not agree, "
        f"{counts['open']} stay open.",
        "",
    ]


def section(name: str, title: str, result: dict[str, Any], claims: list[Claim]) -> str:
    """Picture, table of the statements and the sentences on them."""
    seeds = result["seeds"]
    told = "seed" if len(seeds) == 1 else "seeds"
    first = title[0].lower() if title[1].islower() else title[0]
    lines = [
        f"## {name}: {first}{title[1:]}", "", f"![{title}]({name}.png)", "",
        f"`sae-recovery run {name} --size {result['size']}`; {told} {', '.join(map(str, seeds))}.", "",
    ]  # fmt: skip
    if claims:
        lines += ["| statement | here | paper | difference | |", "|---|---|---|---|---|"]
        lines += [
            f"| {claim.statement} | {number(claim.ours)} | {number(claim.paper)} | {number(claim.difference)} | "
            f"**{claim.verdict}** |"
            for claim in claims
        ]
        told = ((claim.statement.split(" (")[0], claim.verdict, claim.remark) for claim in claims)
        lines += ["", *(f"- *{statement}*: {verdict}. {remark}" for statement, verdict, remark in told), ""]
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Three significant digits, `-` where there is none."""
    return "-" if value is None or value != value else f"{value:.3g}"
