"""A network in training: its calls, its optimiser, and one update from the parts of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .parallel import Parallel
from .schedule import adam, set_rate

Terms = dict[str, Tensor]
PartLoss = Callable[[Tensor], tuple[Tensor, Terms]]


class Trained:
    """A network with its Adam, on the processes of a run.

    Called like the network, in the run's precision.

    Args:
        network: prepared by ``parallel``. parallel: the processes.
        betas, weight_decay: of AdamW.
    """

    def __init__(
        self,
        network: nn.Module,
        parallel: Parallel,
        betas: tuple[float, float],
        weight_decay: float = 0.0,
    ) -> None:
        self.network, self.parallel = network, parallel
        self.optimizer = adam(network, 1.0, betas, weight_decay)
        self.rate: float | None = None  # of the last update, until Stage.take_rates

    def __call__(self, *arguments: Any) -> Tensor:
        with self.parallel.autocast():
            result: Tensor = self.parallel.replica(self.network)(*arguments)
        return result

    def update(self, name: str, rate: float, batch: int, loss: PartLoss) -> Terms:
        """One step of Adam along the gradient of the mean loss over a batch.

        Args:
            name: what the gradient norm is reported under. rate: the learning rate.
            batch: images of all processes together.
            loss: takes a part of the batch, int64 image numbers ``[m]``; returns its mean loss and
                what to report.

        Returns:
            The mean of what the parts report, on this process, and the gradient's norm.
        """
        set_rate(self.optimizer, rate)
        self.rate = rate
        self.optimizer.zero_grad()
        parts = self.parallel.parts(batch)
        terms: Terms = {}
        for part in parts:
            with self.parallel.gradients(self.network, part is parts[-1]):
                value, reported = loss(part)
                (value / len(parts)).backward()
            for key, term in reported.items():
                term = term.detach() / len(parts)
                terms[key] = terms[key] + term if key in terms else term
        terms[f"{name}_norm"] = gradient_norm(self.network)
        self.optimizer.step()
        return terms

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state under the parameters' names."""
        return self.parallel.optimizer_state(self.network, self.optimizer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        self.parallel.load_optimizer(self.network, self.optimizer, state)


def gradient_norm(network: nn.Module) -> Tensor:
    """The Euclidean norm of all gradients, over the shards of every process."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
