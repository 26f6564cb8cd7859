"""JSON Schema of one entry: its settings as a mapping and as a list."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kdplug.config.schema.draft import JsonSchema, extensible, model_schema, pointer, reference
from kdplug.errors import KdplugError
from kdplug.host.entry import Entry
from kdplug.host.isolation.plugin_code import described, run_plugin_code
from kdplug.host.registry import REGISTRIES
from kdplug.host.wrapped_task import WRAPPED

NO_SETTING: JsonSchema = {"type": "object", "maxProperties": 0}


@dataclass(frozen=True, slots=True)
class EntrySchema:
    """An entry and its schema.

    ``spellings`` are the names that mean it; ``settings`` is the schema of its settings as a mapping, ``None`` if it
    was not imported, in which case ``inputs`` are unknown too. ``error`` is the reason why it cannot be used.
    """

    entry: Entry
    spellings: tuple[str, ...]
    doc: str
    settings: JsonSchema | None = None
    inputs: frozenset[str] = field(default=frozenset())
    error: str = ""

    @property
    def key(self) -> str:
        """Name of the entry among the definitions."""
        return f"{self.entry.kind.plural}.{self.entry.qualified}"

    @property
    def needs_settings(self) -> bool:
        """True if the name alone is not enough."""
        return self.settings is not None and bool(self.settings.get("required"))

    def names(self) -> Iterable[JsonSchema]:
        """Yield each spelling with the description that an editor shows."""
        for name in self.spellings:
            yield {"const": name, "description": self.doc, **({"$comment": self.error} if self.error else {})}

    def definitions(self) -> dict[str, JsonSchema]:
        """Return the definitions of mapping and list; none if the settings are unknown."""
        if self.settings is None:
            return {}
        found = {self.key: self._mapping(), f"{self.key}@list": self._list()}
        if self.entry.kind.plural == "projections":
            found[f"{self.key}@widths"] = self._with_widths()
        return found

    def chosen(self, variant: str = "") -> JsonSchema:
        """Return a reference to one of the definitions."""
        return reference(self.key + variant)

    def _mapping(self) -> JsonSchema:
        assert self.settings is not None
        properties = {"name": {"type": "string"}, **self.settings.get("properties", {})}
        required = ["name", *self.settings.get("required", [])]
        rest = {key: self.settings[key] for key in self.settings if key not in ("properties", "required", "title")}
        return {
            "title": self.entry.qualified,
            **rest,
            "description": self.doc,
            "properties": properties,
            "required": required,
        }

    def _with_widths(self) -> JsonSchema:
        """Return the mapping of a projection in a match: its settings, widths and optimizer options."""
        mapping = self._mapping()
        own = {name: reference(self.key, "properties", name) for name in self._setting_names()}
        widths = {
            name: reference(part) for name, part in (("in_dim", "width"), ("out_dim", "width"), ("options", "options"))
        }
        rest = {key: value for key, value in mapping.items() if key != "definitions"}
        return {**rest, "properties": {"name": {"type": "string"}, **widths, **own}}

    def _list(self) -> JsonSchema:
        """Return the list: settings by position, and optionally a final mapping of the remaining ones."""
        assert self.settings is not None
        names, required = self._setting_names(), self.settings.get("required", [])
        values = [reference(self.key, "properties", name) for name in names]
        items: list[Any] = [True]
        between: list[JsonSchema] = []
        for place, value in enumerate(values):
            left = names[place:]
            rest: JsonSchema = {
                "type": "object",
                "properties": dict(zip(left, values[place:], strict=True)),
                "required": [name for name in left if name in required],
                "additionalProperties": self.settings.get("additionalProperties", False),
            }
            items.append({"if": {"type": "object"}, "then": rest, "else": value})
            between.append(
                {"if": {"minItems": place + 3}, "then": {"items": [*[True] * (place + 1), value]}},
            )
        last = max((names.index(name) for name in required if name in names), default=-1)
        enough: list[JsonSchema] = (
            [{"if": {"not": {"contains": {"type": "object"}}}, "then": {"minItems": last + 2}}] if last >= 0 else []
        )
        return {
            "type": "array",
            "description": self.doc,
            "items": [*items, NO_SETTING],
            "additionalItems": False,
            **({"allOf": found} if (found := between + enough) else {}),
        }

    def _setting_names(self) -> list[str]:
        assert self.settings is not None
        return list(self.settings.get("properties", {}))


def entry_schema(entry: Entry, *, load: bool) -> EntrySchema:
    """Return the names of an entry and, if ``load`` is true, its settings, which imports it."""
    plain = f"{entry.kind.noun} of {entry.owner}".strip()
    spellings = _spellings(entry)
    if not load:
        return EntrySchema(entry, spellings, plain)
    try:
        target, inputs = entry.load(), frozenset(entry.inputs)
        done = run_plugin_code(
            lambda: (_settings(entry, target), first_paragraph(target)),
            f"describing the settings of {entry.qualified!r}",
            entry.dist,
            "read",
        )
    except KdplugError as error:
        return _unusable(entry, spellings, str(error))
    if done.value is None:
        assert done.error is not None
        own = isinstance(done.error, KdplugError)
        text = str(done.error) if own else f"the settings of {entry.qualified}: {described(done.error)}"
        return _unusable(entry, spellings, text)
    settings, doc = done.value
    return EntrySchema(entry, spellings, f"{doc} ({entry.owner})" if doc else plain, settings, inputs)


def _unusable(entry: Entry, spellings: tuple[str, ...], error: str) -> EntrySchema:
    first = error.splitlines()[0]
    return EntrySchema(entry, spellings, f"cannot be used: {first}", error=first)


def _spellings(entry: Entry) -> tuple[str, ...]:
    bare = (entry.name,) if REGISTRIES[entry.kind.plural].status(entry) == "ok" else ()
    return (*bare, entry.qualified)


def _settings(entry: Entry, target: object) -> JsonSchema | None:
    """Return the schema of the settings; ``None`` for a callable of a TextBrewer-style map, whose arguments have no names."""
    if entry.positional:
        return None
    key = f"{entry.kind.plural}.{entry.qualified}"
    schema = model_schema(entry.settings, pointer(key, "definitions").removeprefix("#"))
    if "properties" not in schema and "allOf" in schema and "definitions" in schema:  # a model that refers to itself
        schema = {**schema["definitions"][entry.settings.__name__], "definitions": schema["definitions"]}
    properties = schema.setdefault("properties", {})
    properties.update({name: reference("task") for name, one in properties.items() if WRAPPED.items() <= one.items()})
    for name, doc in setting_docs(target, properties).items():
        properties[name] = {"description": doc, **extensible(properties[name])}
    json.dumps(schema, allow_nan=False)  # raises here, for this entry only, if anything is not JSON
    return schema


def first_paragraph(documented: object) -> str:
    """Return the first paragraph of a docstring on one line; empty without a docstring."""
    doc = inspect.getdoc(documented) or ""
    return " ".join(doc.split("\n\n")[0].split())


def setting_docs(documented: object, names: Iterable[str]) -> dict[str, str]:
    """Return the description of each setting in the paragraph ``Settings:`` of a docstring.

    A description begins with the name of its setting, or with several names.

    ``Settings: ``alpha``, weight of the first part; ``beta`` and ``gamma``, of the others.`` gives ``{"alpha": "weight
    of the first part", "beta": "of the others", "gamma": "of the others"}``.
    """
    doc = inspect.getdoc(documented) or ""
    found = re.search(r"^Settings:\s*(.*?)(?:\n\n|\n(?=[A-Z]\w+: )|\Z)", doc, re.DOTALL | re.MULTILINE)
    if found is None:
        return {}
    wanted, docs = set(names), {}
    for part in re.split(r";\s+|\.\s+(?=``)", " ".join(found[1].split())):
        named, said = [], part
        while (name := re.match(r"``(\w+)``[,:]?\s+(?:and\s+(?=``))?", said)) and name[1] in wanted:
            named.append(name[1])
            said = said[name.end() :]
        docs.update(dict.fromkeys(named, said.rstrip(".")))
    return docs
