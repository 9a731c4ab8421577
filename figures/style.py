"""One look for every picture: readable in grey, no display needed, axes and seeds on the picture."""

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from simulator.storage import write_atomically

DARK, MIDDLE, LIGHT, ACCENT = "#22313f", "#5b7c99", "#b8c9d9", "#c8553d"
MARKERS = ("o", "s", "^", "D", "v")


def new_figure(rows: int = 1, columns: int = 1, width: float = 4.2, height: float = 3.2, **options: Any) -> Any:
    """(figure, axes) outside pyplot, so that a library call leaves no open figures behind."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, **options)
    for axis in [axes] if rows * columns == 1 else axes.ravel():
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """PNG, written atomically and without a date, so that equal data give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lstrip(".") or "png", dpi=140, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
