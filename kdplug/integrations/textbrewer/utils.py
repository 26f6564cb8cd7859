"""TextBrewer's ``utils``: a table of a model's parameters, and two small functions that scripts import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

_MEGABYTE = 1024 * 1024
_HEAD = ("LAYER NAME", "#PARAMS", "RATIO", "MEM(MB)")


@dataclass(eq=False)
class LayerNode:
    """A node of a model's state: a tensor, or everything under a prefix.

    ``value`` holds the number of elements and the megabytes of the node and its descendants. A tensor whose memory is
    already counted is marked ``(shared)`` and counts 0.
    """

    name: str
    parent: LayerNode | None = None
    fullname: str | None = None
    value: list[float] = field(default_factory=lambda: [0, 0])
    children_name: dict[str, LayerNode] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        return key in self.children_name

    def __getitem__(self, key: str) -> LayerNode:
        return self.children_name[key]

    def child(self, key: str) -> LayerNode:
        """Return the child ``key``; created if missing."""
        if key not in self:
            fullname = key if self.parent is None else f"{self.fullname}.{key}"
            self.children_name[key] = LayerNode(key, self, fullname)
        return self[key]

    def count(self, elements: int, megabytes: float) -> None:
        """Add to this node and all its ancestors."""
        node: LayerNode | None = self
        while node is not None:
            node.value = [node.value[0] + elements, node.value[1] + megabytes]
            node = node.parent

    def format(self, max_level: int | None = None) -> str:
        """Return the table, down to ``max_level`` levels.

        A node with a single child has no numbers, because the child has the same.
        """
        rows = list(self.rows(0, max_level))
        width = max(len(indent) + len(node.name) for indent, node, _ in rows) + 1
        total = self.value[0] or 1
        text = f"\n{_HEAD[0]:<{width}}\t{_HEAD[1]:>15}\t{_HEAD[2]:>10}\t{_HEAD[3]:>8}\n"
        for indent, node, has_numbers in rows:
            if has_numbers:
                label, (elements, megabytes) = f"{indent}{node.name}:", node.value
                text += f"{label:<{width}}\t{elements:15,d}\t{elements / total:>10.2%}\t{megabytes:>8.2f}\n"
            else:
                text += f"{indent + node.name:<{width}}\n"
        return text

    def rows(self, level: int, max_level: int | None) -> Iterator[tuple[str, LayerNode, bool]]:
        """Yield indent, node, and whether to show its numbers, for this node at ``level`` and its descendants."""
        is_last = max_level is not None and level == max_level
        yield "  " * level + "--", self, is_last or len(self.children_name) != 1
        if not is_last:
            for child in self.children_name.values():
                yield from child.rows(level + 1, max_level)


def display_parameters(model: nn.Module | Mapping[str, Any], max_level: int | None = None) -> tuple[str, LayerNode]:
    """Return the table of a model's state, buffers included, and the tree behind it.

    ``model`` is a module or a state dict. ``max_level`` limits the depth of the table; ``None`` shows all levels.

    Raises: ``TypeError`` for any other ``model``.
    """
    if isinstance(model, nn.Module):
        state: Mapping[str, Any] = model.state_dict()
    elif isinstance(model, Mapping):
        state = model
    else:
        raise TypeError(f"model must be a module or a state dict, got {type(model).__name__}")
    root, seen = LayerNode("model", fullname="model"), set[int]()
    for key, value in state.items():
        if isinstance(value, Tensor):
            _enter(root, key, value, seen)
    return root.format(max_level=max_level), root


def _enter(root: LayerNode, key: str, tensor: Tensor, seen: set[int]) -> None:
    node = root
    for name in key.split("."):
        node = node.child(name)
    address = 0 if tensor.is_meta else tensor.data_ptr()
    if address in seen:
        node.name += "(shared)"
        node.fullname = f"{node.fullname}(shared)"
        return
    if address:  # 0 for an empty tensor or one on the meta device
        seen.add(address)
    node.count(tensor.numel(), tensor.numel() * tensor.element_size() / _MEGABYTE)


__all__ = ["LayerNode", "cycle", "display_parameters", "initializer_builder"]

Item = TypeVar("Item")


def cycle(iterable: Iterable[Item]) -> Iterator[Item]:
    """Yield the items forever; stop if a whole pass yields none."""
    empty = False
    while not empty:
        empty = True
        for item in iterable:
            empty = False
            yield item


def initializer_builder(std: float) -> Callable[[nn.Module], None]:
    """Return a function for ``module.apply`` that draws linear and embedding weights from N(0, ``std``²).

    It sets biases to 0.
    """

    def init_weights(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    return init_weights
