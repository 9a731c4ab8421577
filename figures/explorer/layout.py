"""What the pages have in common: the way between them, a picture with its text, a reason where there is none."""

import base64
import html
import io
from collections.abc import Callable
from typing import Any

import marimo as mo
from matplotlib.figure import Figure

from figures.explorer.background import Training
from figures.explorer.scenes import Scene
from simulator import RequestError

PAGES = {
    "model": "1 · The statistical model",
    "identifiability": "2 · Identifiability",
    "adaptation": "3 · Bias adaptation",
    "resonance": "4 · Resonance",
    "own-world": "5 · Your own world",
}
"""Address of a page -> its name, in the order of the lessons."""


def heading(page: str, question: str) -> Any:
    """Links to all pages, the name of this one, and the question that it answers."""
    links = []
    for name, title in PAGES.items():
        here = ' aria-current="page"' if name == page else ""
        text = f"<b>{title}</b>" if name == page else title
        links.append(f'<a href="/{name}/"{here} style="margin-right:1.1em; white-space:nowrap">{text}</a>')
    return mo.vstack(
        [mo.Html(f'<nav aria-label="pages">{" ".join(links)}</nav>'), mo.md(f"## {PAGES[page]}\n\n{question}")]
    )


def dials(*elements: Any) -> Any:
    """Dials side by side, wrapping where the window is narrow."""
    return mo.hstack(list(elements), wrap=True, gap=1.5, justify="start")


def shown(make: Callable[[], Scene]) -> Any:
    """The picture and the text of a scene, or one line that says what is impossible and what would be right."""
    try:
        scene = make()
    except RequestError as error:
        return refused(error)
    alternative = html.escape(_plain(scene.text))
    images = "".join(_image(figure, "" if place else alternative) for place, figure in enumerate(scene.figures))
    columns = "repeat(auto-fit, minmax(240px, 1fr))"
    row = f'<div style="display:grid; grid-template-columns:{columns}; gap:8px">{images}</div>'
    return mo.vstack([mo.Html(row), mo.md(scene.text)])


def _image(figure: Figure, alternative: str) -> str:
    """The picture travels in the page: a file of its own may be gone before the browser asks for it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    data = base64.b64encode(picture.getvalue()).decode()
    look = "width:100%; max-width:420px"
    return f'<img src="data:image/png;base64,{data}" alt="{alternative}" style="{look}">'


def refused(reason: object) -> Any:
    """What stands in the place of a picture."""
    return mo.callout(mo.md(f"**Not possible:** {reason}."), kind="warn")


def state(training: Training, running: bool, tick: Any) -> Any:
    """How far a training is, or why it has no result; None where it has one.

    Args:
        training: in the background.
        running: whether it was at work when the page began to be drawn.
        tick: the element that has the page drawn again, shown only while that is needed.
    """
    if running:
        share = training.step / training.steps
        bar = mo.Html(
            f"<label>step {training.step} of {training.steps}, loss {training.loss:.4f} "
            f'<progress max="1" value="{share:.3f}" aria-label="training"></progress></label>'
        )
        return mo.hstack([bar, tick], justify="start")
    if training.error:
        return refused(training.error)
    return mo.md(f"Stopped at step {training.step}.") if training.result is None else None


def _plain(text: str) -> str:
    return " ".join(text.replace("*", "").replace("|", " ").split())
