"""The value that a scene returns."""

from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Scene:
    """What a page shows for one position of its dials.

    Attributes:
        figure: the picture.
        text: what to see in it, Markdown.
        numbers: name -> value, what the text and the tests read.
    """

    figure: Figure
    text: str
    numbers: dict[str, Any]
