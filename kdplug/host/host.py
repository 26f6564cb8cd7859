"""One set of plugins and the entries they offer."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import pluggy

from kdplug.contracts.version import VERSION
from kdplug.errors import PluginError, SignatureError, did_you_mean
from kdplug.host import hookspec
from kdplug.host.entry import LOCAL, Entry
from kdplug.host.isolation.plugin_code import described, is_first_process, run_plugin_code, running_plugin
from kdplug.host.kind import HOOK_GROUP, KINDS, Kind
from kdplug.host.metadata import Distribution, unmet
from kdplug.host.name import fold, fold_distribution, is_entry_name, place_of
from kdplug.host.plugin_filter import PluginFilter

_HOOKS = {name: spec for name, spec in vars(hookspec).items() if name.startswith(hookspec.PREFIX)}

LIFE_CYCLE = ("kdplug_run_start", "kdplug_step_end", "kdplug_run_end")
"""Hooks that observe runs."""

ACTING = ("kdplug_step_start", "kdplug_evaluated")
"""Hooks that are called only for a plugin that the config names under ``plugins.hooks``."""


class Implementations:
    """The hook implementations of a plugin, copied to a plain object.

    pluggy compares plugins with ``==``: a plugin whose ``__eq__`` returns true would block the registration of later
    ones.
    """

    def __init__(self, plugin: object) -> None:
        for name, found, _ in _implemented(plugin):
            if name.startswith(hookspec.PREFIX):
                setattr(self, name, found)


def check_arguments(plugin: object) -> None:
    """Raise ``SignatureError`` if an implementation has a parameter that its hook does not pass."""
    for name, function, _ in _implemented(plugin):
        if name not in _HOOKS or not inspect.isroutine(function):
            continue
        given = inspect.signature(_HOOKS[name]).parameters
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            is_asked = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
            if is_asked and parameter.name not in (*given, "self"):
                near = did_you_mean(parameter.name, given) or f" The hook passes {', '.join(given) or 'no arguments'}"
                raise SignatureError(
                    f"{name} ({place_of(function)}) requests {parameter.name!r}, which the hook does not pass.{near}"
                )


def odd_hooks(owner: str, plugin: object) -> list[str]:
    """Return a message for each implementation of a hook plugin that is never called."""
    odd = []
    for name, function, marks in _implemented(plugin):
        if name not in _HOOKS and callable(function) and (name.startswith(hookspec.PREFIX) or marks):
            odd.append(f"{owner} implements {name}, which is not a hook.{did_you_mean(name, _HOOKS)}")
        elif marks.get("wrapper") or marks.get("hookwrapper"):
            odd.append(f"{owner} implements {name} as a wrapper, which is never called. Write a plain function")
        elif name in (*LIFE_CYCLE, *ACTING) and (
            inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function)
        ):
            odd.append(
                f"{owner} implements {name} as a generator or coroutine, which never runs. Write a plain function"
            )
    return odd


def _implemented(plugin: object) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield name, value and pluggy options of each attribute of a module or object."""
    for name in dir(plugin):
        found = getattr(plugin, name, None)
        marks = getattr(found, f"{hookspec.PROJECT}_impl", None)
        yield name, found, marks if isinstance(marks, dict) else {}


_KINDS_BY_GROUP = {kind.group: kind for kind in KINDS.values()}


class PluginWarning(UserWarning):
    """An installed plugin has a problem, or ``KDPLUG_PLUGINS`` names one that does not exist."""


