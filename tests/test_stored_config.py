"""A stored configuration gives the same cell again, or one line that says why not."""

import itertools
import json

import pytest

from figures.cells import Cell
from figures.explorer.scenes import own_world
from figures.options import Verify
from figures.stored_config import stored_cell
from simulator import BA, Bernoulli, Exactly, Given, RequestError, Training, World, synth_sae_bench

METHODS = ("ba", "gba", "topk", "batch-topk", "matryoshka", "jumprelu", "gated", "l1")
LAWS = itertools.product(
    ("exactly", "bernoulli", "paired"), ("gaussian", "sphere", "coherent", "orthonormal"),
    ("constant", "uniform", "exponential", "half-normal"),
)  # fmt: skip


def written(tmp_path, config):
    file = tmp_path / "config.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return file


@pytest.mark.parametrize("method", METHODS)
def test_every_world_and_method_of_the_command_line_comes_back(tmp_path, method):
    for k, (support, dictionary, coefficients) in enumerate(LAWS):
        asked = Verify(
            n=32, d=40, support=support, dictionary=dictionary, coefficients=coefficients, method=method, neurons=64,
            seed=k, noise=0.1 * (k % 2), unit_rows=k % 3 > 0, targets="pilot" if method == "gba" and k % 2 else "given",
            rule="two-sided" if method == "ba" else "one-sided",
        )  # fmt: skip
        assert stored_cell(written(tmp_path, asked.cell().config())) == asked.cell()
    mixture = Verify(s=(2, 3, 4), method=method).cell()
    assert stored_cell(written(tmp_path, {"config": mixture.config(), "other": 1})) == mixture


def test_what_the_explorer_gives_is_read(tmp_path):
    asked = own_world.options(n=32, d=16, s=(2,), method="ba", p=0.08, neurons=64, steps=60, seed=4)
    cell = stored_cell(written(tmp_path, own_world.config_text(asked)))
    assert cell == asked.cell() and cell.seed == 4


GOOD = Cell(World(8, 4, Exactly(2)), Training(BA(0.1), 16, 10), 3).config()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "cannot be read as JSON"),
        ([1], "holds no configuration"),
        ({"data": {}, "seed": 1}, "holds no configuration"),
        (GOOD | {"data": {"type": "ActivationMatrix"}}, "--activations"),
        (GOOD | {"numbers": 1}, "would give other numbers here: numbers: 1 there"),
        (GOOD | {"watch": {"type": "Watch"}}, "other numbers here: watch"),
        (GOOD | {"training": {"type": "os"}}, "'os'"),
        (GOOD | {"training": {"type": "fit"}}, "'fit'"),
        (GOOD | {"data": GOOD["data"] | {"m": 3}}, "no configuration of this version"),
        (GOOD | {"data": GOOD["data"] | {"n": "many"}}, "n"),
        (GOOD | {"seed": -1}, "seed"),
        (Cell(synth_sae_bench(128, 32), Training(BA(0.1), 16, 10), 3).config(), "array"),
        (
            Cell(World(2, 4, Bernoulli(1, Given([0.5, 0.5]))), Training(BA(0.1), 16, 10), 3).config(),
            "array",
        ),
    ],
)
def test_what_cannot_be_repeated_says_why(tmp_path, config, words):
    with pytest.raises(RequestError, match=words):
        stored_cell(written(tmp_path, config))
    with pytest.raises(RequestError, match="nothing"):
        stored_cell(tmp_path / "nothing.json")


@pytest.mark.parametrize("option", [{"n": 7}, {"method": "ba"}, {"seed": 1}, {"samples": 11}, {"recipe": "x"}])
def test_options_beside_a_configuration_are_refused(tmp_path, option):
    with pytest.raises(RequestError, match="not to --config"):
        Verify(config=tmp_path / "x", **option).refuse_idle()
    Verify(config=tmp_path / "x", threads=2, json=True, explain=3).refuse_idle()
