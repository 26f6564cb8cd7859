"""Components: entries with their settings bound."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import FunctionType, MappingProxyType
from typing import Any

from kdplug.contracts.loss import CLOSED_FORM, DECLARATIONS, FACTS, WHOLE_SEQUENCES, declares, reduction_of
from kdplug.errors import PluginError, SettingError, SignatureError, nearest
from kdplug.host.entry import Entry
from kdplug.host.isolation.plugin_code import described, run_plugin_code
from kdplug.host.kind import NAMED
from kdplug.host.spec import ComponentSpec


@dataclass(frozen=True, slots=True)
class Component:
    """An entry with its settings bound.

    ``target`` is called by position with the values of ``inputs``, in that order. If the entry is a class, ``target``
    is an instance of it; a task or cache codec has no inputs, and its ``target`` is the task or codec itself. A loss class
    that takes ``widths`` (or ``num_examples``) is built by ``with_widths``; until then its ``target`` is the class with its settings bound.
    """

    entry: Entry
    settings: dict[str, Any]
    target: Callable[..., Any]
    inputs: tuple[str, ...]
    args: tuple[Any, ...] = ()
    widths: tuple[str, ...] = ()

    def with_widths(self, **widths: Any) -> Component:
        """Return the component with its target built for these widths: numbers, or lists for lists of layers."""
        make = partial(self.target, *map(widths.__getitem__, self.widths))
        given = ", ".join(f"{name}={widths[name]}" for name in self.widths)
        built = _built(self.entry, given if self.widths == ("num_examples",) else f"widths {given}", make)
        return replace(self, target=built, widths=())

    def qualified_spec(self) -> Any:
        """Return the component as plain data, with its qualified name and every setting."""
        if self.args:
            return [self.entry.qualified, *self.args, *([self.settings] if self.settings else [])]
        return {"name": self.entry.qualified, **self.settings}

    def __call__(self, **values: Any) -> Any:
        """Call the target with the inputs that it takes from ``values``."""
        return self.target(*(values[name] for name in self.inputs))


def build_component(entry: Entry, spec: ComponentSpec, slot: str | None = None) -> Component:
    """Load ``entry``, validate its settings and bind them.

    Raises: ``BrokenEntryError``, ``SignatureError``, ``SettingError``.
    """
    if entry.positional:
        return _build_positional(entry, spec)
    _check_slot(entry, slot)
    target, signature = entry.load(), entry.signature
    settings, dumped = _settings(entry, spec)
    if signature.widths:
        return Component(entry, dumped, partial(target, **settings), signature.inputs, widths=signature.widths)
    if signature.makes:
        return Component(entry, dumped, _built(entry, spec, partial(target, **settings)), signature.inputs)
    return Component(entry, dumped, partial(target, **settings) if settings else target, signature.inputs)


def _built(entry: Entry, spec: object, make: Callable[[], Any]) -> Any:
    done = run_plugin_code(make, f"building {entry.qualified!r} from {spec}", entry.dist, "build")
    if isinstance(done.error, Exception):
        done.error.add_note(f"while building {entry.qualified} from {spec}")
        raise done.error
    if done.error is not None:
        raise PluginError(f"building {entry.qualified!r} from {spec} failed: {described(done.error)}") from done.error
    return done.value


def _settings(entry: Entry, spec: ComponentSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings as arguments and as plain data. An entry without settings needs no pydantic model."""
    if not entry.signature.settings and not spec.args and not spec.settings and not hasattr(entry.load(), "Settings"):
        return {}, {}
    from kdplug.host.setting import plain, validated, values_of

    values = values_of(validated(entry, spec))
    return values, plain(values)


def _build_positional(entry: Entry, spec: ComponentSpec) -> Component:
    """Build a callable of a TextBrewer-style map.

    A temperature scheduler with arguments is a factory, which is called first.
    """
    function, inputs = entry.load(), entry.inputs
    if entry.kind.plural == "temperature_schedulers" and (spec.args or spec.settings):
        try:
            built = _built(entry, spec, partial(function, *spec.args, **spec.settings))
        except TypeError as error:
            raise SettingError(f"{entry.qualified} does not take these arguments: {spec}: {error}") from error
        return Component(entry, dict(spec.settings), built, inputs, spec.args)
    settings, dumped = _settings(entry, spec)
    return Component(entry, dumped, partial(function, **settings) if settings else function, inputs)


