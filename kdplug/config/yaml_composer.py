"""YAML within limits, which hold while it is parsed: an alias costs nothing to write and repeats all that it stands for."""

from __future__ import annotations

from typing import Any

from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from kdplug.host.bounded_json import CONFIG, DEEPEST, LONGEST_NUMBER, key_too_long, number_too_long

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class BoundsError(MarkedYAMLError):
    """Text that is well formed and too much."""


class BoundedComposer(Composer):
    """Counts each value once for each place that it stands in, so that no alias is ever written out to be counted.

    Raises: ``BoundsError`` as soon as there are too many values or levels, for a key or a number that is too long, and for an
    alias of something that it is inside of.
    """

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self._values = 0
        self._extents: dict[int, tuple[int, int]] = {}  # of each node: its values, and its levels

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        is_alias = isinstance(event, AliasEvent)
        if self.depth >= DEEPEST:
            raise _beyond(f"nested too deeply: more than {DEEPEST} levels", event)
        node = super().compose_node(parent, index)
        if is_alias and id(node) not in self._extents:
            raise _beyond(f"the alias *{event.anchor} stands inside of what it repeats", event)
        values, levels = self._extents[id(node)] if is_alias else self._measured(node)
        self._values += values if is_alias else 1
        if self._values > CONFIG.values:
            repeated = ", those that aliases repeat counted each time" if self.anchors else ""
            raise _beyond(f"more than {CONFIG.values:,} values{repeated}", event)
        if self.depth + levels > DEEPEST:
            raise _beyond(f"nested too deeply: more than {DEEPEST} levels", event)
        if index is None and isinstance(parent, MappingNode) and isinstance(node, ScalarNode):
            _check_key(node, event)
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        if len(node.value) > LONGEST_NUMBER and str(node.tag) in _NUMBERS:
            raise _beyond(number_too_long(len(node.value)), node)
        return node

    def _measured(self, node: Node) -> tuple[int, int]:
        inner = [self._extents[id(one)] for one in _inner(node)]
        found = 1 + sum(values for values, _ in inner), 1 + max((levels for _, levels in inner), default=0)
        self._extents[id(node)] = found
        return found


def _inner(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [one for pair in node.value for one in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


def _check_key(node: ScalarNode, event: Any) -> None:
    if len(node.value) > CONFIG.key:
        raise _beyond(key_too_long(node.value, CONFIG), event)


def _beyond(problem: str, place: Any) -> BoundsError:
    return BoundsError(None, None, problem, place.start_mark)
