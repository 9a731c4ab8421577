"""Command bench --size peers: whole training steps of the same method, ours and SAELens', on the benchmark's world."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures.bench import Shape, measure
from simulator import synth_sae_bench
from simulator.training import normalise_rows

N, D, M, BATCH, K, BATCHES = 1_024, 128, 1_024, 1_024, 8, 32
"""Features, dimension, width, samples per step, active neurons (the true L0 is 7.3), and batches that repeat."""


def peers_table(rounds: int, python: Path | None, progress: Callable[[str], None]) -> pd.DataFrame:
    """Milliseconds of a training step, one thread, all in turn, in mid-training on the same batches; ours read them
    from a file, SAELens' have them in memory. Column "SAELens over this": by the method of the row."""
    rows: list[dict[str, Any]] = []
    source = synth_sae_bench(N, D).stream(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "activations.npy"
        np.save(file, np.concatenate([normalise_rows(source.batch(t, BATCH)).numpy() for t in range(BATCHES)]))
        shape = Shape(BATCH, D, M, K / M, threads=1, activations=str(file))
        progress(f"{shape.text()} on synth-sae-bench, {N} x {D}")
        names = [("TopK", "fit-topk", False), ("BatchTopK", "fit-batchtopk", False)]
        if python is not None:
            names += [("SAELens TopK", "saelens-topk", True), ("SAELens BatchTopK", "saelens-batchtopk", True)]
        found = measure(shape, names, rounds, python)
        time = {row["competitor"]: row["ms"] for row in found}
        for row in found:
            peer = f"SAELens {row['competitor'].removeprefix('SAELens ')}"
            rows.append(row | {"SAELens over this": time.get(peer, np.nan) / row["ms"]})
    return pd.DataFrame(rows)
