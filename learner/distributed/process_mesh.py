"""The mesh of learner processes: how they divide a step's work, and how they sum gradients.

Processes form a grid of ``data x model`` (a torch device mesh). The processes of one row hold one copy of the base together, split by
``learner/distributed/base_sharding.py``, and see the same tokens; rows work on different rollouts. Every process has the whole adapter and its
optimizer. After a backward pass the adapter's gradients are summed over all processes, so that all take the same step as a single process would, and
nothing is lost with a process that dies.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh

Item = TypeVar("Item")


@dataclass(frozen=True)
class Mesh:
    """A process's place on the grid. The default is a single process, for which every method does nothing."""

    data_rank: int = 0
    data_size: int = 1
    model_rank: int = 0
    model_size: int = 1
    data_group: Any = None
    model_group: Any = None

    @property
    def leads(self) -> bool:
        """True on the one process that writes files and does the work that cannot be divided."""
        return self.data_rank == self.model_rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This row's part of a step's work: consecutive, and as equal as can be."""
        return items[len(items) * self.data_rank // self.data_size : len(items) * (self.data_rank + 1) // self.data_size]

    def part(self, size: int) -> slice:
        """This process's part of a dimension of the base, which its row's size divides."""
        if size % self.model_size:
            raise ValueError(f"{size} cannot be split over {self.model_size} processes")
        width = size // self.model_size
        return slice(width * self.model_rank, width * (self.model_rank + 1))

    def gathered(self, values: Sequence[Any]) -> list[Any]:
        """The rows' JSON values, row after row, the same on every process."""
        if self.data_size == 1:
            return list(values)
        mine = torch.frombuffer(bytearray(json.dumps(list(values)).encode()), dtype=torch.uint8)
        length = torch.tensor([len(mine)])
        lengths = [torch.zeros_like(length) for _ in range(self.data_size)]
        distributed.all_gather(lengths, length, group=self.data_group)
        longest = max(int(n) for n in lengths)
        padded = torch.cat([mine, mine.new_zeros(longest - len(mine))])
        everyones = [torch.zeros_like(padded) for _ in range(self.data_size)]
        distributed.all_gather(everyones, padded, group=self.data_group)
        return [value for text, n in zip(everyones, lengths, strict=True) for value in json.loads(bytes(text[: int(n)].tolist()))]

    def add_gradients(self, parameters: Mapping[str, Tensor], whole: frozenset[str]) -> None:
        """Sum the adapter's gradients over all processes, in place.

        Gradients named in ``whole`` belong to parts of the base that are not split: each process of a row has computed them completely.
        """
        if self.data_size == self.model_size == 1:
            return
        found = [torch.zeros_like(p) if p.grad is None else p.grad / (self.model_size if name in whole else 1) for name, p in parameters.items()]
        flat = torch.cat([gradient.flatten() for gradient in found])
        distributed.all_reduce(flat)
        start = 0
        for weight in parameters.values():
            weight.grad = flat[start : start + weight.numel()].view_as(weight)
            start += weight.numel()

    def into_split(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Inputs of a split part of the base, unchanged; their gradients are summed over processes."""
        return tensors if self.model_size == 1 else _IntoSplit.apply(self.model_group, *tensors)

    def out_of_split(self, partial: Tensor) -> Tensor:
        """Sum of the outputs that each process computed with its part of the base."""
        return partial if self.model_size == 1 else _OutOfSplit.apply(self.model_group, partial)


ALONE = Mesh()


def join(meeting_place: Path, rank: int, size: int, model_size: int, device: torch.device, timeout_s: float) -> Mesh:
    """Meet the other processes by a file that all of them see, and take a place. A call that waits longer than ``timeout_s`` for a process
    that is gone fails."""
    if size == 1:
        return ALONE
    store = FileStore(str(meeting_place), size)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group("cpu:gloo,cuda:nccl" if backend == "nccl" else backend, store=store, rank=rank, world_size=size,
                                   timeout=timedelta(seconds=timeout_s))  # fmt: skip
    grid = init_device_mesh(device.type, (size // model_size, model_size), mesh_dim_names=("data", "model"))
    row, column = grid.get_coordinate() or (0, 0)
    return Mesh(row, size // model_size, column, model_size, grid.get_group("data"), grid.get_group("model"))


class _IntoSplit(torch.autograd.Function):
    """One function for all inputs: every process sums their gradients in the same order, also where a split part was not used."""

    @staticmethod
    def forward(ctx: Any, group: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sums = [gradient.contiguous().clone() for gradient in gradients]
        for total in sums:
            distributed.all_reduce(total, group=ctx.group)
        return (None, *sums)


class _OutOfSplit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Any, partial: Tensor) -> Tensor:
        total = partial.contiguous().clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient
