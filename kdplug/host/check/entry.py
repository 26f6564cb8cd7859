"""Checks of a plugin's entries and hooks: import them and read their signatures."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from kdplug.errors import BrokenEntryError, KdplugError, SignatureError
from kdplug.host.check.finding import Finding, place_of_error
from kdplug.host.component import KNOWN_ATTRIBUTES, build_component, check_declarations, misspelt
from kdplug.host.entry import Entry
from kdplug.host.host import HookPlugin, Host
from kdplug.host.isolation.plugin_code import described
from kdplug.host.name import place_of
from kdplug.host.setting import in_words
from kdplug.host.spec import ComponentSpec


def check_entry(entry: Entry) -> Iterator[Finding]:
    """Import an entry and yield its problems. If the import or the signature fails, the other checks are skipped."""
    try:
        target = entry.load()
    except BrokenEntryError as error:
        yield _broken(entry, error.__cause__ or error)
        return
    where = place_of(target) or str(entry.target)
    try:
        _ = entry.signature
        _ = entry.settings
    except SignatureError as error:
        yield Finding(entry.dist, "signature", "error", str(error), where, f"correct its signature in {where}")
        return
    yield from contradictory(entry, where)
    yield from unread(entry, where)
    yield from nowhere(entry, where)
    faults = list(bad_defaults(entry, where))
    yield from faults or unbuildable(entry, where)
    yield from undocumented(entry, where)


def contradictory(entry: Entry, where: str) -> Iterator[Finding]:
    """Yield a finding for a loss with declarations that exclude each other, which no objective accepts."""
    if entry.kind.plural != "losses":
        return
    try:
        check_declarations(entry)
    except SignatureError as error:
        fix = f"correct its declarations in {where}"
        yield Finding(entry.dist, "declarations", "error", str(error), where, fix)


def unread(entry: Entry, where: str) -> Iterator[Finding]:
    """Yield a finding for each attribute that kdplug does not read and whose name is similar to one that it reads."""
    target: Any = entry.load()
    while isinstance(target, functools.partial):
        target = target.func
    for name, near in misspelt(target, KNOWN_ATTRIBUTES.get(entry.kind.plural, ())):
        what = f"{entry.name} sets {name}, which kdplug does not read. Did you mean {near!r}?"
        yield Finding(
            entry.dist, "unread", "warning", what, where, f"rename {name} in {where}, to {near} or to _{name}"
        )


def nowhere(entry: Entry, where: str) -> Iterator[Finding]:
    """Yield a finding for a loss whose inputs are not available together anywhere in a config."""
    if not any(entry.kind.fits(entry.inputs, slot) for slot in entry.kind.slots):
        places = "; ".join(f"{name}: {', '.join(known)}" for name, known in entry.kind.slots.items())
        inputs = ", ".join(entry.inputs)
        what = f"{entry.name} requests {inputs}, which are not available together anywhere in a config ({places})"
        yield Finding(
            entry.dist,
            "inputs",
            "error",
            what,
            where,
            "request inputs that are available together, or split the loss in two",
        )


def bad_defaults(entry: Entry, where: str) -> Iterator[Finding]:
    """Yield a finding for each default outside its own bounds.

    It would fail only when a resolved config, which contains every default, is read.

    """
    fields = {field.alias or name: field for name, field in entry.settings.model_fields.items()}
    given = {name: field.default for name, field in fields.items() if field.default is not PydanticUndefined}
    try:
        entry.settings.model_validate(given)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            if one["type"] != "missing" and one["loc"] and one["loc"][0] in given:
                what = f"the default of {entry.name}'s setting {one['loc'][0]!r} {in_words(one)}"
                fix = f"change the default or its bounds in {where}"
                yield Finding(entry.dist, "default", "error", what, where, fix)


def unbuildable(entry: Entry, where: str) -> Iterator[Finding]:
    """Yield a finding for a class that cannot be built from its defaults.

    For example, it does not call ``super().__init__()``.
    """
    model = entry.settings
    if not entry.signature.makes or any(field.is_required() for field in model.model_fields.values()):
        return
    try:
        built = build_component(entry, ComponentSpec(entry.qualified)).target
    except KdplugError as error:
        yield Finding(entry.dist, "unbuildable", "error", f"{entry.name}: {error}", where, f"correct {where}")
    except Exception as error:
        place = place_of_error(error) or where
        what = f"{entry.name} cannot be built from its defaults: {described(error)}"
        yield Finding(entry.dist, "unbuildable", "error", what, place, f"correct {place}")
    else:
        yield from _incomplete(entry, built, where)


def _incomplete(entry: Entry, built: Any, where: str) -> Iterator[Finding]:
    from kdplug.contracts.cache_codec import CacheCodec
    from kdplug.contracts.evaluator import Evaluator
    from kdplug.contracts.student_transform import StudentTransform
    from kdplug.contracts.task import Task

    protocols: dict[str, type] = {
        "tasks": Task,
        "cache_codecs": CacheCodec,
        "student_transforms": StudentTransform,
        "evaluators": Evaluator,
    }
    protocol = protocols.get(entry.kind.plural)
    if protocol is not None and not isinstance(built, protocol):
        lacking = [name for name in members(protocol) if not hasattr(built, name)]
        what = f"{entry.name} is not a {entry.kind.noun}: it lacks {', '.join(lacking)}"
        yield Finding(entry.dist, "incomplete", "error", what, where, f"add {', '.join(lacking)} in {where}")


def members(protocol: type) -> list[str]:
    """Return the names of the members that a protocol requires."""
    return [name for name in vars(protocol) if name == "__call__" or not name.startswith("_")]


def undocumented(entry: Entry, where: str) -> Iterator[Finding]:
    """Yield a finding for an entry without a docstring, which ``kdplug plugins show`` would display."""
    target: Any = entry.load()
    while isinstance(target, functools.partial):
        target = target.func
    written = vars(target).get("__doc__") if inspect.isclass(target) else getattr(target, "__doc__", None)
    if not (written or "").strip():
        what = f"{entry.name} has no docstring for 'kdplug plugins show'"
        yield Finding(entry.dist, "docstring", "warning", what, where, f"add a docstring in {where}")


def check_hooks(host: Host) -> Iterator[Finding]:
    """Yield problems with the hook plugins of a host with one distribution, and with the names of its entries."""
    host.load_hooks()
    failed = [plugin for plugin in host.hook_plugins if plugin.error is not None]
    yield from map(_failed, failed)
    (dist,) = host.dists
    for problem in host.problems:
        if not any(problem.startswith(f"hook plugin {plugin.qualified!r} ") for plugin in failed):
            plugin = next((one for one in host.hook_plugins if problem.startswith(one.qualified)), None)
            where = plugin.target if plugin is not None else f"entry points of {dist.name}"
            fix = f"correct {where}" + ("" if plugin is not None else f", then {_install(dist.name)}")
            yield Finding(dist.name, "hook" if plugin is not None else "name", "error", problem, where, fix)


def side_effects(host: Host) -> Iterator[Finding]:
    """Yield a finding for each change of global state by plugin code that was imported, read or built."""
    for dist, message in host.side_effects:
        where = message.partition("(")[2].partition(",")[0] or dist
        fix = "change the state only inside the function that needs the change, and restore it afterwards"
        yield Finding(dist, "side-effect", "error", message, where, fix)


def _failed(plugin: HookPlugin) -> Finding:
    error = plugin.error
    assert error is not None
    where = place_of_error(error) or plugin.target
    what = f"hook plugin {plugin.name!r} failed, so none of its hooks is called: {described(error)}"
    return Finding(plugin.dist.name, "hook", "error", what, where, _mend_of(error, plugin.target, plugin.dist.name))


def _broken(entry: Entry, error: BaseException) -> Finding:
    what = f"{entry.kind.noun} {entry.name!r} fails to load: {described(error)}"
    where = place_of_error(error) or str(entry.target)
    return Finding(entry.dist, "broken", "error", what, where, _mend_of(error, str(entry.target), entry.dist))


def _mend_of(error: BaseException, target: str, dist: str) -> str:
    module = target.partition(":")[0].strip()
    if isinstance(error, SignatureError):
        return f"correct the signature in {module}"
    wrong_target = place_of_error(error) is None
    if isinstance(error, ModuleNotFoundError) and error.name and not f"{module}.".startswith(f"{error.name}."):
        top = error.name.partition(".")[0]
        return f"install the package of module {top!r} and add it to the dependencies of {dist}"
    if wrong_target and isinstance(error, (ModuleNotFoundError, AttributeError, TypeError)):
        return f"correct {target!r} in the entry points of its pyproject.toml, then {_install(dist)}"
    return f"show the whole error with  python -c 'import {module}'  or disable the plugin: KDPLUG_PLUGINS=-{dist}"


def _install(dist: str) -> str:
    return f"reinstall it: pip install --force-reinstall {dist} (if it is editable: pip install -e . in its folder)"
