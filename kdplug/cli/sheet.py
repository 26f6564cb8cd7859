"""What one entry does, asks for and can be told: ``kdplug plugins show``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.text import Text

from kdplug.cli.setting_table import groups_of, setting_table
from kdplug.contracts import across_vocabularies, closed_form, coarsens
from kdplug.errors import EntryError, NotInstalledError, UnknownEntryError, did_you_mean
from kdplug.host.entry import Entry
from kdplug.host.finding import place_of
from kdplug.host.kind import Kind
from kdplug.host.name import printable
from kdplug.host.plugin_code import run_plugin_code
from kdplug.host.registry import REGISTRIES, Registry

if TYPE_CHECKING:
    from rich.console import Console


DECLARATIONS = (across_vocabularies.ATTRIBUTE, closed_form.ATTRIBUTE, coarsens.ATTRIBUTE)
"""The attributes by which a loss says what the engine may do with it."""


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
    about = run_plugin_code(
        lambda: (inspect.getdoc(target), place_of(target), declarations(target)),
        f"describing {entry.qualified!r}",
        entry.dist,
        "read",
    )
    doc, place, declared = about.value or (None, None, [])
    console.print(Text.assemble((entry.qualified, "bold"), f"   {entry.kind.noun} · {entry.owner} · {status}"))
    console.print()
    console.print(Text(printable(doc or "It has no documentation.")))
    console.print()
    console.print(Text.assemble(("inputs    ", "bold"), ", ".join(entry.inputs) or "none"), soft_wrap=True)
    if entry.kind is REGISTRIES["losses"].kind:
        console.print(Text.assemble(("declares  ", "bold"), ", ".join(declared) or "nothing"), soft_wrap=True)
    console.print(Text.assemble(("defined   ", "bold"), place or "in no source file"), soft_wrap=True)
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


def declarations(loss: Callable[..., Any]) -> list[str]:
    """What a loss declares about itself."""
    return [name for name in DECLARATIONS if getattr(loss, name, None)]
