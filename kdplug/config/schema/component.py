"""JSON Schema of components: for each place in a config, the entries that it accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kdplug.config.key import Place
from kdplug.config.match import OPTIONS_AT_LEAST_0, OPTIONS_REFUSED, WIDEST
from kdplug.config.model import NONE_SCHEMA
from kdplug.config.schema.draft import JsonSchema, reference
from kdplug.config.schema.entry import EntrySchema, entry_schema
from kdplug.host.entry import Entry
from kdplug.host.registry import REGISTRIES

_OPTIONS: JsonSchema = {
    "type": "object",
    "description": "options of the projection's own parameter group in the optimizer",
    "properties": {
        **{name: {"not": {}} for name in OPTIONS_REFUSED},
        **{name: {"type": "number", "minimum": 0} for name in OPTIONS_AT_LEAST_0},
    },
    "additionalProperties": {"not": {"type": "object"}},
}
_WIDTH: JsonSchema = {
    "description": "a width, or auto for the width of the features",
    "if": {"type": "string"},
    "then": {"const": "auto"},
    "else": {"type": "integer", "minimum": 1, "maximum": WIDEST},
}


@dataclass
class Catalogue:
    """Definitions of components. ``load`` selects the entries that are imported for their settings."""

    load: Callable[[Entry], bool]
    definitions: dict[str, JsonSchema] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    _known: dict[str, list[EntrySchema]] = field(default_factory=dict)

    def at(self, place: Place) -> JsonSchema:
        """Return the schema of a place and add its definitions to the catalogue."""
        if place.definition not in self.definitions:
            found = self._entries(place)
            if place.plural == "projections":
                self._projection(place, found)
            else:
                self._component(place.definition, found, optional=place.optional, words=place.words)
        return reference(place.definition)

    def _entries(self, place: Place) -> list[EntrySchema]:
        """Return the entries that a place accepts. A loss with unknown inputs is accepted in both places for losses."""
        if place.plural not in self._known:
            known = [entry_schema(entry, load=self.load(entry)) for entry in REGISTRIES[place.plural].entries()]
            self._known[place.plural] = known
            self.errors += [one.error for one in known if one.error]
            for one in known:
                self.definitions |= one.definitions()
        return [
            one
            for one in self._known[place.plural]
            if place.slot is None
            or (one.entry.kind.fits(one.inputs, place.slot) and one.entry.slot in (None, place.slot))
        ]

    def _component(self, name: str, entries: list[EntrySchema], *, optional: bool, words: tuple[str, ...] = ()) -> None:
        """Define the three spellings: a name, a list or a mapping; ``words`` are allowed too."""
        self._names(f"{name}_name", entries)
        names = reference(f"{name}_name")
        self.definitions[f"{name}_list"] = {
            "type": "array",
            "minItems": 1,
            "items": [names],
            "allOf": _by_name(
                entries, "@list", lambda spellings: {"minItems": 1, "items": [{"enum": list(spellings)}]}
            ),
        }
        self.definitions[f"{name}_mapping"] = _mapping(names, entries, "")
        self.definitions[name] = _three_spellings(name, entries, optional=optional)
        if words:
            self.definitions[name]["anyOf"].append({"enum": list(words)})

    def _projection(self, place: Place, entries: list[EntrySchema]) -> None:
        """Define a projection as a match writes it: lists and mappings hold widths and options in addition to settings."""
        self.definitions |= {"width": _WIDTH, "options": _OPTIONS}
        self._component("projection_component", entries, optional=False)
        names = reference("projection_component_name")
        width = reference("width")
        self.definitions[f"{place.definition}_list"] = {
            "type": "array",
            "minItems": 3,
            "items": [reference("projection_component"), width, width, reference("options")],
            "additionalItems": False,
        }
        self.definitions[f"{place.definition}_mapping"] = {
            **_mapping(names, entries, "@widths"),
            "properties": {"name": names, "in_dim": width, "out_dim": width, "options": reference("options")},
        }
        self.definitions[f"{place.definition}_name"] = names
        self.definitions[place.definition] = _three_spellings(place.definition, entries, optional=place.optional)

    def _names(self, name: str, entries: list[EntrySchema]) -> None:
        consts = [const for entry in entries for const in entry.names()]
        self.definitions[name] = {"anyOf": consts} if consts else {"not": {}, "$comment": "nothing is installed"}


def _mapping(names: JsonSchema, entries: list[EntrySchema], variant: str) -> JsonSchema:
    chosen = _by_name(
        entries, variant, lambda spellings: {"required": ["name"], "properties": {"name": {"enum": list(spellings)}}}
    )
    return {"type": "object", "required": ["name"], "properties": {"name": names}, "allOf": chosen}


def _by_name(
    entries: Iterable[EntrySchema], variant: str, named: Callable[[tuple[str, ...]], JsonSchema]
) -> list[JsonSchema]:
    """Return a rule for each entry with known settings: if it is named, its settings apply."""
    return [
        {"if": named(entry.spellings), "then": entry.chosen(variant)} for entry in entries if entry.settings is not None
    ] or [{}]


def _three_spellings(name: str, entries: list[EntrySchema], *, optional: bool) -> JsonSchema:
    """Return the three spellings, separated by ``if`` so that an error names the value that is wrong."""
    needing = [spelling for entry in entries if entry.needs_settings for spelling in entry.spellings]
    schema: JsonSchema = {
        "anyOf": [
            reference(f"{name}_name"),
            {"type": ["array", "object"]},
            *(NONE_SCHEMA["anyOf"] if optional else []),
        ],
        "if": {"type": "array"},
        "then": reference(f"{name}_list"),
        "else": {"if": {"type": "object"}, "then": reference(f"{name}_mapping")},
    }
    if needing:
        schema["allOf"] = [
            {"$comment": "these need settings", "if": {"enum": needing}, "then": {"not": {"type": "string"}}}
        ]
    return schema
