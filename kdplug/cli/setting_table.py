"""The settings of an entry, and the groups of settings that they hold, as tables for a terminal."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from rich.table import Table
from rich.text import Text

from kdplug.host.name import printable

if TYPE_CHECKING:
    from pydantic import BaseModel

_BOUNDS = (
    ("ge", ">="),
    ("gt", ">"),
    ("le", "<="),
    ("lt", "<"),
    ("multiple_of", "multiple of"),
    ("min_length", "length >="),
    ("max_length", "length <="),
)


def setting_table(model: type[BaseModel], heading: str = "setting") -> Table:
    """Name, type, default and bounds of each field, and its meaning where any has one that the documentation leaves to it."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    meanings = ["meaning"] if any(field.description for field in model.model_fields.values()) else []
    for column in (heading, "type", "default", "bounds", *meanings):
        table.add_column(column, overflow="fold")
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        cells = (field.alias or name, type_name(field.annotation), default, _bounds(field.metadata))
        texts = (*cells, *[field.description or "" for _ in meanings])
        table.add_row(*(Text(printable(text)) for text in texts))
    return table


def groups_of(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that a config writes as mappings among the settings, each once, with those in them."""
    return list(dict.fromkeys(group for field in model.model_fields.values() for group in _in(field.annotation)))


def type_name(annotation: Any) -> str:
    """An annotation as one would write it: ``int``, ``float | None``, ``int >= 1 | None``, ``Literal['a', 'b']``."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in (None, types.NoneType):
        return "None"
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(type_name, parts)))
    if origin is Annotated:
        return f"{type_name(parts[0])} {_bounds(parts[1:])}".strip()
    if origin in (list, dict, tuple):
        return f"{origin.__name__}[{', '.join('...' if part is ... else type_name(part) for part in parts)}]"
    if isinstance(annotation, type) and origin is None:
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _in(annotation: Any) -> Iterator[type[BaseModel]]:
    from pydantic import BaseModel

    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
        yield from groups_of(annotation)
    for part in get_args(annotation):
        yield from _in(part)


def _bounds(rules: Iterable[Any]) -> str:
    marks = [mark for rule in rules for mark in (rule.metadata if isinstance(rule, FieldInfo) else (rule,))]
    found = ((sign, getattr(mark, key, None)) for mark in marks for key, sign in _BOUNDS)
    return ", ".join(f"{sign} {_number(bound)}" for sign, bound in found if bound is not None)


def _number(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
