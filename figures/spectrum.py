"""The frequency spectrum of a run: how often its neurons fire, which of them another seed finds, what it suggests."""

from pathlib import Path

import numpy as np
import pandas as pd

from figures.style import ACCENT, DARK, LIGHT, MIDDLE, new_figure, save_figure
from llm_bridge.evaluate import CONSISTENT, Run
from llm_bridge.proxies import Proxies, trusted

BINS_PER_DECADE = 6


def spectrum(run: Run) -> pd.DataFrame:
    """Neurons per bin of activation frequency on the held-out rows, equal widths in the logarithm.

    Returns:
        Columns low, high (shares of the rows), neurons, consistent (MCS > 0.8 with another seed; NaN without one).
    """
    frequency = run.measures.frequency
    lowest = np.floor(np.log10(1 / run.measures.samples) * BINS_PER_DECADE) / BINS_PER_DECADE
    edges = 10 ** np.linspace(lowest, 0, round(-lowest * BINS_PER_DECADE) + 1)
    alive = frequency > 0
    found = {"low": edges[:-1], "high": edges[1:], "neurons": np.histogram(frequency[alive], edges)[0]}
    firm = np.full(len(edges) - 1, np.nan)
    if run.mcs is not None:
        firm = np.histogram(frequency[alive & (run.mcs > CONSISTENT)], edges)[0]
    return pd.DataFrame(found | {"consistent": firm})


def draw_spectrum(table: pd.DataFrame, estimates: Proxies | None, targets: np.ndarray | None, path: Path) -> None:
    """Bars of all living and of the consistent neurons; targets of the run; the range that the features suggest."""
    figure, axis = new_figure(width=5.2, height=3.2)
    axis.stairs(table["neurons"], [*table["low"], table["high"].iloc[-1]], fill=True, color=LIGHT, label="neurons")
    if table["consistent"].notna().any():
        edges = [*table["low"], table["high"].iloc[-1]]
        axis.stairs(table["consistent"], edges, fill=True, color=DARK, label="of those, MCS > 0.8 with another seed")
    for number, target in enumerate(np.unique(targets) if targets is not None else []):
        told = "targets of this run" if number == 0 else None
        axis.axvline(target, ymax=0.05, color=MIDDLE, lw=2, label=told)
    if estimates is not None:
        values = estimates.values()
        for name, words in (("htf", "HTF"), ("ltf", "LTF")):
            sure = trusted(name) and not estimates.doubt
            told = f"suggested {words} {values[name]:.2g}" + ("" if sure else " (greyed)")
            axis.axvline(values[name], color=ACCENT if sure else "#999999", lw=1, ls="--", label=told)
    axis.set_xscale("log")
    axis.set_xlabel("activation frequency on held-out rows")
    axis.set_ylabel("neurons")
    axis.legend(fontsize=7, frameon=False)
    save_figure(figure, path)
