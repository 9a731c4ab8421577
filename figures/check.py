"""`sae-recovery check V.npy W.npy`: two dictionaries from files, compared."""

from typing import Any

import numpy as np
import pandas as pd

from figures.cells import plain, refuse_foreign, write_csv, write_json
from figures.options import Check
from figures.report import table_text
from simulator import RequestError, stream
from simulator.config import fingerprint, to_config
from simulator.storage import read_matrix, read_vector
from theory.explain import explain
from theory.geometry import check


def check_files(options: Check) -> tuple[dict[str, Any], str]:
    """The facts about W against V as a result and as text; written to --out where given."""
    V, W = read_matrix(options.V), read_matrix(options.W)
    if options.untrained is not None:
        W_start, before = read_matrix(options.untrained), "untrained"
    else:
        W_start, before = stream(options.seed, "untrained").standard_normal(W.shape), "random network"
    frequencies = None if options.frequencies is None else read_vector(options.frequencies)
    if not options.tau:
        raise RequestError("--tau needs at least one cosine threshold, e.g. --tau 0.8 0.9")
    recovery = check(
        V, W, W_start=W_start, thresholds=tuple(sorted({*options.tau, 0.8, 0.9})), frequencies=frequencies,
        seed=options.seed,
    )  # fmt: skip
    result: dict[str, Any] = {
        **recovery.summary(),
        "untrained_is": before,
        "thresholds": {
            f"{tau:g}": {
                "frr": recovery.rate(tau),
                "frr_untrained": recovery.untrained_rate(tau),
                "neuron_precision": recovery.neuron_precision(tau),
            }
            for tau in options.tau
        },
    }
    n, M, d = recovery.n, recovery.M, recovery.d
    rows = [
        {"cosine >": tau, "features recovered": recovery.rate(tau), before: recovery.untrained_rate(tau),
         "neurons on a feature": recovery.neuron_precision(tau)}
        for tau in options.tau
    ]  # fmt: skip
    chance = recovery.mcc_chance
    mcc = result["mcc"]
    shown = " to ".join(f"{value:.4f}" for value in mcc) if isinstance(mcc, list) else f"{mcc:.4f}"
    text = [f"{n} features, {M} neurons, {d} dimensions", "", table_text(pd.DataFrame(rows)), ""]
    if chance is not None:
        text.append(f"MCC {shown}; a random dictionary of this shape: {chance.mean:.4f} (sd {chance.spread:.4f})")
    text.append(
        f"uniqueness {recovery.uniqueness:.4f}; mean largest cosine of a feature {result['mean_feature_cosine']:.4f}"
    )
    if frequencies is not None:
        bins = recovery.by_frequency(max(options.tau))
        table = pd.DataFrame(
            [{"from frequency": b.low, "to": b.high, "features": b.features, "recovered": b.rate} for b in bins]
        )
        result["by_frequency"] = table.to_dict("records")
        text += ["", f"by frequency, cosine > {max(options.tau):g}", table_text(table)]
    if options.explain is not None:
        told = explain(options.explain, V, W, frequencies=frequencies, recovery=recovery).text()
        result["explanation"] = told
        text += ["", told]
    config = {"check": [to_config(np.asarray(matrix)) for matrix in (V, W, W_start)], "tau": to_config(options.tau)}
    result = plain({**result, "rows": rows, "config": config, "fingerprint": fingerprint(config)})
    if options.out is not None:
        refuse_foreign(options.out, config)
        features = {
            "feature": np.arange(n), "cosine": recovery.feature_cosine, "neuron": recovery.feature_neuron,
            "frequency": np.nan if frequencies is None else frequencies,
        }  # fmt: skip
        write_csv(options.out / "features.csv", pd.DataFrame(features))
        write_json(options.out / "result.json", result)
        text.append(f"Report: {options.out}")
    return result, "\n".join(text)
