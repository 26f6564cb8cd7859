"""Nested containers of tensors, such as batches, model outputs and optimizer states, as pytrees of torch.

Torch's pytree opens plain dicts, lists and tuples. It treats other mappings (transformers' ``BatchEncoding``),
subclasses and dataclasses as leaves unless their class is registered, so a walk would skip the tensors inside. The
functions here open those too, whether their class is registered or not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import KeyPath, MappingKey, SequenceKey, tree_leaves_with_path, tree_map

__all__ = ["KeyPath", "MappingKey", "SequenceKey", "dotted", "leaves", "map_leaves", "opened", "tensors"]

IsLeaf = Callable[[Any], bool]
_PLAIN = (dict, list, tuple)


def opened(value: Any) -> dict[Any, Any] | list[Any] | None:
    """Return the items of a mapping, list, tuple or dataclass instance; ``None`` for any other value.

    A named tuple is opened by position. A module is not opened.
    """
    if isinstance(value, (Tensor, str, bytes)):
        return None
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, (list, tuple)):
        return list(value)
    if is_dataclass(value) and not isinstance(value, (type, nn.Module)):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return None


def leaves(tree: Any, is_leaf: IsLeaf | None = None) -> Iterator[tuple[KeyPath, Any]]:
    """Yield path and value of each leaf, in the order of the containers.

    A container for which ``is_leaf`` is true is a leaf.
    """
    for path, leaf in tree_leaves_with_path(tree, _closed(is_leaf)):
        items = None if is_leaf is not None and is_leaf(leaf) else opened(leaf)
        if items is None:
            yield path, leaf
        else:
            yield from ((path + inner, one) for inner, one in leaves(items, is_leaf))


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yield each tensor in ``tree``."""
    return (leaf for _, leaf in leaves(tree) if isinstance(leaf, Tensor))


def map_leaves(function: Callable[[Any], Any], tree: Any, is_leaf: IsLeaf | None = None) -> Any:
    """Return ``tree`` with ``function`` applied to each leaf; containers keep their types, and are not changed.

    An immutable mapping becomes a dict.
    """

    def mapped(leaf: Any) -> Any:
        items = None if is_leaf is not None and is_leaf(leaf) else opened(leaf)
        return function(leaf) if items is None else _rebuilt(leaf, map_leaves(function, items, is_leaf))

    return tree_map(mapped, tree, is_leaf=_closed(is_leaf))


def dotted(path: KeyPath) -> str:
    """Return a path as text such as ``labels.0``; empty keys are left out."""
    return ".".join(filter(None, (str(step.key if isinstance(step, MappingKey) else step.idx) for step in path)))  # type: ignore[attr-defined]


def _closed(is_leaf: IsLeaf | None) -> IsLeaf:
    if is_leaf is None:
        return lambda value: type(value) not in _PLAIN
    return lambda value: type(value) not in _PLAIN or is_leaf(value)


def _rebuilt(original: Any, items: Any) -> Any:
    """Return a container of ``original``'s type with ``items``."""
    if isinstance(original, Mapping):
        try:
            rebuilt: Any = copy.copy(original)
            for key, item in items.items():
                rebuilt[key] = item
        except TypeError:  # an immutable mapping
            return items
        return rebuilt
    if isinstance(original, (list, tuple)):
        return type(original)(*items) if hasattr(original, "_fields") else type(original)(items)
    return replace(original, **{field.name: items[field.name] for field in fields(original) if field.init})
