"""Layout of a teacher's outputs: names, dtypes, and the dimensions that follow the input length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

from kdplug.contracts.tree import dotted, leaves
from kdplug.engine.cache.coding import Coded, CodedHead
from kdplug.engine.cache.content import length_dims
from kdplug.errors import RunError

SHARD_BYTES = 64 << 20
SHARD_BATCHES = 128
"""A shard is written once it reaches this size or this many batches; an interruption loses at most one shard."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Division of the examples: ``batch`` examples per forward pass, ``batches`` passes per shard."""

    count: int
    batch: int
    batches: int

    def __post_init__(self) -> None:
        if min(self.count, self.batch, self.batches) < 1:
            raise ValueError("counts must be positive")

    @classmethod
    def of(cls, count: int, batch: int, batch_bytes: int) -> Self:
        """Return the plan for ``count`` examples; ``batch_bytes`` is the stored size of one forward pass."""
        return cls(count, batch, max(1, min(SHARD_BATCHES, SHARD_BYTES // max(1, batch_bytes))))

    @property
    def shard_size(self) -> int:
        return self.batch * self.batches

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard_size)

    def groups(self, shard: int) -> list[list[int]]:
        """Return the examples of each batch of a shard."""
        start, end = shard * self.shard_size, min((shard + 1) * self.shard_size, self.count)
        return [list(range(first, min(first + self.batch, end))) for first in range(start, end, self.batch)]


@dataclass(frozen=True, slots=True)
class Length:
    """``dims`` of a batch's tensor are ``less`` shorter than the second dimension of the inputs at ``paths``.

    ``less`` is 0, or 1 if an adaptor shifted the logits to align them with the next token.
    """

    dims: tuple[int, ...]
    paths: tuple[str, ...]
    less: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """Layout of all outputs, derived from one batch: ``counts`` by teacher; dtypes, lengths and coded heads by name.

    ``parameters`` are the names of the teachers' parameters and buffers, which are stored once.
    """

    counts: tuple[Mapping[str, int], ...]
    dtypes: Mapping[str, str]
    lengths: Mapping[str, Length]
    heads: Mapping[str, CodedHead] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.dtypes.values():
            if not isinstance(getattr(torch, name, None), torch.dtype):
                raise ValueError(f"{name!r} is not a dtype")

    @classmethod
    def of(
        cls,
        counts: list[dict[str, int]],
        tensors: Mapping[str, Tensor],
        inputs: Any,
        coded: Mapping[str, Coded] = MappingProxyType({}),
    ) -> Layout:
        """Return the layout of a batch: ``tensors`` by name, such as ``0/logits/0``, and the teacher's ``inputs``."""
        found = padding_signatures(inputs)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        shapes |= {name: one.shape for name, one in coded.items()}
        lengths = {}
        for name, shape in shapes.items():
            dims = length_dims(name.partition("/")[2], shape)
            for less, dim in ((less, dim) for less in (0, 1) for dim in dims):
                size = shape[dim]
                paths = tuple(path for path, signature in found.items() if signature.shape == (shape[0], size + less))
                if paths:
                    lengths[name] = Length(tuple(one for one in dims if shape[one] == size), paths, less)
                    break
        dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
        return cls(tuple(counts), dtypes, lengths, {name: one.head for name, one in coded.items()})

    @property
    def padding_signatures(self) -> tuple[str, ...]:
        """The paths of the inputs that show how each row is padded."""
        return tuple(dict.fromkeys(path for length in self.lengths.values() for path in length.paths))

    def dtype(self, name: str) -> torch.dtype:
        """Return the teacher's dtype, regardless of the storage dtype."""
        found: torch.dtype = getattr(torch, self.dtypes[name])
        return found

    @property
    def names(self) -> set[str]:
        """The names of all stored outputs, encoded or not, and of stored parameters."""
        return {*self.dtypes, *self.heads, *self.parameters}

    def check(self, name: str, shape: torch.Size, inputs: Mapping[str, Tensor]) -> None:
        """Raise ``RunError`` if a tensor's length does not follow the same input as in the first batch."""
        length = self.lengths.get(name)
        for path in () if length is None else length.paths:
            assert length is not None
            size = inputs[path].shape[1] - length.less
            if any(len(shape) <= dim or shape[dim] != size for dim in length.dims):
                raise RunError(
                    f"the teacher's {name.partition('/')[2]} {list(shape)} was as long as its input "
                    f"{path or 'tensor'!r} in the first batch but not in this one ({list(inputs[path].shape)}), so the "
                    "outputs cannot be moved to other batches. Pad all examples to one length, or set is_caching_logits to "
                    "false"
                )


def padding_signatures(inputs: Any) -> dict[str, Tensor]:
    """Return the inputs that show padding, ``[batch, length]`` of integers or booleans, by path."""
    return {
        dotted(path): leaf
        for path, leaf in leaves(inputs)
        if isinstance(leaf, Tensor) and leaf.dim() == 2 and not leaf.is_floating_point() and not leaf.is_complex()
    }
