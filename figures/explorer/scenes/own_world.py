"""Page 5: a world and a method of one's own, trained live, judged, and repeatable from the command line."""

import json
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures.cells import run_cell
from figures.explorer.scenes.scene import Scene, panel
from figures.options import Verify
from figures.style import ACCENT, DARK, LIGHT, MIDDLE
from simulator import RequestError

SAMPLES = 5_000
"""Fresh samples on which the codes are judged."""
LARGEST = {"n": 1_024, "d": 256, "neurons": 4_096, "steps": 20_000, "batch": 1_024}
"""What is taken in the browser; the command line has no such limits."""


def options(**dials: Any) -> Verify:
    """The options of `sae-recovery verify` that the dials stand for, checked.

    Raises:
        RequestError: an impossible combination, or one too large for a page.
    """
    for name, value in dials.items():
        if value is None:
            raise RequestError(f"{name} is empty; type a number")
    for name, most in LARGEST.items():
        if dials.get(name, 0) > most:
            raise RequestError(f"{name} = {dials[name]} is too large for a page; take at most {most}")
    # One thread leaves the page responsive, and sums in one order.
    asked = Verify(**dials, samples=SAMPLES, references=False, threads=1)
    asked.refuse_idle()
    asked.cell().config()
    return asked


def command_line(asked: Verify) -> str:
    """The command that repeats the run: every option that differs from its default."""
    words = ["sae-recovery", "verify"]
    for field in fields(asked):
        value = getattr(asked, field.name)
        if value == field.default:
            continue
        option = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, tuple):
            words += [f"--{option}", *map(str, value)]
        else:
            words += [f"--{option}", str(value)]
    return shlex.join(words)


def config_text(asked: Verify) -> str:
    """The configuration as JSON: world, training, seed, all that decides the numbers."""
    return json.dumps(asked.cell().config(), indent=1) + "\n"


def train(asked: Verify, progress: Callable[[int, float], None]) -> dict[str, Any]:
    """Run it as the command line would: the content of result.json, and the tables under "tables"."""
    with tempfile.TemporaryDirectory(prefix="sae-recovery-") as place:
        folder = Path(place) / "run"
        result = run_cell(
            asked.cell(), folder, threads=asked.threads, checkpoint_seconds=1e9, progress=progress, picture=False,
            arrays=False,
        )  # fmt: skip
        tables = {name: pd.read_csv(folder / f"{name}.csv") for name in ("history", "features", "neurons")
                  if (folder / f"{name}.csv").exists()}  # fmt: skip
    return result | {"tables": tables}


def show(asked: Verify, result: dict[str, Any]) -> Scene:
    """The verdict: loss, cosine of every feature against its frequency, what was learned in words."""
    pictures, (left, middle, right) = zip(panel(), panel(), panel(), strict=True)
    history, features = result["tables"]["history"], result["tables"].get("features")
    left.plot(history["step"], history["loss"], color=DARK, lw=1.4)
    left.set_yscale("log")
    left.set_xlabel("step")
    left.set_ylabel("loss")
    if features is None:
        return Scene(pictures[:1], "**Diverged**: the loss stopped being finite. Take a lower learning rate.", {})
    middle.plot(features["frequency"], features["cosine"], ".", color=MIDDLE, ms=5)
    middle.set_xscale("log")
    middle.set_ylim(0, 1.03)
    middle.set_xlabel("how often the feature occurs")
    middle.set_ylabel("cosine with its nearest neuron")
    right.hist(features["cosine"], bins=np.linspace(0, 1, 41), histtype="stepfilled", color=LIGHT)
    right.set_xlabel("cosine with the nearest neuron")
    right.set_ylabel("features")
    middle.axhline(0.9, color=ACCENT, lw=1, ls=":")
    right.axvline(0.9, color=ACCENT, lw=1, ls=":")
    learned = round(result["frr_090"] * result["n"])
    rows = {
        "features recovered at cosine 0.9": ("frr_090", "frr_090_untrained", "untrained"),
        "MCC": ("mcc", "mcc_chance", "chance"),
        "F1 of detection, every feature": ("feature_f1", "feature_f1_chance", "chance"),
    }
    table = "\n".join(
        f"| {name} | {result[key]:.3f} | {result[other]:.3f} ({word}) |" for name, (key, other, word) in rows.items()
    )
    text = (
        f"**{learned} of {result['n']} features recovered** by {result['M']} neurons in {result['steps']} steps, "
        f"{result['seconds']:.1f} s.\n\n| | trained | without learning |\n|---|---|---|\n{table}\n\n"
        f"L0 {result['mean_l0']:.2f} where the truth has {result['true_l0']:.2f}; {result['dead']} dead neurons; "
        f"explained variance {result['explained_variance']:.3f}."
    )
    keys = ("frr_090", "frr_090_untrained", "mcc", "mcc_chance", "feature_f1", "mean_l0")
    return Scene(pictures, text, {key: result[key] for key in keys} | {"learned": learned})
