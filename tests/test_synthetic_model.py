"""Folders of sae_lens.synthetic without sae-lens: what is read, and what is refused. See test_synthetic_peer.py."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from figures.options import Verify
from simulator.coefficients import ClippedNormal
from simulator.copula import Copula, GivenFactors
from simulator.errors import RequestError
from simulator.supports import Bernoulli
from simulator.synthbench import synth_sae_bench
from simulator.synthetic_model import CONFIG, HIERARCHY, WEIGHTS, read_synthetic_model

N_FEATURES, DIMENSION = 4, 3
LEAF = {"children": [], "feature_id": None}


def write(folder, *, config=None, weights=None, hierarchy=None):
    """A saved model; entries of `config` and `weights` replace the usual ones, None takes one out."""
    usual = {
        "num_features": N_FEATURES,
        "hidden_dim": DIMENSION,
        "firing_probability": {"exponent": 1.0, "max_prob": 0.3, "min_prob": 0.01, "generator_name": "zipfian"},
        "hierarchy": None,
        "correlation": None,
        "std_firing_magnitudes": 0.5,
        "mean_firing_magnitudes": {"start": 4.0, "end": 1.0, "generator_name": "linear"},
        "bias": 1.0,
        "seed": 3,
    } | (config or {})
    tensors = {
        "feature_vectors": torch.eye(N_FEATURES)[:, :DIMENSION] + 0.5,
        "bias": torch.tensor([1.0, 0.0, 2.0]),
        "firing_probabilities": torch.tensor([0.5, 0.25, 0.125, 0.125]),
    } | (weights or {})
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(usual))
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / WEIGHTS)
    if hierarchy is not None:
        (folder / HIERARCHY).write_text(json.dumps(hierarchy))
    return folder


def test_worked_example(tmp_path):
    world = read_synthetic_model(write(tmp_path / "a"))
    assert (world.n, world.d, world.hierarchy, world.unit_rows) == (4, 3, None, False)
    assert world.bias == (1, 0, 2) and world.support == Bernoulli.of([0.5, 0.25, 0.125, 0.125])
    assert world.coefficients == ClippedNormal(np.array([4.0, 3, 2, 1]), np.full(4, 0.5))
    assert world.features(8).tolist() == (np.eye(4)[:, :3] + 0.5).tolist()
    F = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.5, 0.0], [-0.5, 0.5]])
    correlated = {"correlation_factor": F, "correlation_diag": 1 - F.square().sum(dim=1)}
    roots = [
        LEAF | {"feature_index": 2, "mutually_exclusive_children": True, "children": [
            LEAF | {"feature_index": 0, "scale_children_by_parent": True, "children": [LEAF | {"feature_index": 3}]},
            LEAF | {"feature_index": 1}]}
    ]  # fmt: skip
    world = read_synthetic_model(write(tmp_path / "b", weights=correlated, hierarchy={"roots": roots}))
    assert world.support == Copula.of([0.5, 0.25, 0.125, 0.125], GivenFactors(F.numpy().astype(float)))
    assert world.hierarchy.parents.tolist() == [2, 2, -1, 0]
    assert world.hierarchy.groups[0] == world.hierarchy.groups[1] >= 0 and (world.hierarchy.groups[2:] == -1).all()
    # A missing flag does not scale, as there.
    assert world.hierarchy.scaled.tolist() == [False, False, False, True]
    assert world.hierarchy.means.tolist() == [4, 3, 2, 1]


def test_laws_of_magnitudes(tmp_path):
    def means(law, **more):
        return read_synthetic_model(write(tmp_path, config={"mean_firing_magnitudes": law, **more})).coefficients.mean

    assert means(2).tolist() == [2] * 4
    assert means({"generator_name": "constant", "value": 3.0}).tolist() == [3] * 4
    assert means({"generator_name": "exponential", "start": 8.0, "end": 1.0}) == pytest.approx([8, 4, 2, 1], rel=1e-6)
    random = {"generator_name": "folded_normal", "mean": 1.0, "std": 2.0, "min_value": 0.1, "max_value": None}
    wanted = (1 + 2 * torch.randn(4, generator=torch.Generator().manual_seed(5))).abs().clamp(min=0.1)
    assert means(random) == pytest.approx(wanted.numpy().astype(float))
    with pytest.raises(RequestError, match="random and not saved, and the configuration has no seed"):
        means(random, seed=None)
    with pytest.raises(RequestError, match="law 'cauchy' of the magnitudes is unknown; known are a number, constant"):
        means({"generator_name": "cauchy"})
    with pytest.raises(RequestError, match="start of mean_firing_magnitudes = nan"):
        means({"generator_name": "linear", "end": 2.0})


def node(feature, *children):
    return {"feature_index": feature, "children": list(children)}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"config": {"num_features": 5}}, r"feature_vectors is of shape \(4, 3\); .* needs shape \(5, 3\)"),
        ({"config": {"hidden_dim": 0}}, "hidden_dim of .* = 0"),
        ({"config": {"correlation": {"rank": 2}}}, "lacks correlation_factor"),
        ({"config": {"hierarchy": {"max_depth": 2}}}, "lacks hierarchy.json, which its configuration asks for"),
        ({"config": {"std_firing_magnitudes": -1.0}}, "std of ClippedNormal: the least value is -1"),
        ({"config": {"std_firing_magnitudes": "1"}}, "std_firing_magnitudes of the configuration = '1'"),
        ({"weights": {"bias": None}}, "bias is missing"),
        ({"weights": {"firing_probabilities": torch.full((4,), 2.0)}}, "must be <= 1, but the largest is 2"),
        ({"weights": {"feature_vectors": torch.zeros(4, 3)}}, "4 zero row"),
        ({"weights": {"correlation_factor": torch.zeros(4, 2)}}, "correlation_diag must be there for all 4"),
        (
            {"weights": {"correlation_factor": torch.zeros(4, 2), "correlation_diag": torch.full((4,), 2.0)}},
            "variances .* other than 1",
        ),
        ({"hierarchy": []}, "holds a list"),
        ({"hierarchy": {}}, "must be lists of nodes"),
        ({"hierarchy": {"roots": [3]}}, "must be lists of nodes"),
        ({"hierarchy": {"roots": [node(4)]}}, "feature_index of .* = 4 is out of range"),
        ({"hierarchy": {"roots": [node(1, node(1))]}}, "names feature 1 twice"),
    ],
)
def test_folders_that_do_not_fit(tmp_path, more, message):
    with pytest.raises(RequestError, match=message) as caught:
        read_synthetic_model(write(tmp_path, **more))
    assert "\n" not in str(caught.value)


def test_damaged_folders(tmp_path):
    with pytest.raises(RequestError, match="is no saved SyntheticModel: it needs the files"):
        read_synthetic_model(tmp_path / "nothing")
    write(tmp_path)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(RequestError, match="no readable JSON file"):
        read_synthetic_model(tmp_path)
    write(tmp_path, config={"num_features": 4})
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:50])
    with pytest.raises(RequestError, match=r"no readable .safetensors file"):
        read_synthetic_model(tmp_path)
    write(tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text())
    del content["hidden_dim"]
    (tmp_path / CONFIG).write_text(json.dumps(content))
    with pytest.raises(RequestError, match="has no entry hidden_dim"):
        read_synthetic_model(tmp_path)


def test_recipes_of_the_command_line(tmp_path):
    assert Verify(recipe="synth-sae-bench", n=128, d=16).world() == synth_sae_bench(128, 16)
    other = Verify(recipe="synth-sae-bench-unscaled", n=128, d=16).world()
    assert other == synth_sae_bench(128, 16, scale_children=False)
    folder = str(write(tmp_path / "model"))
    assert Verify(recipe=folder).world() == read_synthetic_model(folder)
    Verify(recipe=folder).refuse_idle()
    Verify(recipe="synth-sae-bench", n=256).refuse_idle()
    for options, message in (
        ({"recipe": "nowhere"}, "no such folder; named recipes are synth-sae-bench"),
        ({"recipe": str(tmp_path)}, "no saved SyntheticModel"),
    ):
        with pytest.raises(RequestError, match=message):
            Verify(**options).world()
    for options, message in (
        ({"recipe": folder, "n": 99}, "--n belongs to a named recipe"),
        ({"recipe": "synth-sae-bench", "s": (4,)}, "--s belongs to a world of your own"),
        ({"recipe": "synth-sae-bench", "noise": 0.1}, "--noise belongs to a world of your own"),
        ({"recipe": "synth-sae-bench", "activations": tmp_path}, "--recipe belongs to a world"),
    ):
        with pytest.raises(RequestError, match=message):
            Verify(**options).refuse_idle()
