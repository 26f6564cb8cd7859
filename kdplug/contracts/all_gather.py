"""Gather a tensor from all processes, for losses that compare examples across processes."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdplug.errors import ShapeError

_DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
_MOST_AXES = 8


def all_gather(tensor: Tensor) -> Tensor:
    """Return the tensors of all processes, joined along the first axis in the order of the ranks, with gradient.

    In a single process this is ``tensor`` itself. Only the first axis may differ in size between the processes, as in the
    last batch of a pass.

    The gradient of each process's own part is the sum of the gradients that all processes have for it. Where the losses
    of the processes are averaged, as distillers and DDP do, a loss on the gathered tensors therefore trains what it
    would train in one process on all examples.

    Every process must call it, in the same order, and run the backward pass if one does. A loss on logits is not called in
    a process whose batch has no unmasked item, so call it there in a loss on features. Each call compares the shapes,
    which waits for the device.

    Raises: ``ShapeError``, on every process, for tensors without axes, and if dtypes or other axes differ.
    """
    group = torch.distributed
    if not group.is_available() or not group.is_initialized() or group.get_world_size() == 1:
        return tensor
    found: Tensor = _Gather.apply(tensor, _sizes(tensor))  # type: ignore[no-untyped-call]
    return found


def _sizes(tensor: Tensor) -> list[int]:
    """Return the size of the first axis on each process."""
    kind = _DTYPES.index(tensor.dtype) if tensor.dtype in _DTYPES else -1
    shape = [*tensor.shape[:_MOST_AXES], *[-1] * (_MOST_AXES - tensor.dim())]
    own = torch.tensor([kind, tensor.dim(), *shape], device=tensor.device)
    every = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(every, own)
    rows = torch.stack(every).tolist()
    kinds = {(kind, axes, *shape[1:]) for kind, axes, *shape in rows}
    if len(kinds) > 1 or not 0 < rows[0][1] <= _MOST_AXES or rows[0][0] < 0:
        shown = ", ".join(f"rank {rank}: {_shown(row)}" for rank, row in enumerate(rows))
        raise ShapeError(
            f"kdplug.all_gather needs tensors of one dtype with 1 to {_MOST_AXES} axes, of which only the first may differ "
            f"in size, got {shown}"
        )
    return [row[2] for row in rows]


def _shown(row: list[int]) -> str:
    kind, axes, *shape = row
    return f"{str(_DTYPES[kind]).removeprefix('torch.') if kind >= 0 else 'another dtype'} {shape[:axes]}"


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sizes: list[int]) -> Tensor:
        rank = torch.distributed.get_rank()
        ctx.own = slice(*[0, *accumulate(sizes)][rank : rank + 2])
        sent = tensor.detach().contiguous()
        if sent.dtype is torch.bool:  # not every backend can send it
            sent = sent.view(torch.uint8)
        if len(sent) < max(sizes):
            sent = torch.cat([sent, sent.new_zeros(max(sizes) - len(sent), *sent.shape[1:])])
        parts = [torch.empty_like(sent) for _ in sizes]
        torch.distributed.all_gather(parts, sent)
        found = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
        return found.view(torch.bool) if tensor.dtype is torch.bool else found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total[ctx.own], None
