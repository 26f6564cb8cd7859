"""``kdplug plugins show``: print the documentation, inputs and settings of an entry."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from rich.table import Table
from rich.text import Text

from kdplug.contracts.loss import DECLARATIONS, declares, is_annotated_as_sum, stated_facts
from kdplug.errors import EntryError, NotInstalledError, UnknownEntryError, did_you_mean
from kdplug.host.entry import Entry
from kdplug.host.isolation.plugin_code import described, run_plugin_code
from kdplug.host.kind import Kind
from kdplug.host.name import place_of, printable
from kdplug.host.registry import REGISTRIES, Registry

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console


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
    """Return a table of each field's name, type, default and bounds, with descriptions if any field has one."""
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
    """Return the nested settings models (written as mappings in a config), without duplicates."""
    return list(dict.fromkeys(group for field in model.model_fields.values() for group in _in(field.annotation)))


def type_name(annotation: Any) -> str:
    """Format an annotation as in source code: ``int``, ``float | None``, ``int >= 1 | None``, ``Literal['a', 'b']``."""
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


def print_sheets(name: str, kind: Kind | None, console: Console) -> None:
    """Print a sheet for each entry of that name, bare or qualified.

    Raises: ``EntryError`` if there is none or one cannot be imported; ``SignatureError`` if one has invalid parameters.
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
    _ = entry.signature  # an invalid one raises here
    doc = _read(entry, lambda: inspect.getdoc(target) or "No documentation.")
    console.print(Text.assemble((entry.qualified, "bold"), f"   {entry.kind.noun} · {entry.owner} · {status}"))
    console.print()
    console.print(Text(printable(doc or "")))
    console.print()
    for label, line in _LINES:
        if (shown := _read(entry, partial(line, entry, target))) is not None:
            console.print(Text.assemble((f"{label:<8}  ", "bold"), printable(shown)), soft_wrap=True)
    fields = entry.settings.model_fields
    if not fields:
        console.print(Text.assemble(("settings  ", "bold"), "none"))
        return
    console.print()
    console.print(setting_table(entry.settings))
    for group in groups_of(entry.settings):
        console.print()
        console.print(Text.assemble((group.__name__, "bold"), f"   {printable(inspect.getdoc(group) or '')}".rstrip()))
        console.print()
        console.print(setting_table(group, "key"))


def _read(entry: Entry, read: Callable[[], str | None]) -> str | None:
    """Return what ``read`` returns; it runs plugin code, which may fail."""
    done = run_plugin_code(read, f"describing {entry.qualified!r}", entry.dist, "read")
    return done.value if done.error is None else f"cannot be read: {described(done.error)}"


def declarations(loss: Callable[..., Any]) -> list[str]:
    """Return the properties that a loss declares, with its annotation as ``LossSum``, and the facts that it states."""
    annotated = ["-> LossSum"] if is_annotated_as_sum(loss) else []
    facts = [name if value is True else f"{name} = {value!r}" for name, value in stated_facts(loss).items()]
    return [name for name in DECLARATIONS if declares(loss, name)] + annotated + facts


def _inputs(entry: Entry, _: Any) -> str | None:
    return ", ".join(entry.inputs) or "none"


def _init_inputs(entry: Entry, _: Any) -> str | None:
    return ", ".join(entry.signature.widths) or None


def _axis(entry: Entry, target: Any) -> str | None:
    """Return the axis that an entry declares, and that of a projection in any case."""
    is_shown = entry.kind.plural == "projections" or (entry.kind.plural == "losses" and hasattr(target, "axis"))
    return str(getattr(target, "axis", -1)) if is_shown else None


def _declares(entry: Entry, target: Any) -> str | None:
    return (", ".join(declarations(target)) or "nothing") if entry.kind.plural == "losses" else None


def _defined(_: Entry, target: Any) -> str | None:
    return place_of(target) or "in no source file"


_LINES: tuple[tuple[str, Callable[[Entry, Any], str | None]], ...] = (
    ("inputs", _inputs),
    ("__init__", _init_inputs),
    ("axis", _axis),
    ("declares", _declares),
    ("defined", _defined),
)
"""Lines of a sheet: the label, and what to print for an entry and its loaded target; ``None`` leaves the line out."""