def _check_slot(entry: Entry, slot: str | None) -> None:
    if slot is None or slot not in entry.kind.slots or entry.kind.fits(entry.inputs, slot):
        return
    slots = entry.kind.slots
    unknown = next((name for name in entry.inputs if name not in slots[slot]), None)
    what = (
        f"requests no feature, so it cannot be used in a {_place(slot)}"
        if unknown is None
        else f"requests input {unknown!r}, which is not available in a {_place(slot)}"
    )
    fits = next((other for other in slots if entry.kind.fits(entry.inputs, other)), None)
    remedy = f"Use it in a {_place(fits)}" if fits else "Its inputs are not available together anywhere in a config"
    raise SignatureError(f"{entry.qualified} {what}. {remedy}")


def _place(slot: str) -> str:
    places = {
        "kd": "kd loss (kd_loss_type, or a term without layers)",
        "match": "match (intermediate_matches, or a term with layers)",
    }
    return places.get(slot, slot)


def check_declarations(entry: Entry) -> None:
    """Raise ``SignatureError`` for a loss with declarations that exclude each other or one of its inputs."""
    loss = entry.load()
    reduction_of(loss)
    if not declares(loss, CLOSED_FORM):
        return
    if named := [name for name in entry.inputs if name in NAMED]:
        raise SignatureError(
            f"{entry.qualified} requests {', '.join(named)} and declares closed_form, but a closed form gets "
            "neither extras nor parameters. Remove the declaration"
        )
    if declares(loss, WHOLE_SEQUENCES):
        raise SignatureError(
            f"{entry.qualified} declares whole_sequences and closed_form, but a closed form computes each item by "
            "itself. Remove one of the declarations"
        )


KNOWN_ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"losses": (*DECLARATIONS, *FACTS, "axis"), "projections": ("axis",)}
)
"""Attributes of a class or function that kdplug reads, by kind."""


def misspelt(owner: Any, known: Collection[str], *, above: str = "torch") -> list[tuple[str, str]]:
    """Return the public attributes with a value that are not in ``known`` but similar to a name in it, with that name.

    Attributes of base classes in the package ``above``, methods and properties do not count.
    """
    classes = (
        [one for one in owner.__mro__ if f"{one.__module__}.".startswith(f"{above}.")]
        if isinstance(owner, type)
        else []
    )
    inherited = {name for one in classes for name in dir(one)} | set(dir(object))
    parts = owner.__mro__ if isinstance(owner, type) else (owner,)
    found = {}
    for name, value in {name: value for one in reversed(parts) for name, value in _attributes(one)}.items():
        is_plain = not name.startswith("_") and not isinstance(value, (FunctionType, classmethod, property, type))
        near = nearest(name, known) if is_plain and name not in inherited and name not in known else None
        if near is not None:
            found[name] = near
    return sorted(found.items())


def _attributes(owner: Any) -> list[tuple[str, Any]]:
    return list(getattr(owner, "__dict__", {}).items())


def closed_form_of(component: Component) -> Any:
    """Return the closed form of a loss with the loss's settings bound, or ``None`` if it does not declare one itself.

    Raises: ``SignatureError`` if its settings differ from those of the loss.
    """
    entry = component.entry
    declared = entry.load()
    if entry.positional or not declares(declared, CLOSED_FORM):
        return None
    rows = getattr(declared, CLOSED_FORM)
    if entry.signature.makes:
        return getattr(component.target, CLOSED_FORM)
    parameters = inspect.signature(rows).parameters.values()
    takes = {one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
    if takes != set(entry.signature.settings):
        raise SignatureError(
            f"the closed form of {entry.qualified} takes the settings {sorted(takes)}, but the loss takes "
            f"{sorted(entry.signature.settings)}: they must be the same"
        )
    return partial(rows, **(component.target.keywords if isinstance(component.target, partial) else {}))
