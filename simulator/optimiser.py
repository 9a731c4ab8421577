"""AdamW on the tied network's parameters, fused over the rows of W, with the rows kept at unit norm.

Loshchilov & Hutter 2019 (arXiv:1711.05101), in the form of torch.optim.AdamW. A row of W without
gradient still moves by its decaying first moment, so nothing is skipped that the definition needs; a
row that never had a gradient has zero moments and is left alone.
"""

import torch
from torch import Tensor

from simulator.sae import Parameters, Step
from simulator.team import Team


class AdamW:
    """Updates `Parameters` in place. State: first and second moment of every trained parameter."""

    def __init__(
        self,
        parameters: Parameters,
        trained: tuple[str, ...],
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        unit_rows: bool,
        team: Team | None,
    ) -> None:
        self.trained, self.learning_rate, self.weight_decay = trained, learning_rate, weight_decay
        self.betas, self.eps, self.unit_rows = betas, eps, unit_rows
        # With a team the rows of W are updated in one compiled pass; without, in torch operations.
        self.team = team
        tensors = parameters.tensors()
        self.mean = {name: torch.zeros_like(tensors[name]) for name in trained}
        self.square = {name: torch.zeros_like(tensors[name]) for name in trained}
        # Rows of W that ever had a gradient; derived from the second moment when a run is resumed.
        self.moving = torch.zeros(parameters.W.shape[0], dtype=torch.bool, device=parameters.W.device)

    def state(self) -> dict[str, Tensor]:
        """Moments by name, for a checkpoint."""
        moments = {f"mean.{name}": value for name, value in self.mean.items()}
        return moments | {f"square.{name}": value for name, value in self.square.items()} | {"moving": self.moving}

    def update(self, parameters: Parameters, step: Step, t: int, factor: float = 1.0) -> None:
        """Apply the gradients of step t = 1, 2, ... with learning rate `factor` * learning_rate."""
        tensors, gradients = parameters.tensors(), step.gradients.tensors()
        rate = self.learning_rate * factor
        for name in self.trained:
            if name == "W" and self.team is not None:
                self._rows(self.team, parameters.W, gradients["W"], step.touched, t, rate)
            else:
                self._plain(name, tensors[name], gradients[name], t, rate)
        if self.unit_rows and self.team is None:
            norms = parameters.W.norm(dim=1, keepdim=True)
            parameters.W.div_(norms.clamp(min=1e-30))

    def _plain(self, name: str, value: Tensor, gradient: Tensor, t: int, rate: float) -> None:
        beta1, beta2 = self.betas
        mean, square = self.mean[name], self.square[name]
        mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        value.mul_(1 - rate * self.weight_decay)
        scale = square.sqrt().div_((1 - beta2**t) ** 0.5).add_(self.eps)
        value.addcdiv_(mean, scale, value=-rate / (1 - beta1**t))

    def _rows(self, team: Team, W: Tensor, gradient: Tensor, touched: Tensor | None, t: int, rate: float) -> None:
        from simulator import kernels

        beta1, beta2 = self.betas
        if touched is None:
            touched = torch.ones(W.shape[0], dtype=torch.bool)
        network, slopes = (W.numpy(), self.mean["W"].numpy(), self.square["W"].numpy()), gradient.numpy()
        rows = touched.numpy(), self.moving.numpy()
        keep, fix1, fix2 = 1 - rate * self.weight_decay, 1 - beta1**t, 1 - beta2**t

        def update(part: int) -> None:
            kernels.adamw_rows(
                *team.share(part, W.shape[0]), *network, slopes, *rows, rate, beta1, beta2, self.eps, keep, fix1, fix2,
                self.unit_rows,
            )  # fmt: skip

        team.run(update)
