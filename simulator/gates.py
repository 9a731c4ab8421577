"""The sparse engine's step of the methods whose neurons have gates of their own: JumpReLU and Gated.

Their objectives look at more pairs than the active ones: JumpReLU at those in the window around a threshold, Gated at
every open gate. The scan lists these, and the loops of `simulator.gate_kernels` do the rest.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from simulator import gate_kernels, kernels
from simulator.methods import Gated, JumpReLU
from simulator.sae import Parameters, Step

if TYPE_CHECKING:
    from simulator.sparse import SparseEngine


def own_gates_step(engine: "SparseEngine", parameters: Parameters, X: Tensor) -> Step:
    """One step; the dense engine's where more than a third of a block of neurons is needed."""
    method, bias = engine.method, parameters.b
    centred = X - parameters.b_pre
    if isinstance(method, JumpReLU):
        assert parameters.threshold is not None
        # Everything above the lower end of the window, with a little to spare for the rounding of this line.
        bias = bias - parameters.threshold + method.bandwidth * (0.5 + 1e-5)
    engine.scan(parameters.W, bias, centred, False)
    if any(any(dense) for dense in engine.dense):
        return engine.whole.step(parameters, X)
    kernels.balance(engine.start.numpy(), engine.stop.numpy(), engine.edges.numpy())
    if isinstance(method, JumpReLU):
        return _above(engine, parameters, centred, method)
    assert isinstance(method, Gated)
    return _gated(engine, parameters, centred, method)


def _above(engine: "SparseEngine", parameters: Parameters, centred: Tensor, method: JumpReLU) -> Step:
    N = centred.shape[0]
    assert parameters.threshold is not None
    pairs, edges = engine.pairs(), engine.edges.numpy()
    W, a, b = parameters.W.numpy(), parameters.a.numpy(), parameters.b.numpy()
    network = W, a, b, parameters.threshold.numpy()
    counts, maxima = engine.counts.numpy(), engine.maxima.numpy()

    def decode(part: int) -> None:
        out = engine.partial[part].numpy()
        gate_kernels.decode_above(edges[part], edges[part + 1], *pairs, *network, out, counts, maxima)

    engine.team.run(decode)
    residual = engine.partial.sum(dim=0).sub_(centred)
    real = W.dtype.type
    numbers = real(method.bandwidth / 2), real(method.weight), residual.numpy(), centred.numpy(), real(1 / N)
    grad_threshold = torch.empty_like(parameters.threshold)
    into = engine.grad_W.numpy(), engine.grad_a.numpy(), engine.slope.numpy(), grad_threshold.numpy()
    touched = engine.touched.numpy()

    def backward(part: int) -> None:
        gate_kernels.backward_above(
            edges[part], edges[part + 1], *pairs, *network, *numbers, *into, touched, engine.pull[part].numpy()
        )

    engine.team.run(backward)
    grad_pre = residual.mean(dim=0) - engine.pull.sum(dim=0)
    grad_b = engine.slope if engine.activation == "relu" else engine.no_slope
    found = Parameters(engine.grad_W, engine.grad_a, grad_b, grad_pre, grad_threshold)
    loss = float(residual.square().sum() / (2 * N))
    return Step(loss, found, engine.counts.clone(), engine.maxima.clone(), engine.touched)


def _gated(engine: "SparseEngine", parameters: Parameters, centred: Tensor, method: Gated) -> Step:
    N = centred.shape[0]
    assert parameters.log_gain is not None and parameters.magnitude_bias is not None
    pairs, edges = engine.pairs(), engine.edges.numpy()
    W, a, b = parameters.W.numpy(), parameters.a.numpy(), parameters.b.numpy()
    network = W, a, b, parameters.log_gain.exp().numpy(), parameters.magnitude_bias.numpy()
    charged = torch.empty_like(parameters.a).numpy()
    seen = engine.counts.numpy(), engine.maxima.numpy(), charged
    gates = torch.empty_like(engine.partial)

    def decode(part: int) -> None:
        out = engine.partial[part].numpy(), gates[part].numpy()
        gate_kernels.decode_gated(edges[part], edges[part + 1], *pairs, *network, *out, *seen)

    engine.team.run(decode)
    residual, by_gate = engine.partial.sum(dim=0).sub_(centred), gates.sum(dim=0).sub_(centred)
    norms = parameters.W.norm(dim=1)
    price, radial = method.weight * norms, method.weight / norms.clamp(min=1e-30)
    given = price.numpy(), radial.numpy(), charged, residual.numpy(), by_gate.numpy(), centred.numpy()
    scale = W.dtype.type(1 / N)
    grad_gain, grad_size = torch.empty_like(parameters.a), torch.empty_like(parameters.a)
    into = engine.grad_W.numpy(), engine.grad_a.numpy(), engine.slope.numpy(), grad_gain.numpy(), grad_size.numpy()
    touched = engine.touched.numpy()

    def backward(part: int) -> None:
        gate_kernels.backward_gated(
            edges[part], edges[part + 1], *pairs, *network, *given, scale, *into, touched, engine.pull[part].numpy()
        )

    engine.team.run(backward)
    grad_pre = residual.mean(dim=0) + by_gate.mean(dim=0) - engine.pull.sum(dim=0)
    found = Parameters(engine.grad_W, engine.grad_a, engine.slope, grad_pre, None, grad_gain, grad_size)
    loss = float(residual.square().sum() / (2 * N))
    return Step(loss, found, engine.counts.clone(), engine.maxima.clone(), engine.touched)
