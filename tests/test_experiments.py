"""Tables over seeds, on numbers small enough to check by hand."""

import math

import pandas as pd
import pytest

from figures.experiments import mean_and_interval
from figures.report import table_text


def test_mean_and_t_interval():
    # 1, 2, 3: mean 2, standard error 1 / sqrt(3), t quantile 0.975 with 2 degrees of freedom 4.30265.
    table = pd.DataFrame({"row": ["a"] * 3 + ["b"], "x": [1.0, 2.0, 3.0, 5.0]})
    short = mean_and_interval(table, ["row"], {"x": "X"})
    assert short["X"].tolist() == [2.0, 5.0]
    assert short["X ±"][0] == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert math.isnan(short["X ±"][1])  # one seed has no interval
    assert short["seeds"].tolist() == [3, 1]


def test_table_text():
    table = pd.DataFrame({"row": ["a", "bb"], "rate": [1.0, 0.5], "dead": [3, None], "mcc": [[0.25, 0.5], None]})
    assert table_text(table).splitlines()[2:] == ["a    1.000     3  0.250..0.500", "bb   0.500     -             -"]
