"""Read and write configs as YAML 1.2 and JSON."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

from kdplug.config.words import shown
from kdplug.errors import ConfigError, did_you_mean
from kdplug.host.bounded_json import (
    CONFIG,
    DEEPEST,
    LONGEST_NUMBER,
    check_length,
    json_value,
    key_too_long,
    number_too_long,
    read_bounded,
)

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class BoundsError(MarkedYAMLError):
    """Well-formed text that exceeds a limit."""


class BoundedComposer(Composer):
    """Counts values, including each repetition by an alias, without expanding aliases.

    Raises: ``BoundsError`` as soon as there are too many values or levels, for a key or a number that is too long, and for an
    alias inside the value that it repeats.
    """

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self._values = 0
        self._extents: dict[int, tuple[int, int]] = {}  # number of values and levels of each node

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        is_alias = isinstance(event, AliasEvent)
        if self.depth >= DEEPEST:
            raise _beyond(f"nested too deeply: more than {DEEPEST} levels", event)
        node = super().compose_node(parent, index)
        if is_alias and id(node) not in self._extents:
            raise _beyond(f"the alias *{event.anchor} is inside the value that it repeats", event)
        values, levels = self._extents[id(node)] if is_alias else self._measured(node)
        self._values += values if is_alias else 1
        if self._values > CONFIG.values:
            repeated = ", counting each repetition by an alias" if self.anchors else ""
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


_LONGEST_WITH_LINES = 1 << 16
"""Longest text for which errors name the line. Finding the line parses the text as YAML again."""


@dataclass(frozen=True)
class Document:
    """A mapping, the text that it was read from, and the name of that text in messages."""

    data: dict[str, Any]
    text: str
    source: str

    def place(self, path: str) -> str:
        """Return ``recipe.yaml, line 7``, the line of the value at the dotted ``path`` or of the nearest one above it."""
        if not path or self._node is None:
            return self.source
        return f"{self.source}, line {_line(self._node, path.split('.'))}"

    @cached_property
    def _node(self) -> Node | None:
        if len(self.text) > _LONGEST_WITH_LINES:
            return None
        try:
            found: Node | None = _yaml().compose(self.text)
        except YAMLError:  # JSON that is not YAML, such as with tabs
            return None
        return found


def _line(node: Node, path: list[str]) -> int:
    line = int(node.start_mark.line) + 1
    for part in path:
        if isinstance(node, MappingNode):
            below = [(key, value) for key, value in node.value if key.value == part]
        elif isinstance(node, SequenceNode) and part.isdecimal() and int(part) < len(node.value):
            below = [(node.value[int(part)], node.value[int(part)])]
        else:
            return line
        if not below:
            return line
        key, node = below[-1]
        line = int(key.start_mark.line) + 1
    return line


def read_document(path: str | Path) -> Document:
    """Read the mapping in a ``.yaml``, ``.yml`` or ``.json`` file.

    Raises: ``ConfigError``, with the line if it is known, if the file is missing or does not hold a mapping.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".yaml", ".yml", ".json"):
        raise ConfigError(f"cannot read {str(path)!r}: the name of a config file must end in .yaml, .yml or .json")
    return (json_document if suffix == ".json" else yaml_document)(read_text(path), path.name)


def read_text(path: str | Path) -> str:
    """Return the text of a file. Raises: ``ConfigError`` if it cannot be read."""
    path = Path(path)
    try:
        return read_bounded(path, CONFIG).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"there is no file {str(path)!r}.{did_you_mean(path.name, _neighbours(path))}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(path)!r} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except ConfigError:  # is a ValueError too
        raise
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(f"cannot read {str(path)!r}: {reason}") from error


def _neighbours(path: Path) -> list[str]:
    try:
        return sorted(other.name for other in path.parent.iterdir() if other.is_file())
    except OSError:
        return []


def yaml_document(text: str, source: str = "YAML") -> Document:
    """Read a mapping from YAML 1.2, where ``1e-3`` is a number, ``yes`` is text and a repeated key is an error."""
    return _document(yaml_value(text, source), text, source)


def json_document(text: str, source: str = "JSON") -> Document:
    """Read a mapping from JSON, where a repeated key, ``NaN`` and ``Infinity`` are errors."""
    try:
        data = json_value(text, CONFIG, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source}, line {error.lineno}, column {error.colno}: {error.msg}") from error
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return _document(data, text, source)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ConfigError(f"the key {key!r} appears twice, with {shown(found[key])} and {shown(value)}")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ConfigError(f"{name} is not JSON: every number in a config must be finite")


def _document(data: object, text: str, source: str) -> Document:
    if data is None:
        raise ConfigError(f"{source} is empty. A config is a mapping of keys to values")
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source} must contain a mapping of keys to values, got {shown(data)}")
    return Document(dict(data), text, source)


def yaml_value(text: str, source: str = "YAML") -> Any:
    """Return the value of YAML 1.2 text.

    Raises: ``ConfigError`` with line and column; also for text that is too long, nested too deeply, or holds too many values,
    counting each repetition by an alias.
    """
    check_length(len(text), CONFIG, source)
    try:
        return _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ConfigError(f"{source}{where}: {error.problem or error.context}") from error
    except (YAMLError, RecursionError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        # The parser also leaks errors of its constructors: for a date that does not exist, or a list as a key.
        raise ConfigError(f"{source} cannot be read as YAML: {' '.join(str(error).split())}") from error


def write_yaml(data: Mapping[str, Any]) -> str:
    """Return ``data`` as YAML 1.2, keys in order, in block style."""
    stream = io.StringIO()
    yaml = _yaml()
    yaml.default_flow_style = False
    yaml.Representer = _Representer
    yaml.dump(dict(data), stream)
    return stream.getvalue()


def write_json(data: Mapping[str, Any]) -> str:
    """Return ``data`` as JSON, keys in order."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


class _Representer(SafeRepresenter):
    """Quotes all text except plain words: without quotes ruamel.yaml writes text such as ``?0`` wrongly."""

    def text(self, data: str) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if _WORDS.fullmatch(data) else '"')


_WORDS = re.compile(r"(?:[a-z_]|\./)[\w./+-]*(?:[ :][\w./+-]+)*", re.ASCII | re.IGNORECASE)
_Representer.add_representer(str, _Representer.text)


def _yaml() -> Any:
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Composer = BoundedComposer
    yaml.width = 120
    yaml.sort_base_mapping_type_on_output = False
    return yaml
