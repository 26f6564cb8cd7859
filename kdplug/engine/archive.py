"""Nested plain data with tensors in it, as one JSON file and one safetensors file. Nothing that is read back is ever run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdplug.errors import RunError
from kdplug.host.bounded_json import read_json

_TENSOR, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"
_SCALARS = (str, int, float, bool, type(None))


def write_archive(folder: Path, name: str, data: Any) -> None:
    """Write ``data`` as ``name.json`` and ``name.safetensors``.

    ``data`` is made of dicts, lists, tuples, numbers, strings, booleans, ``None`` and tensors, nested in any way.

    Raises: ``RunError`` naming the path of anything else.
    """
    tensors = _Tensors()
    plain = _encode(data, name, tensors)
    save_file(tensors.by_key, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(plain), encoding="utf-8")


def read_archive(folder: Path, name: str) -> Any:
    """What ``write_archive`` wrote, equal to it bit by bit, its tensors on the CPU.

    Raises: ``RunError`` where a file is missing or damaged.
    """
    try:
        plain = read_json(folder / f"{name}.json")
        return _decode(plain, load_file(folder / f"{name}.safetensors"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(f"cannot read the checkpoint {folder / name}: {type(error).__name__}: {error}") from error


class _Tensors:
    """The tensors of an archive, on the CPU. Only those are copied whose memory is in it already, which safetensors refuses."""

    def __init__(self) -> None:
        self.by_key: dict[str, Tensor] = {}
        self._memories: set[int] = set()

    def add(self, value: Tensor) -> str:
        key, tensor = str(len(self.by_key)), value.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        if memory in self._memories:
            tensor = tensor.clone()
        self._memories.add(memory)
        self.by_key[key] = tensor
        return key


def _encode(value: Any, path: str, tensors: _Tensors) -> Any:
    if isinstance(value, Tensor):
        return {_TENSOR: tensors.add(value)}
    if isinstance(value, Mapping):
        items = [(key, _encode(inner, f"{path}.{key}", tensors)) for key, inner in value.items()]
        if all(isinstance(key, str) and not key.startswith("__") for key, _ in items):
            return dict(items)
        return {_ITEMS: [[_encode(key, path, tensors), inner] for key, inner in items]}
    if isinstance(value, tuple):
        return {_TUPLE: [_encode(inner, f"{path}.{place}", tensors) for place, inner in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(inner, f"{path}.{place}", tensors) for place, inner in enumerate(value)]
    if isinstance(value, _SCALARS):
        return value
    raise RunError(
        f"{path} holds a {type(value).__name__}, which cannot be saved: a checkpoint holds tensors and plain data, no code"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(_decode(inner, tensors) for inner in value[_TUPLE])
    if _ITEMS in value:
        return {_decode(key, tensors): _decode(inner, tensors) for key, inner in value[_ITEMS]}
    return {key: _decode(inner, tensors) for key, inner in value.items()}


def same(left: Any, right: Any) -> bool:
    """Whether two trees of plain data and tensors are equal bit by bit."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left.cpu(), right.cpu())
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and type(left) is type(right):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and bool(left == right)
