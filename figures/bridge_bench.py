"""Command bench --size bridge: training on real activations and capture, each beside what it is held against."""

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from figures.bench import Shape, measure
from llm_bridge.capture import capture
from llm_bridge.hooks import layer_outputs
from llm_bridge.models import load_model
from llm_bridge.sources import StoredSource, open_rows
from llm_bridge.texts import STANDARD_LIBRARY, Text
from simulator.training import normalise_rows

M, BATCH, KS, CAPTURE_BATCHES = 8_192, 1_024, (32, 64), 16


def activations_table(
    store: Path, layer: str | None, rounds: int, python: Path | None, progress: Callable[[str], None]
) -> pd.DataFrame:
    """Training steps on a store's activations at M = 8,192, ours beside SAELens' TopK, both in mid-training."""
    source = StoredSource(open_rows(store, layer), 0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "activations.npy"
        X = torch.cat([source.batch(t, BATCH) for t in range(min(64, max(1, source.N // BATCH)))])
        np.save(file, normalise_rows(X).numpy())
        for k in KS:
            shape = Shape(BATCH, source.d, M, k / M, threads=1, activations=str(file))
            progress(f"{shape.text()} on {store}")
            names = [("GBA 0.1..0.001", "fit-gba", False), (f"TopK {k}", "fit-topk", False)]
            names += [("SAELens TopK", "saelens-topk", True)] if python is not None else []
            found = measure(shape, names, rounds, python)
            base = next((row["ms"] for row in found if row["competitor"] == "SAELens TopK"), np.nan)
            rows += [row | {"SAELens over this": base / row["ms"]} for row in found]
    return pd.DataFrame(rows)


def capture_table(rounds: int, progress: Callable[[str], None]) -> pd.DataFrame:
    """Tokens per second of a capture beside those of a bare forward pass to the same layer, in turn, same batches."""
    layer, text, size = "model.layers.9.mlp", Text((STANDARD_LIBRARY,)), 16
    rows: list[dict[str, Any]] = []
    for dtype in ("bf16", "fp32"):
        model = load_model("packaged", dtype)
        whole = (part for part in text.batches(model.tokenizer, size) if all(len(c) == text.context for c in part))
        chosen = [
            torch.from_numpy(np.stack(part).astype(np.int64)) for part in itertools.islice(whole, CAPTURE_BATCHES)
        ]
        wanted = len(chosen) * size * (text.context - 1)
        progress(f"capture, {dtype}, {wanted} tokens a round")
        speeds: list[tuple[float, float]] = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            for tokens in chosen:
                layer_outputs(model.model, [layer], tokens, None)
            bare = sum(tokens.numel() for tokens in chosen) / (time.perf_counter() - began)
            with tempfile.TemporaryDirectory() as folder:
                done = capture(model, [layer], text, wanted, Path(folder) / "store", dtype=dtype)
            speeds.append((bare, done.new * text.context / (text.context - 1) / done.seconds))
        kept = np.array(speeds[1:])  # the first round warms up
        rows.append(
            {"dtype": dtype, "rounds": rounds, "forward pass, tokens/s": np.median(kept[:, 0]),
             "capture, tokens/s": np.median(kept[:, 1]), "capture over forward": np.median(kept[:, 1] / kept[:, 0])}
        )  # fmt: skip
    return pd.DataFrame(rows)
