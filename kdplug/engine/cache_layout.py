"""How a teacher's outputs lie in memory: which names, in which precision, and which dimensions follow the inputs' length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kdplug.engine.cache_content import length_dims
from kdplug.errors import RunError


@dataclass(frozen=True, slots=True)
class Length:
    """``dims`` of a batch's tensor are as long as the second dimension of the inputs at ``paths``, the guides."""

    dims: tuple[int, ...]
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """What one batch of outputs told about all: ``counts`` by teacher, dtypes and lengths by name."""

    counts: tuple[Mapping[str, int], ...]
    dtypes: Mapping[str, str]
    lengths: Mapping[str, Length]

    @classmethod
    def of(cls, counts: list[dict[str, int]], tensors: Mapping[str, Tensor], inputs: Any) -> Layout:
        """``tensors`` are those of one batch by name, ``0/logits/0``; ``inputs`` is what the teacher was given."""
        found = guides(inputs)
        lengths = {}
        for name, tensor in tensors.items():
            for dim in length_dims(name.partition("/")[2], tensor.shape):
                size = tensor.shape[dim]
                paths = tuple(path for path, guide in found.items() if guide.shape == (len(tensor), size))
                if paths:
                    dims = length_dims(name.partition("/")[2], tensor.shape)
                    lengths[name] = Length(tuple(one for one in dims if tensor.shape[one] == size), paths)
                    break
        dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
        return cls(tuple(counts), dtypes, lengths)

    @property
    def guides(self) -> tuple[str, ...]:
        """The paths of the inputs that say how the tokens of an example lie in its row."""
        return tuple(dict.fromkeys(path for length in self.lengths.values() for path in length.paths))

    def dtype(self, name: str) -> torch.dtype:
        """What the teacher returned, however it is kept."""
        found: torch.dtype = getattr(torch, self.dtypes[name])
        return found

    def check(self, name: str, tensor: Tensor, inputs: Mapping[str, Tensor]) -> None:
        """Raises: ``RunError`` where a batch's tensor does not follow the inputs that it followed in the first batch."""
        length = self.lengths.get(name)
        for path in () if length is None else length.paths:
            assert length is not None
            size = inputs[path].shape[1]
            if any(tensor.dim() <= dim or tensor.shape[dim] != size for dim in length.dims):
                raise RunError(
                    f"the teacher's {name.partition('/')[2]} {list(tensor.shape)} was as long as its input {path or 'tensor'!r} in one "
                    f"batch and is not in another ({list(inputs[path].shape)}), so its examples cannot be put into other batches. "
                    "Pad all examples to one length"
                )

    def to_data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Layout:
        lengths = {name: Length(tuple(one["dims"]), tuple(one["paths"])) for name, one in data["lengths"].items()}
        return cls(tuple(data["counts"]), data["dtypes"], lengths)


def guides(inputs: Any) -> dict[str, Tensor]:
    """The inputs that lay tokens out, ``[batch, length]`` of whole numbers or booleans, by their path."""
    return {
        path: tensor
        for path, tensor in _tensors(inputs, "")
        if tensor.dim() == 2 and not tensor.is_floating_point() and not tensor.is_complex()
    }


def _tensors(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for place, inner in enumerate(value):
            yield from _tensors(inner, f"{path}.{place}" if path else str(place))
