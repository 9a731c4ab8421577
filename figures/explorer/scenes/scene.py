"""The value that a scene returns."""

from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Scene:
    """What a page shows for one position of its dials.

    Attributes:
        figures: the pictures, side by side where the window has room for them.
        text: what to see in it, Markdown.
        numbers: name -> value, what the text and the tests read.
    """

    figures: tuple[Figure, ...]
    text: str
    numbers: dict[str, Any]


def panel(projection: str | None = None) -> tuple[Figure, Any]:
    """One picture of a scene with its axes; outside pyplot, so nothing stays open."""
    figure = Figure(figsize=(4.2, 3.8), layout="constrained")
    axis = figure.add_subplot(projection=projection)
    if projection is None:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axis
