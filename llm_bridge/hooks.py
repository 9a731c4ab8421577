"""Plain forward hooks on dotted module paths: read activations with early exit, or put others in their place."""

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simulator.errors import RequestError


class _Captured(Exception):
    """All hooked layers have been seen: the way out of a forward pass, no error."""


def find_layer(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, for example model.layers.9.mlp.

    Raises:
        RequestError: there is none; the nearest names are listed.
    """
    names = [name for name, _ in model.named_modules() if name]
    if path in names:
        return model.get_submodule(path)
    near = difflib.get_close_matches(path, names, 4, 0.5)
    listed = ", ".join(near or names[:4])
    raise RequestError(f"the model has no module {path!r}; near names: {listed}")


def _output(value: Any, path: str, shape: torch.Size | None = None) -> Tensor:
    """The activations in a module's output, (contexts, tokens, d); `shape` is what contexts and tokens must be."""
    found = value[0] if isinstance(value, tuple | list) and value else value
    if not isinstance(found, Tensor) or found.ndim != 3 or (shape is not None and found.shape[:2] != shape):
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise RequestError(f"module {path} puts out {what}; a layer with (contexts, tokens, d) is needed")
    return found


def layer_outputs(model: nn.Module, paths: Sequence[str], tokens: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Outputs of the layers, each (contexts, tokens, d); the forward pass ends after the last of them.

    Args:
        model: a transformers causal model.
        paths: dotted module paths.
        tokens: token ids, (contexts, tokens).
        mask: attention mask of the same shape; None where nothing is padded.

    Raises:
        RequestError: an unknown layer, one that does not run, or one whose output has another shape.
    """
    seen: dict[str, Tensor] = {}
    wanted = {path: find_layer(model, path) for path in paths}

    def hook(path: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            found = _output(output, path, tokens.shape).detach()
            if path not in seen:
                # A copy where the pass goes on: what comes later may change the tensor in place.
                seen[path] = found if len(seen) + 1 == len(wanted) else found.clone()
            if len(seen) == len(wanted):
                raise _Captured

        return keep

    handles = [module.register_forward_hook(hook(path)) for path, module in wanted.items()]
    place = next(model.parameters()).device
    tokens, mask = tokens.to(place), None if mask is None else mask.to(place)
    try:
        with torch.no_grad():
            model(input_ids=tokens, attention_mask=mask, use_cache=False)
    except _Captured:
        return [seen[path] for path in paths]
    finally:
        for handle in handles:
            handle.remove()
    idle = [path for path in wanted if path not in seen]
    raise RequestError(f"the forward pass never runs {', '.join(idle)}; take a layer on its way")


@contextlib.contextmanager
def replaced(model: nn.Module, path: str, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, the layer puts out `replace(its output)`; both (contexts, tokens, d)."""

    def put(module: nn.Module, inputs: Any, output: Any) -> Any:
        found = _output(output, path)
        changed = replace(found).to(found.dtype)
        if isinstance(output, list):
            return [changed, *output[1:]]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = find_layer(model, path).register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
