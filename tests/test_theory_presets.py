"""Presets of the theory: robustness, resonance; tiny runs, and the score on a table made by hand."""

import numpy as np
import pandas as pd
import pytest

from figures.cli import PRESETS, load_preset
from figures.experiments import run_experiment
from figures.resonance import PAPER, edge, edges, paper_rectangle, paper_settings, score
from figures.resonance_cells import RECTANGLE, held_out

NAMES = [name for name in PRESETS if name.startswith(("robustness", "resonance"))]


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_run_makes_a_table_and_a_picture(name, tmp_path):
    experiment = load_preset(name)
    table, _ = run_experiment(experiment, tmp_path, seeds=[0], size="tiny", jobs=1)
    short = experiment.summarise(table)
    assert len(short)
    experiment.draw(table, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_the_scored_settings_were_never_used_in_development():
    scored = held_out()
    assert len(scored) >= 40
    developed = {(n, s) for n in (256, 512) for s in (3, 4)}
    for _, setting in scored:
        assert (setting.n, setting.s) not in developed
        assert setting.buffer not in (512, 5_120, 51_200)


def test_the_rectangle_is_the_one_fitted_to_the_map():
    found = paper_rectangle()
    assert found.low == pytest.approx(RECTANGLE.low, rel=1e-3)
    assert found.high == pytest.approx(RECTANGLE.high, rel=1e-3)
    assert found.small == pytest.approx(RECTANGLE.small, rel=1e-3)
    error = np.abs(RECTANGLE.predict(paper_settings()) - PAPER.ravel()).mean()
    assert error < 0.12


def test_edges_are_interpolated_in_log():
    x, y = np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.0, 1.0, 1.0, 0.0])
    assert edge(x, y, True) == pytest.approx(np.sqrt(2))
    assert edge(x, y, False) == pytest.approx(np.sqrt(32))
    assert np.isnan(edge(x, np.ones(4), True))


def test_score_of_a_perfect_predictor():
    relative = np.array([0.5, 1, 2, 4, 8])
    measured = np.array([0.0, 0.9, 1.0, 0.6, 0.1])
    table = pd.DataFrame(
        {
            "sweep": "p 1", "p / f": relative, "d / s": 20.0, "predicted 0.9": measured, "predicted 0.8": measured,
            "rectangle": 1.0, "theorem band": 0.0, "limit band": 1.0, "frr_080": measured, "frr_090": measured,
            "seed": 0,
        }
    )  # fmt: skip
    told = score(table).set_index("predictor")
    assert told.loc["predictor", "MAE 0.9"] == 0
    assert told.loc["predictor", "upper edge"] == "0.00 (0 of 1)"
    assert told.loc["rectangle", "MAE 0.9"] == pytest.approx(np.mean(1 - measured))
    assert told.loc["rectangle", "upper edge"] == "- (1 of 1)"
    assert told.loc["constant", "MAE 0.9"] == pytest.approx(np.abs(measured - measured.mean()).mean())
    assert told.loc["predictor", "Brier"] == pytest.approx((measured * (1 - measured)).mean())
    assert set(edges(table, "frr_090")) == {("p 1", "lower"), ("p 1", "upper")}
