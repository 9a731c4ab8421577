import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from simulator.coefficients import HalfNormal
from simulator.config import fingerprint, to_config
from simulator.dictionaries import Coherent, GivenDictionary
from simulator.errors import RequestError
from simulator.frequencies import Given, Zipf
from simulator.supports import Bernoulli, Exactly, Mixture
from simulator.world import World


@dataclasses.dataclass(frozen=True)
class Run:
    steps: int
    device: str = dataclasses.field(default="cpu", metadata={"config": False})


def test_worked_example():
    assert to_config(World(8, 4, Exactly(2), noise=0.5)) == {
        "type": "World",
        "n": 8,
        "d": 4,
        "support": {"type": "Exactly", "s": 2, "frequencies": {"type": "Constant"}},
        "dictionary": {"type": "Gaussian"},
        "coefficients": {"type": "ConstantCoefficients", "value": 1.0},
        "unit_rows": True,
        "noise": 0.5,
    }


def test_the_json_of_a_configuration_reads_back():
    world = World(4, 4, Bernoulli(2, Zipf(0.5)), Coherent(0.1), HalfNormal(2.0))
    assert json.loads(json.dumps(to_config(world))) == to_config(world)


def test_equal_numbers_have_equal_fingerprints():
    assert fingerprint(Zipf(1)) == fingerprint(Zipf(1.0))
    assert fingerprint(Bernoulli(34)) == fingerprint(Bernoulli(34.0))
    assert fingerprint(Mixture((3, 20))) == fingerprint(Mixture((3, 20), (2.0, 2.0)))
    assert fingerprint(Given((1.0, 2.0))) == fingerprint(Given(np.array([1, 2])))
    assert fingerprint(np.float64(0.5)) == fingerprint(0.5)
    assert fingerprint((1, 2)) == fingerprint([1, 2])
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_different_worlds_have_different_fingerprints():
    worlds = [
        World(4, 3, Exactly(2)),
        World(4, 3, Exactly(3)),
        World(4, 3, Bernoulli(2)),
        World(4, 3, Exactly(2), unit_rows=False),
        World(4, 3, Exactly(2), GivenDictionary(np.ones((4, 3)))),
        World(4, 3, Exactly(2), GivenDictionary(2 * np.ones((4, 3)))),
    ]
    assert len({fingerprint(world) for world in worlds}) == len(worlds)


def test_arrays_are_hashed_with_shape_and_dtype():
    array = np.arange(6.0)
    config = to_config(array)
    assert config["array"] == [6] and config["dtype"] == "<f8" and len(config["sha256"]) == 64
    assert to_config(array.astype(">f8")) == config
    assert to_config(np.arange(12.0)[::2] / 2) == config
    assert len({fingerprint(a) for a in (array, array.reshape(2, 3), array.astype(np.float32))}) == 3


def test_unmarked_fields_only():
    assert to_config(Run(3, "cuda")) == {"type": "Run", "steps": 3}


def test_the_fingerprint_is_the_same_in_another_process():
    code = (
        "from simulator.config import fingerprint; from simulator.supports import Mixture; "
        "print(fingerprint(Mixture((3, 20))))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint(Mixture((3, 20)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_configuration_is_finite(value):
    with pytest.raises(RequestError, match="must be finite"):
        fingerprint({"a": value})


@pytest.mark.parametrize("value", [object(), {1: 2}, np.array(["a"]), Run, 1j, b"a"])
def test_other_values_are_refused(value):
    with pytest.raises(TypeError):
        to_config(value)


def test_the_safetensors_library_reads_what_we_stream(tmp_path):
    from safetensors.torch import load_file

    from simulator.storage import load_tensors, save_tensors

    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
    tensors = {str(kind): torch.arange(7).to(kind).reshape(7, 1) for kind in kinds}
    tensors |= {"flags": torch.tensor([True, False, True]), "none": torch.zeros(0, 3), "one": torch.tensor(2.5)}
    tensors["transposed"] = torch.arange(6.0).reshape(2, 3).T
    save_tensors(tmp_path / "file", tensors, {"step": 3})
    ours, header = load_tensors(tmp_path / "file")
    assert header == {"step": 3}
    for read in (ours, load_file(tmp_path / "file")):
        assert set(read) == set(tensors)
        for name, value in tensors.items():
            assert read[name].dtype == value.dtype
            assert torch.equal(read[name], value)
    with pytest.raises(RequestError, match="complex"):
        save_tensors(tmp_path / "other", {"z": torch.zeros(2, dtype=torch.complex64)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
