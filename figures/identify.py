"""`sae-recovery identify V.npy Vprime.npy`: can one dictionary be turned into the other?"""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from figures.cells import plain, refuse_foreign, write_csv, write_json
from figures.options import Identify
from figures.report import table_text
from simulator.config import fingerprint, to_config
from simulator.storage import read_matrix
from theory.identifiability import Direction, compare


def identify_files(options: Identify) -> tuple[dict[str, Any], str]:
    """The result and its text; written to --out where given."""
    V, V_prime = read_matrix(options.V), read_matrix(options.V_prime)
    H, H_prime = (None if path is None else read_matrix(path) for path in (options.H, options.H_prime))
    told = compare(
        V, V_prime, H=H, H_prime=H_prime, tolerance=options.tolerance, draws=options.draws, seed=options.seed
    )
    table = pd.DataFrame([_row("V' into V", told.forward), _row("V into V'", told.backward)])
    text = [f"V {V.shape[0]} x {V.shape[1]}, V' {V_prime.shape[0]} x {V_prime.shape[1]}", "", table_text(table), ""]
    for name, direction in (("V' into V", told.forward), ("V into V'", told.backward)):
        text.append(f"{name}: {direction.verdict}: {direction.reason}")
        if len(direction.failed):
            shown = ", ".join(map(str, direction.failed[:12])) + (", ..." if len(direction.failed) > 12 else "")
            text.append(f"  {len(direction.failed)} features above the tolerance: {shown}")
    slacks = []
    for name, conditions in zip(("H, V", "H', V'"), told.conditions, strict=True):
        if conditions is not None:
            slacks.append({"factorisation": name} | {slack.name: slack.slack for slack in conditions})
    if slacks:
        text += ["", "slack of the class conditions, log(limit / measured)", table_text(pd.DataFrame(slacks))]
    if told.difference is not None:
        text.append(f"largest relative difference of a row of HV and H'V': {told.difference:.2g}")
        if told.difference > 1e-6:
            text.append("HV and H'V' differ: these are not two factorisations of the same X")
    config = {"identify": [to_config(np.asarray(array)) for array in (V, V_prime)], "tolerance": options.tolerance}
    result = plain(
        {
            "forward": _plain(told.forward), "backward": _plain(told.backward), "tolerance": told.tolerance,
            "conditions": slacks, "difference": told.difference, "rows": table.to_dict("records"), "config": config,
            "fingerprint": fingerprint(config),
        }
    )  # fmt: skip
    if options.out is not None:
        refuse_foreign(options.out, config)
        options.out.mkdir(parents=True, exist_ok=True)
        forward = told.forward
        rows = {"row": np.arange(len(forward.group)), "feature": forward.group, "weight": forward.weights}
        write_csv(options.out / "grouping.csv", pd.DataFrame(rows))
        write_csv(options.out / "features.csv", pd.DataFrame({"feature": range(len(V)), "cosine": forward.cosines}))
        write_json(options.out / "result.json", result)
        text.append(f"Report: {options.out}")
    return result, "\n".join(text)


def _row(name: str, direction: Direction) -> dict[str, Any]:
    chance = direction.chance
    return {
        "direction": name, "eps lower": direction.eps_lower, "eps upper": direction.eps_upper,
        "chance mean": chance.mean, "chance 1 %": chance.quantile, "draws": f"{chance.draws} ({chance.method})",
        "verdict": direction.verdict,
    }  # fmt: skip


def _plain(direction: Direction) -> dict[str, Any]:
    told = asdict(direction)
    return {name: value for name, value in told.items() if name not in ("group", "weights", "cosines")} | {
        "group": direction.group.tolist(), "cosines": np.round(direction.cosines, 6).tolist()
    }  # fmt: skip
