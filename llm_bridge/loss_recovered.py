"""Loss recovered: how much of a layer's use to the language model survives a reconstruction.

    loss recovered = (CE_ablated - CE_spliced) / (CE_ablated - CE_clean)

with CE the mean cross-entropy, in nats per token, of the model as it is (clean), with the layer's activations replaced
by their reconstruction (spliced), by zero, or by their mean (ablated). 1: nothing is lost; 0: no better than the
ablation. Position 0 is left as it is in all of them, since it is never trained on, and predictions are counted
from position 1 on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm_bridge.autoencoder import Autoencoder
from llm_bridge.hooks import replaced
from llm_bridge.models import LanguageModel
from llm_bridge.texts import pad
from simulator.checks import whole
from simulator.errors import RequestError


@dataclass(frozen=True)
class LossRecovered:
    """Cross-entropies, nats per token, over `tokens` predicted tokens."""

    tokens: int
    clean: float
    spliced: float
    zero: float
    mean: float

    @property
    def against_zero(self) -> float | None:
        """Loss recovered, 1: all; None where the ablation does not hurt."""
        return _recovered(self.clean, self.spliced, self.zero)

    @property
    def against_mean(self) -> float | None:
        """The same against mean ablation."""
        return _recovered(self.clean, self.spliced, self.mean)


def _recovered(clean: float, spliced: float, ablated: float) -> float | None:
    """None where ablation costs less than a thousandth of a nat: the ratio would be noise."""
    return (ablated - spliced) / (ablated - clean) if ablated - clean > 1e-3 else None


def loss_recovered(
    model: LanguageModel,
    layer: str,
    autoencoder: Autoencoder,
    contexts: Sequence[np.ndarray],
    mean: np.ndarray,
    *,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> LossRecovered:
    """Run the model four times over some contexts.

    Args:
        model: the language model.
        layer: dotted module path.
        autoencoder: of this layer.
        contexts: token ids of each context, at least three of them, position 0 included.
        mean: of the layer's activations, (d,), for mean ablation.
        batch: contexts per forward pass.
        progress: called with (contexts done, contexts in all).

    Raises:
        RequestError: no context, or a layer, an autoencoder and a mean that differ in width.
    """
    whole("batch", batch, 1)
    if np.shape(mean) != (autoencoder.d,):
        raise RequestError(f"the mean has shape {np.shape(mean)}; this autoencoder needs ({autoencoder.d},)")
    contexts = [part for part in contexts if len(part) > 2]
    if not contexts:
        raise RequestError("no context of at least three tokens to measure the model's loss on")
    centre = torch.from_numpy(np.asarray(mean, np.float32))

    def splice(found: Tensor) -> Tensor:
        X = found.float().cpu().numpy().reshape(-1, found.shape[-1])
        return torch.from_numpy(autoencoder.reconstruct(X)).reshape(found.shape).to(found.device)

    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "spliced": splice, "zero": torch.zeros_like, "mean": lambda found: centre.to(found.device).expand(found.shape),
    }  # fmt: skip
    sums, tokens = dict.fromkeys(("clean", *ways), 0.0), 0
    for start in range(0, len(contexts), batch):
        part = contexts[start : start + batch]
        ids, mask = pad(part)
        sums["clean"] += _cross_entropy(model, ids, mask)
        for name, way in ways.items():
            with replaced(model.model, layer, _but_first(way)):
                sums[name] += _cross_entropy(model, ids, mask)
        tokens += int(mask[:, 2:].sum())
        if progress is not None:
            progress(start + len(part), len(contexts))
    return LossRecovered(tokens, **{name: total / tokens for name, total in sums.items()})


def _but_first(way: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Leaves position 0 as it is."""
    return lambda found: torch.cat([found[:, :1], way(found[:, 1:]).to(found.dtype)], dim=1)


def _cross_entropy(model: LanguageModel, tokens: np.ndarray, mask: np.ndarray) -> float:
    """Sum of the cross-entropies of tokens 2, 3, ... of every context, nats."""
    place = next(model.model.parameters()).device
    ids = torch.from_numpy(tokens).to(place)
    padded = None if mask.all() else torch.from_numpy(mask).to(place)
    with torch.no_grad():
        logits = model.model(input_ids=ids, attention_mask=padded, use_cache=False).logits
    total = 0.0
    # In float32 one context at a time: vocabularies are large.
    for row, known in zip(range(len(ids)), mask, strict=True):
        last = int(known.sum())
        if last > 2:
            chosen = logits[row, 1 : last - 1].float()
            total += float(torch.nn.functional.cross_entropy(chosen, ids[row, 2:last], reduction="sum"))
    return total