class HookManager(pluggy.PluginManager):
    """Plugin manager that treats every function named ``kdplug_…`` as a hook implementation, marked or not."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        if not name.startswith(hookspec.PREFIX):
            return None
        options = super().parse_hookimpl_opts(plugin, name)
        if options is None and inspect.isroutine(getattr(plugin, name, None)):
            return {
                "wrapper": False,
                "hookwrapper": False,
                "optionalhook": False,
                "tryfirst": False,
                "trylast": False,
                "specname": None,
            }
        return options


@dataclass
class HookPlugin:
    """A module or object of the group ``kdplug.plugins``: ``found``, or the ``error`` that importing it raised."""

    dist: Distribution
    name: str
    target: str
    error: BaseException | None = None
    found: object = None

    @property
    def qualified(self) -> str:
        return f"{self.dist.name}:{self.name}"


class Host:
    """One set of plugins and the entries they offer.

    The constructor reads names only and holds back its warnings until they are released. ``load_hooks`` imports hook
    plugins once. ``left_out`` are the ``blocked`` plugins, disabled by ``KDPLUG_PLUGINS``, and the ``incompatible``
    ones, which require another version of kdplug.
    """

    def __init__(self, dists: Iterable[Distribution] = (), plugin_filter: PluginFilter | None = None) -> None:
        self.plugin_filter = plugin_filter or PluginFilter()
        self.dists = sorted(dists, key=lambda dist: fold_distribution(dist.name))
        self.blocked = [dist for dist in self.dists if not self.plugin_filter.lets_in(dist.name)]
        self.incompatible = [dist for dist in self.dists if unmet(dist.requires) and dist not in self.blocked]
        self.left_out = [*self.blocked, *self.incompatible]
        self.entries: dict[str, dict[str, list[Entry]]] = {plural: {} for plural in KINDS}
        self.hook_plugins: list[HookPlugin] = []
        self.problems: list[str] = []
        self.side_effects: list[tuple[str, str]] = []
        self._untold: list[str] = []
        self._holds_back = True
        self.manager = HookManager(hookspec.PROJECT)
        self.manager.add_hookspecs(hookspec)
        for dist in self.dists:
            self._admit(dist)
        self._waiting = list(self.hook_plugins)
        self._unheard = [
            dist for dist in self.incompatible if any(point.group == HOOK_GROUP for point in dist.entry_points)
        ]
        for message in self.plugin_filter.unknown(dist.name for dist in self.dists):
            self.report(message)

    def _admit(self, dist: Distribution) -> None:
        if dist in self.left_out:
            return
        if dist.others:
            is_one_version = all(other.startswith(f"{dist.version} in ") for other in dist.others)
            times = f"{len(dist.others) + 1} {'times' if is_one_version else 'versions'}"
            self.report(
                f"{dist.name} is installed {'' if is_one_version else 'in '}{times}: {dist.place} is used, "
                f"not {' and '.join(dist.others)}. Remove one of them: pip uninstall {dist.name} removes the one that is used"
            )
        editable = _editable(dist)
        for point in dist.entry_points:
            if point.group == HOOK_GROUP:
                self.hook_plugins.append(HookPlugin(dist, point.name, point.value))
            elif (kind := _KINDS_BY_GROUP.get(point.group)) is not None:
                self._add(Entry(kind, point.name, dist.name, dist.version, point.value, "metadata", editable))

    def _collect(self, plugin: object, dist: Distribution) -> None:
        """Add the entries of a hook plugin; if it raises, none of them is added."""
        offered = [
            Entry(kind, name, dist.name, dist.version, target, "hook", _editable(dist))
            for kind in KINDS.values()
            for name, target in getattr(plugin, kind.hook, tuple)()
        ]
        for entry in offered:
            if not isinstance(entry.name, str) or not (isinstance(entry.target, str) or callable(entry.target)):
                raise TypeError(f"{entry.kind.hook} must return pairs of a name and a callable, got {entry.name!r}")
        for entry in offered:
            self._add(entry)

    def _add(self, entry: Entry) -> None:
        if not is_entry_name(entry.name):
            self.report(
                f"{entry.owner} offers a {entry.kind.noun} named {entry.name!r}, which is not a valid entry name "
                "(letters, digits, '_', '-', '.'). This entry is ignored"
            )
            return
        peers = self.entries[entry.kind.plural].setdefault(fold(entry.name), [])
        same_name = [peer for peer in peers if peer.dist == entry.dist and peer.origin != "local"]
        other = next((peer for peer in same_name if peer.slot == entry.slot), None)
        if other is None:
            peers.append(entry)
        elif not _is_same(other.target, entry.target):
            self.report(
                f"{entry.owner} offers the {entry.kind.noun} {entry.name!r} twice: {other.target} and {entry.target}. "
                "The first one is used"
            )

    def put(self, kind: Kind, name: str, target: Callable[..., Any], *, positional: bool, slot: str | None) -> Entry:
        """Register a callable in this process. It replaces one registered earlier under the same name and slot.

        A callable registered by plugin code belongs to that plugin, so that importing a plugin never changes the
        meaning of a name.

        Raises: ``PluginError`` if ``name`` is not a valid entry name or ``target`` is not callable.
        """
        if not isinstance(name, str) or not is_entry_name(name):
            raise PluginError(f"{name!r} is not a valid {kind.noun} name: use letters, digits, '_', '-' and '.'")
        if not callable(target):
            raise PluginError(f"{name!r}: a {kind.noun} must be callable, got {target!r}")
        owner = running_plugin()
        dist = next((dist for dist in self.dists if dist.name == owner), None)
        if dist is not None:
            entry = Entry(kind, name, dist.name, dist.version, target, "hook", positional=positional, slot=slot)
            self._add(entry)
            return entry
        self.take_out(kind, name, slot)
        entry = Entry(kind, name, LOCAL, "", target, "local", positional=positional, slot=slot)
        self.entries[kind.plural].setdefault(fold(name), []).append(entry)
        return entry

    def take_out(self, kind: Kind, name: str, slot: str | None) -> bool:
        """Remove the callable that ``put`` registered under ``name`` for ``slot``. Return whether there was one."""
        offered = self.entries[kind.plural].get(fold(name), [])
        kept = [entry for entry in offered if entry.origin != "local" or entry.slot != slot]
        if kept:
            self.entries[kind.plural][fold(name)] = kept
        else:
            self.entries[kind.plural].pop(fold(name), None)
        return len(kept) < len(offered)

    def reason(self, dist: Distribution) -> str:
        """Return why a distribution is in ``left_out``: the value of ``KDPLUG_PLUGINS``, or its unmet requirement."""
        if dist in self.blocked:
            return f"KDPLUG_PLUGINS={self.plugin_filter.text!r}"
        return f"needs {unmet(dist.requires)}, but this is kdplug {VERSION}: pip install --upgrade kdplug {dist.name}"

    def load_hooks(self) -> None:
        """Import every hook plugin once. A plugin that raises is reported and skipped.

        Raises: ``PluginError`` under ``KDPLUG_STRICT=1``.
        """
        if self.plugin_filter.strict:
            for message in (*self.problems, *(text for _, text in self.side_effects)):
                raise PluginError(message)
        while self._unheard:
            dist = self._unheard.pop(0)
            self.report(f"the hooks of {dist.name} {dist.version} are not called: {dist.name} {self.reason(dist)}")
        while self._waiting:
            plugin = self._waiting.pop(0)
            source = f"{plugin.target}, {plugin.dist.name} {plugin.dist.version}"
            done = run_plugin_code(
                partial(self._load_hook, plugin),
                f"importing hook plugin {plugin.qualified!r} ({source})",
                plugin.dist.name,
                "import",
                self.report_side_effect,
            )
            if done.error is not None:
                plugin.error = done.error
                self.report(
                    f"hook plugin {plugin.qualified!r} ({source}) failed: {described(done.error)}. "
                    f"To run without this plugin, set KDPLUG_PLUGINS=-{plugin.dist.name}"
                )
            for message in done.value or []:
                self.report(message)

    def _load_hook(self, plugin: HookPlugin) -> list[str]:
        """Import and register one hook plugin completely or not at all. Return its problems."""
        found = _import(plugin.target)
        if found is None:
            raise TypeError(f"{plugin.target} is None and has no hooks")
        check_arguments(found)
        odd = odd_hooks(plugin.qualified, found)
        try:
            self.manager.register(Implementations(found), name=plugin.qualified)
            self._collect(found, plugin.dist)
        except BaseException:
            if self.manager.has_plugin(plugin.qualified):
                self.manager.unregister(name=plugin.qualified)
            raise
        plugin.found = found
        return odd

    def report_problems(self) -> None:
        """Release the warnings held back by the constructor: once, or at each call if they are errors.

        Raises: ``PluginError`` under ``KDPLUG_STRICT=1``.
        """
        self._holds_back = False
        while self._untold:
            self.notice(self._untold[0])
            self._untold.pop(0)

    def report(self, message: str) -> None:
        """Store a problem and pass it to ``notice``."""
        self.problems.append(message)
        self.notice(message)

    def report_side_effect(self, dist: str, doing: str, changed: str) -> None:
        """Store that code of ``dist`` changed global state and pass the message to ``notice``."""
        fix = "" if dist == LOCAL else f". To run without this plugin, set KDPLUG_PLUGINS=-{dist}"
        message = f"{doing} changed global state: {changed}{fix}"
        self.side_effects.append((dist, message))
        self.notice(message)

    def notice(self, message: str) -> None:
        """Warn on the first process of a run, or raise under ``KDPLUG_STRICT=1``."""
        if self._holds_back:
            self._untold.append(message)
        elif self.plugin_filter.strict:
            raise PluginError(message)
        elif is_first_process():
            warnings.warn(message, PluginWarning, stacklevel=3)


def _is_same(one: object, other: object) -> bool:
    """Return whether two targets are the same, without calling ``__eq__`` of a plugin's callable."""
    return one is other or (isinstance(one, str) and isinstance(other, str) and one == other)


def _editable(dist: Distribution) -> Callable[[], bool]:
    return partial(getattr, dist, "editable", False)


def _import(target: str) -> Any:
    module, _, attributes = target.partition(":")
    found: Any = import_module(module.strip())
    for attribute in filter(None, attributes.strip().split(".")):
        found = getattr(found, attribute)
    return found
