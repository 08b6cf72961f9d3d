"""The processes of a run, this one's share of every batch, and how networks live on them."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as sharded
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from .config import ExecutionConfig

_WHOLE = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True)


class Parallel:
    """This process among those of a run (torchrun's), each with an equal share of every batch.

    With one process everything here is a plain call. With several, ``sharding="replicate"`` keeps
    a whole copy of each trained network on every process (DDP) and ``"shard"`` a part of it
    (FSDP2); both average gradients, so the update is that of one process with the whole batch.

    Args:
        config: how the arithmetic is done.
        device: of this process.
    """

    def __init__(
        self, config: ExecutionConfig | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.config = config or ExecutionConfig()
        self.device = torch.device(device)
        several = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if several else 0
        self.count = dist.get_world_size() if several else 1
        self._replicas: dict[nn.Module, nn.Module] = {}

    @classmethod
    def alone(cls, recipe: str) -> Parallel:
        """The only process of a recipe that does not run on several.

        Raises:
            ValueError: it is one of a torch.distributed group.
        """
        parallel = cls()
        if parallel.count > 1:
            raise ValueError(
                f"{recipe}: expected one process, got one of a torch.distributed group of "
                f"{parallel.count}"
            )
        return parallel

    def parts(self, batch: int) -> list[Tensor]:
        """Which images of a batch this process takes, ``int64 [m]`` for each of its passes.

        Raises:
            ValueError: the batch does not divide into equal passes of every process.
        """
        share, left = divmod(batch, self.count)
        size = self.config.micro_batch or share
        if left or not share or share % size:
            raise ValueError(
                f"batch: expected a multiple of {self.count} processes times execution.micro_batch "
                f"= {self.config.micro_batch or 'all'}, got {batch}"
            )
        return list(torch.arange(self.rank * share, (self.rank + 1) * share).split(size))

    def prepare(self, network: nn.Module) -> None:
        """Have ``network`` attend, checkpoint, compile and shard in place, as the configuration
        says.

        Raises:
            ValueError: its backbone has no ``blocks``.
        """
        backbone: Any = getattr(network, "backbone", network)
        blocks = list(getattr(backbone, "blocks", ()))
        if not blocks:
            raise ValueError(
                f"network: expected a backbone with blocks, got {type(backbone).__name__} without"
            )
        if hasattr(backbone, "attention"):  # a family with more than one way
            backbone.attention = self.config.attention
        for block in blocks:
            if self.config.checkpoint_activations:
                block.forward = functools.partial(_checkpointed, block.forward)
            if self.config.compile:
                block.compile()
        head = getattr(network, "head", None)
        if isinstance(head, nn.Module) and self.config.compile:
            head.compile()
        if self.count > 1 and self.config.sharding == "shard":
            mesh = init_device_mesh(self.device.type, (self.count,))
            apart = backbone.apart  # called by themselves, before the blocks run
            parts = [part for part, _ in apart if part not in blocks]
            for part in (*parts, *blocks, head):
                if isinstance(part, nn.Module):
                    fully_shard(part, mesh=mesh)
            # Not kept whole after a forward pass: the averages are taken shard by shard.
            fully_shard(network, mesh=mesh, reshard_after_forward=True)
            for module, method in ((network, "features"), *apart):
                if method != "forward" and hasattr(module, method):
                    register_fsdp_forward_method(module, method)

    def replica(self, network: nn.Module) -> nn.Module:
        """What to call so that the backward pass averages gradients over the processes."""
        if self.count == 1 or isinstance(network, FSDPModule):
            return network
        if network not in self._replicas:
            with warnings.catch_warnings():
                # Newer torch announces another name for it, which is not there yet.
                warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
                self._replicas[network] = DistributedDataParallel(
                    network, broadcast_buffers=False, gradient_as_bucket_view=True
                )
        return self._replicas[network]

    @contextlib.contextmanager
    def gradients(self, network: nn.Module, average: bool) -> Iterator[None]:
        """Backward passes inside average their gradients over the processes only if ``average``."""
        replica = self.replica(network)
        if isinstance(replica, FSDPModule):
            replica.set_requires_gradient_sync(average)
        local = isinstance(replica, DistributedDataParallel) and not average
        with replica.no_sync() if local else contextlib.nullcontext():  # type: ignore[operator]
            yield

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Networks called inside compute in the configuration's precision."""
        low = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=low)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of ``values`` over the processes."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.count
        return values

    def any(self, *flags: bool) -> list[bool]:
        """Each flag, whether any process has it."""
        if self.count == 1:
            return list(flags)
        counts = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(counts)
        return [count > 0 for count in counts.tolist()]

    def first(self, value: Any) -> Any:
        """What the first process gives, on every process; anything that can be pickled."""
        box = [value]
        if self.count > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def model_state(self, module: nn.Module) -> dict[str, Any]:
        """The whole state of a module; every process must call it."""
        if self.count == 1:
            return module.state_dict()
        return sharded.get_model_state_dict(module, options=_WHOLE)

    def load_model(self, module: nn.Module, state: dict[str, Any]) -> None:
        """Take what :meth:`model_state` gave."""
        if self.count == 1:
            module.load_state_dict(state)
        else:
            sharded.set_model_state_dict(module, state, options=_WHOLE)

    def optimizer_state(
        self, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        """The whole state of an optimiser over ``module``, under the parameters' names."""
        if not optimizer.state:  # has made no step; the library would make one to have a state
            return {}
        return sharded.get_optimizer_state_dict(module, optimizer, options=_WHOLE)

    def load_optimizer(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Take what :meth:`optimizer_state` gave, on any number of processes."""
        if state:
            sharded.set_optimizer_state_dict(module, optimizer, state, options=_WHOLE)


def _checkpointed(forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """``forward`` without keeping its activations; the backward pass recomputes them."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    result: Tensor = checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return result
