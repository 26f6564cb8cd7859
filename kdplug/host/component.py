"""An entry with its settings: what a config's component becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kdplug.errors import PluginError, SettingError, SignatureError
from kdplug.host.entry import Entry
from kdplug.host.plugin_code import described, run_plugin_code
from kdplug.host.spec import ComponentSpec


@dataclass(frozen=True, slots=True)
class Component:
    """An entry with its settings bound.

    ``target`` is called by position with the values of ``inputs``, in that order. Where the entry is a class, ``target`` is
    an instance of it; a task or a cache codec has no inputs, and its ``target`` is the object itself.
    """

    entry: Entry
    settings: dict[str, Any]
    target: Callable[..., Any]
    inputs: tuple[str, ...]
    args: tuple[Any, ...] = ()

    def qualified_spec(self) -> Any:
        """The component as plain data, with its qualified name and every setting."""
        if self.args:
            return [self.entry.qualified, *self.args, *([self.settings] if self.settings else [])]
        return {"name": self.entry.qualified, **self.settings}

    def __call__(self, **values: Any) -> Any:
        """Call the target with those of ``values`` that it asks for."""
        return self.target(*(values[name] for name in self.inputs))


def build_component(entry: Entry, spec: ComponentSpec, site: str | None = None) -> Component:
    """Load ``entry``, validate its settings and bind them.

    Raises: ``BrokenEntryError``, ``SignatureError``, ``SettingError``.
    """
    if entry.positional:
        return _build_positional(entry, spec)
    _check_site(entry, site)
    target, signature = entry.load(), entry.signature
    settings, dumped = _settings(entry, spec)
    if signature.makes:
        return Component(entry, dumped, _built(entry, spec, partial(target, **settings)), signature.inputs)
    return Component(entry, dumped, partial(target, **settings) if settings else target, signature.inputs)


def _built(entry: Entry, spec: ComponentSpec, make: Callable[[], Any]) -> Any:
    done = run_plugin_code(make, f"building {entry.qualified!r} from {spec}", entry.dist, "build")
    if isinstance(done.error, Exception):
        done.error.add_note(f"while building {entry.qualified} from {spec}")
        raise done.error
    if done.error is not None:
        raise PluginError(f"building {entry.qualified!r} from {spec} failed: {described(done.error)}") from done.error
    return done.value


def _settings(entry: Entry, spec: ComponentSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings as the callable takes them and as plain data, without a pydantic model where there are none."""
    if not entry.signature.settings and not spec.args and not spec.settings and not hasattr(entry.load(), "Settings"):
        return {}, {}
    from kdplug.host.setting import plain, validated, values_of

    values = values_of(validated(entry, spec))
    return values, plain(values)


def _build_positional(entry: Entry, spec: ComponentSpec) -> Component:
    """A callable from a TextBrewer-style map: called by position; a temperature scheduler with arguments is built first."""
    function, inputs = entry.load(), entry.inputs
    if entry.kind.plural == "temperature_schedulers" and (spec.args or spec.settings):
        try:
            built = _built(entry, spec, partial(function, *spec.args, **spec.settings))
        except TypeError as error:
            raise SettingError(f"{entry.qualified} does not take these arguments: {spec}: {error}") from error
        return Component(entry, dict(spec.settings), built, inputs, spec.args)
    settings, dumped = _settings(entry, spec)
    return Component(entry, dumped, partial(function, **settings) if settings else function, inputs)


def _check_site(entry: Entry, site: str | None) -> None:
    if site is None or site not in entry.kind.sites:
        return
    sites = entry.kind.sites
    for name in entry.inputs:
        if name not in sites[site]:
            fits = next((other for other in sites if set(entry.inputs) <= set(sites[other])), None)
            raise SignatureError(
                f"{entry.qualified} asks for input {name!r}, which a {_place(site)} does not get. "
                + (f"It can stand in a {_place(fits)}" if fits else "No place gets all of its inputs")
            )


def _place(site: str) -> str:
    return {"kd": "kd loss (kd_loss_type)", "match": "match (intermediate_matches)"}.get(site, site)
