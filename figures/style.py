"""One look for every picture: readable in grey, no display needed, axes and seeds on the picture."""

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib.figure import Figure
from PIL import Image

from simulator.storage import write_atomically

DARK, MIDDLE, LIGHT, ACCENT = "#22313f", "#5b7c99", "#b8c9d9", "#c8553d"
MARKERS = ("o", "s", "^", "D", "v")


def new_figure(rows: int = 1, columns: int = 1, width: float = 4.2, height: float = 3.2, **options: Any) -> Any:
    """(figure, axes) outside pyplot, so that a library call leaves no open figures behind."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, **options)
    for axis in np.ravel(axes):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    return figure, axes


def line_with_interval(axis: Any, part: Any, x: str, y: str, **look: Any) -> None:
    """Means joined by a line, with the 95 % intervals in the columns named `y ±` (and `x ±`, if there)."""
    part = part.sort_values(x, kind="stable")
    look = {"ms": 4.5, "lw": 1.1, "capsize": 2, "elinewidth": 0.8, **look}
    across = part[f"{x} ±"].fillna(0) if f"{x} ±" in part else None
    axis.errorbar(part[x], part[y], yerr=part[f"{y} ±"].fillna(0), xerr=across, **look)


def seeds_text(table: Any) -> str:
    """How many seeds stand behind a picture: `3 seeds`."""
    count = table["seed"].nunique()
    return f"{count} seed" if count == 1 else f"{count} seeds, 95 % intervals"


def save_figure(figure: Figure, path: Path) -> None:
    """PNG or PDF, written atomically and without a date, so that equal data give equal bytes."""
    buffer = io.BytesIO()
    kind = path.suffix.lstrip(".") or "png"
    nameless = {"Creator": None, "Producer": None, "CreationDate": None} if kind == "pdf" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=140, metadata=nameless)
    if kind == "png":
        # A palette of 256 colours takes a third of the space and looks the same; pictures go into documents.
        picture = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        picture.save(buffer, format="png", optimize=True)
    write_atomically(path, buffer.getvalue())
