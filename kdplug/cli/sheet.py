"""What one entry does, asks for and can be told: ``kdplug plugins show``."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args, get_origin

from rich.table import Table
from rich.text import Text

from kdplug.errors import EntryError, NotInstalledError, UnknownEntryError, did_you_mean
from kdplug.host.entry import Entry
from kdplug.host.kind import Kind
from kdplug.host.registry import REGISTRIES, Registry

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo
    from rich.console import Console

_BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"), ("multiple_of", "multiple of"))


def print_sheets(name: str, kind: Kind | None, console: Console) -> None:
    """Print a sheet for each entry of that name, bare or qualified.

    Raises: ``EntryError`` where there is none, or where one cannot be imported; ``SignatureError``.
    """
    registries = [REGISTRIES[kind.plural]] if kind is not None else list(REGISTRIES.values())
    for place, (registry, entry) in enumerate(_found(name, registries)):
        if place:
            console.print()
        _print_sheet(entry, registry.status(entry), console)


def _found(name: str, registries: list[Registry]) -> list[tuple[Registry, Entry]]:
    errors: list[EntryError] = []
    found: list[tuple[Registry, Entry]] = []
    for registry in registries:
        named = [(registry, entry) for entry in registry.entries() if _means(name, entry)]
        if named:
            found += named
            continue
        try:
            found.append((registry, registry.entry(name)))
        except EntryError as error:
            errors.append(error)
    if not found:
        raise _missing(name, registries, errors)
    return found


def _means(name: str, entry: Entry) -> bool:
    return _fold(name) in (_fold(entry.name), _fold(entry.qualified))


def _fold(name: str) -> str:
    return name.casefold().replace("-", "_")


def _missing(name: str, registries: list[Registry], errors: list[EntryError]) -> EntryError:
    if len(registries) == 1:
        return errors[0]
    absent = [error for error in errors if isinstance(error, NotInstalledError)]
    names = {entry.name for registry in registries for entry in registry.entries()}
    return absent[0] if absent else UnknownEntryError(f"no entry {name!r} of any kind.{did_you_mean(name, names)}")


def _print_sheet(entry: Entry, status: str, console: Console) -> None:
    target = entry.load()
    console.print(Text.assemble((entry.qualified, "bold"), f"   {entry.kind.noun} · {entry.owner} · {status}"))
    doc = inspect.getdoc(target)
    console.print()
    console.print(Text(doc or "It has no documentation."))
    console.print()
    console.print(Text.assemble(("inputs    ", "bold"), ", ".join(entry.inputs) or "none"), soft_wrap=True)
    console.print(Text.assemble(("defined   ", "bold"), _place(target) or "in no source file"), soft_wrap=True)
    fields = entry.settings.model_fields
    if not fields:
        console.print(Text.assemble(("settings  ", "bold"), "none"))
        return
    console.print()
    console.print(_settings(entry.settings))


def _place(target: Callable[..., Any]) -> str | None:
    found: Any = inspect.unwrap(target)
    try:
        return f"{inspect.getsourcefile(found)}:{inspect.getsourcelines(found)[1]}"
    except (OSError, TypeError):
        return None


def _settings(model: type[BaseModel]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("setting", "type", "default", "bounds"):
        table.add_column(column, overflow="fold")
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        table.add_row(*map(Text, (field.alias or name, type_name(field.annotation), default, _bounds(field))))
    return table


def _bounds(field: FieldInfo) -> str:
    marks = [(sign, getattr(mark, key)) for mark in field.metadata for key, sign in _BOUNDS if hasattr(mark, key)]
    return ", ".join(f"{sign} {bound:g}" for sign, bound in marks)


def type_name(annotation: Any) -> str:
    """An annotation as one would write it: ``int``, ``float | None``, ``Literal['a', 'b']``."""
    if annotation is None or annotation is types.NoneType:
        return "None"
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__name__
    if isinstance(annotation, types.UnionType):
        return " | ".join(type_name(part) for part in get_args(annotation))
    return str(annotation).replace("typing.", "")
