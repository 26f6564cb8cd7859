"""Process state that a run depends on: saved before plugin code runs and restored afterwards.

State that affects results, hides messages or moves files is restored, unless a plugin may need the changed value. State
that a library may need (an entry at the front of ``sys.path``) is only reported. Only loaded modules are examined:
nothing here imports torch or numpy.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

UNKNOWN = object()
"""Placeholder for a value that cannot be read, or for an unknown default."""

_DECISIVE = frozenset(
    (
        "CUBLAS_WORKSPACE_CONFIG",
        "CUDA_VISIBLE_DEVICES",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "MKL_NUM_THREADS",
        "NVIDIA_TF32_OVERRIDE",
        "OMP_NUM_THREADS",
        "PYTHONHASHSEED",
        "RANK",
        "WORLD_SIZE",
    )
)
_DECISIVE_PREFIXES = ("ACCELERATE_", "KDPLUG_")


@dataclass(frozen=True, slots=True)
class Part:
    """One value of a module's global state.

    ``read`` takes the module, ``write`` the module and a value; a part without ``write`` is only reported. ``fresh`` is
    the value of a newly imported module. A ``silent`` part is restored but not reported, since another part reports the
    change. For random generators, ``renew`` reseeds a newly imported one, and ``drew`` takes the module, the state
    before and the state now and returns whether numbers were drawn without setting a seed.
    """

    name: str
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], object] | None = None
    fresh: Any = UNKNOWN
    same: Callable[[Any, Any], bool] = operator.eq
    silent: bool = False
    renew: Callable[[Any], object] | None = None
    drew: Callable[[Any, Any, Any], bool] | None = None

    def value(self, module: Any) -> Any:
        """Return the current value, or ``UNKNOWN`` if it cannot be read or ``module`` is ``None``."""
        try:
            return UNKNOWN if module is None else self.read(module)
        except Exception:  # a version without this state, or one that cannot read a mixed setting
            return UNKNOWN

    def only_drew(self, module: Any, before: Any) -> bool:
        """Return whether this is a random generator from which numbers were drawn since ``before``."""
        return self.drew is not None and self.drew(module, before, self.value(module))

    def is_at(self, module: Any, wanted: Any) -> bool:
        """Return whether the current value is ``wanted``."""
        now = self.value(module)
        return now is not UNKNOWN and bool(self.same(wanted, now))


Table = tuple[str, tuple[Part, ...]]
"""Name of a module and its parts, in the order of restoring them."""


@dataclass(slots=True)
class Changes:
    """Names of changed parts: ``restored``, or ``left`` changed."""

    restored: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class Snapshot:
    """Saved state of the loaded modules in ``tables``."""

    def __init__(self, tables: Iterable[Table]) -> None:
        self._before = [
            (name, sys.modules.get(name), part, part.value(sys.modules.get(name)))
            for name, parts in tables
            for part in parts
        ]

    def restore(self, changes: Changes, *, reports_draws: bool = True) -> None:
        """Restore changed parts and add their names to ``changes``.

        A random generator that was only drawn from is reported only with ``reports_draws``, since libraries draw on
        import.
        """
        wanted = list(self._wanted())
        changed = [one for one in wanted if not one[0].is_at(*one[1:])]
        if not changed:
            return
        named = [one for one in changed if not one[0].silent and (reports_draws or not one[0].only_drew(*one[1:]))]
        for part, module, value in wanted:
            if part.write is not None and not part.is_at(module, value):  # writing one part may change a later one
                with suppress(Exception):  # a part that cannot be written is reported as not restored
                    part.write(module, value)
        for part, module, value in named:
            (changes.restored if part.is_at(module, value) else changes.left).append(part.name)

    def _wanted(self) -> Iterator[tuple[Part, Any, Any]]:
        """Yield each part, its module and its saved value, or its default if the module is new."""
        for name, module, part, value in self._before:
            if module is not None and value is not UNKNOWN:
                yield part, module, value
            elif module is None and name in sys.modules:
                if part.renew is not None:
                    part.renew(sys.modules[name])
                if part.fresh is not UNKNOWN:
                    yield part, sys.modules[name], part.fresh


class Functions:
    """Functions and classes of torch and kdplug that a run may call.

    A replacement is reported but kept, since the plugin may rely on it. ``torch.compile`` and ``torch.manual_seed`` are
    ignored: other libraries and torch itself wrap them, and neither computes a value.
    """

    def __init__(self) -> None:
        self._before = [(path, owner, dict(vars(owner))) for path, owner in _owners()]

    def replaced(self) -> list[str]:
        """Return the paths of the functions and classes that were replaced."""
        return [
            f"{path}.{name}"
            for path, owner, before in self._before
            for name, function in before.items()
            if callable(function) and vars(owner).get(name) is not function and f"{path}.{name}" not in _WRAPPED
        ]


_WRAPPED = ("torch.compile", "torch.manual_seed")


def _owners() -> Iterator[tuple[str, Any]]:
    for path in ("torch", "torch.nn.functional"):
        if path in sys.modules:
            yield path, sys.modules[path]
    torch = sys.modules.get("torch")
    if torch is not None:
        yield from (("torch.Tensor", torch.Tensor), ("torch.nn.Module", torch.nn.Module))
    for path, module in list(sys.modules.items()):
        if path.partition(".")[0] == "kdplug" and module is not None:
            yield path, module
            for name, found in list(vars(module).items()):
                if isinstance(found, type) and found.__module__ == path:
                    yield f"{path}.{name}", found


def _environment(module: Any) -> dict[str, str]:
    """Return the variables that affect devices, processes, arithmetic or plugins. A library may change others."""
    return {
        name: value
        for name, value in module.environ.items()
        if name in _DECISIVE or name.startswith(_DECISIVE_PREFIXES)
    }


def _set_environment(module: Any, wanted: dict[str, str]) -> None:
    for name in _environment(module).keys() - wanted.keys():
        del module.environ[name]
    module.environ.update(wanted)


def _is_first(before: list[str], now: list[str]) -> bool:
    """Return whether ``before`` is still the start of the list: later entries hide no module."""
    return now[: len(before)] == before


def _hides_ours(rule: tuple[Any, ...]) -> bool:
    """Return whether a filter hides all kdplug warnings or turns them into errors."""
    action, message, category, module, _ = rule
    is_blanket = message is None and module is None and action in ("ignore", "error")
    return is_blanket and any(issubclass(ours, category) for ours in (UserWarning, RuntimeWarning))


def _keeps_filters(before: list[tuple[Any, ...]], now: list[tuple[Any, ...]]) -> bool:
    """Return whether all filters of ``before`` remain and no new one hides kdplug warnings."""
    return all(rule in now for rule in before) and not any(_hides_ours(rule) for rule in now if rule not in before)


def _set_filters(module: Any, wanted: list[tuple[Any, ...]]) -> None:
    """Restore ``wanted``, after the filters that a library added for its own warnings."""
    own = [rule for rule in module.filters if rule not in wanted and not _hides_ours(rule)]
    module.filters[:] = [*own, *wanted]
    with module.catch_warnings():  # leaving it resets the record of warnings already shown
        pass


def _start_method(module: Any) -> str:
    """Return the start method, or the default, which multiprocessing fixes on first use."""
    method: str = module.get_start_method(allow_none=True) or module.get_all_start_methods()[0]
    return method


PROCESS: tuple[Table, ...] = (
    (
        "os",
        (
            Part("the working directory", lambda os: os.getcwd(), lambda os, folder: os.chdir(folder)),
            Part("environment variables of devices or processes", _environment, _set_environment),
        ),
    ),
    (
        "sys",
        (
            Part("sys.stdout", lambda sys: sys.stdout, lambda sys, old: setattr(sys, "stdout", old), same=operator.is_),
            Part("sys.stderr", lambda sys: sys.stderr, lambda sys, old: setattr(sys, "stderr", old), same=operator.is_),
            Part(
                "the recursion limit",
                lambda sys: sys.getrecursionlimit(),
                lambda sys, limit: sys.setrecursionlimit(limit),
                same=operator.le,
            ),
            Part(
                "sys.excepthook",
                lambda sys: sys.excepthook,
                lambda sys, old: setattr(sys, "excepthook", old),
                same=operator.is_,
            ),
            Part("the front of sys.path", lambda sys: list(sys.path), same=_is_first),
        ),
    ),
    (
        "warnings",
        (
            Part("warning filters", lambda warnings: list(warnings.filters), _set_filters, same=_keeps_filters),
            Part(
                "warnings.showwarning",
                lambda warnings: warnings.showwarning,
                lambda warnings, old: setattr(warnings, "showwarning", old),
                same=operator.is_,
            ),
        ),
    ),
    (
        "logging",
        (
            Part(
                "logging.disable",
                lambda logging: logging.root.manager.disable,
                lambda logging, level: logging.disable(level),
                fresh=0,
            ),
        ),
    ),
    (
        "multiprocessing",
        (
            Part(
                "the start method of multiprocessing",
                _start_method,
                lambda module, method: module.set_start_method(method, force=True),
            ),
        ),
    ),
)
"""State that does not affect arithmetic. A hook may change it intentionally, an import may not."""
