"""TextBrewer's module-level maps as live views of the registries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from kdplug.contracts.loss import LossSum
from kdplug.contracts.vocabulary import INPUTS
from kdplug.errors import (
    ConfigError,
    EntryError,
    OutputsError,
    PluginError,
    SignatureError,
    UnknownEntryError,
    did_you_mean,
)
from kdplug.host.active import active
from kdplug.host.component import Component
from kdplug.host.entry import Entry
from kdplug.host.registry import Registry, losses, projections, temperature_schedulers, weight_schedulers
from kdplug.host.spec import parse_spec

_NEUTRAL: dict[str, Any] = {
    "teacher_sparse": None,
    "mask": None,
    "student_mask": None,
    "teacher_mask": None,
    "labels": None,
    "progress": 0.0,
    "step": 0,
    "total_steps": 0,
    "epoch": 0,
    "draw_seed": 0,
}


class TextBrewerMap(MutableMapping[str, Callable[..., Any]]):
    """A registry as a dictionary of callables with TextBrewer's signatures.

    Entries of plugins appear here, and callables added here can be named in a config. Looking up a name imports that
    entry. Iterating over a map of losses imports all of them, since only the signature distinguishes a kd loss from a
    match loss; entries that fail to import are skipped.
    """

    def __init__(self, name: str, registry: Registry, slot: str | None, wrap: Callable[[Entry, Any], Any]) -> None:
        self._name = name
        self._registry = registry
        self._site = slot
        self._wrap = wrap

    def __repr__(self) -> str:
        return f"<kdplug.{self._name}: {', '.join(self)}>"

    def __getitem__(self, name: str) -> Callable[..., Any]:
        spec = parse_spec(name)
        return self._wrap(self._entry(spec.name), spec)  # type: ignore[no-any-return]

    def __setitem__(self, name: str, target: Callable[..., Any]) -> None:
        active().put(self._registry.kind, name, target, positional=True, slot=self._site)

    def __delitem__(self, name: str) -> None:
        entry = self._entry(name)
        if not active().take_out(self._registry.kind, entry.name, entry.slot):
            raise PluginError(
                f"{self._name}: {entry.qualified} comes from an installed package and cannot be deleted here. "
                f"To disable the package, set KDPLUG_PLUGINS=-{entry.dist}"
            )

    def __contains__(self, name: object) -> bool:
        try:
            bare = parse_spec(name).name
            return bare in self._registry and self._fits(self._registry.entry(bare, self._site, quiet=True))
        except (ConfigError, EntryError, SignatureError):
            return False

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._registry.names() if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _entry(self, name: str) -> Entry:
        entry = self._registry.entry(name, self._site)
        if not self._fits(entry):
            raise UnknownEntryError(
                f"{name!r} is not in {self._name}: {entry.qualified} belongs in another map, since it takes "
                f"{', '.join(entry.inputs)}"
            )
        return entry

    def _fits(self, entry: Entry) -> bool:
        if self._site is None:
            return True
        if entry.slot is not None:
            return entry.slot == self._site
        return entry.kind.fits(entry.inputs, self._site)


class TextBrewerCallable:
    """A component called by position, as in TextBrewer."""

    def __init__(self, component: Component) -> None:
        if component.widths:
            raise SignatureError(
                f"{component.entry.qualified} takes {' and '.join(component.widths)} when it is built, which TextBrewer's "
                "maps do not pass. Use this loss in kdplug.GeneralDistiller or kdplug.Objective"
            )
        self.component = component
        self.__name__ = component.entry.name
        self.__doc__ = component.entry.load().__doc__

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.component.entry.qualified}>"

    def _call(self, **values: Any) -> Any:
        for name in values.keys() - INPUTS.keys():
            raise SignatureError(
                f"{self!r} got {name!r}, which is not an input of plugins.{did_you_mean(name, INPUTS)}"
            )
        if "example_ids" in self.component.inputs and values.get("example_ids") is None:
            raise OutputsError(
                f"{self.component.entry.qualified} requests example_ids. Give each batch a key 'example_ids' with one integer per "
                "example, its index in the data; in a direct call, pass example_ids="
            )
        result = self.component(**{**_NEUTRAL, **values})
        return result.value if isinstance(result, LossSum) else result


class KdLoss(TextBrewerCallable):
    """``(logits_S, logits_T, temperature=1)``; further inputs are passed by name."""

    def __call__(self, logits_S: Any, logits_T: Any, temperature: Any = 1.0, **others: Any) -> Any:
        return self._call(student_logits=logits_S, teacher_logits=logits_T, temperature=temperature, **others)


class MatchLoss(TextBrewerCallable):
    """``(S, T, mask=None)``; further inputs are passed by name."""

    def __call__(self, S: Any, T: Any, mask: Any = None, **others: Any) -> Any:
        return self._call(**{"student_features": S, "teacher_features": T, "mask": mask, "temperature": 1.0, **others})


class ProjectionMaker(TextBrewerCallable):
    """``(dim_in, dim_out)``."""

    def __call__(self, dim_in: int, dim_out: int) -> Any:
        return self._call(in_dim=dim_in, out_dim=dim_out)


class WeightSchedule(TextBrewerCallable):
    """``(x)``, where ``x`` is the completed fraction of the run."""

    def __call__(self, x: float) -> Any:
        return self._call(progress=x)


class TemperatureSchedule(TextBrewerCallable):
    """``(logits_S, logits_T, base_temperature)``."""

    def __call__(self, logits_S: Any, logits_T: Any, base_temperature: Any) -> Any:
        return self._call(student_logits=logits_S, teacher_logits=logits_T, temperature=base_temperature)


def _direct(form: type[TextBrewerCallable], registry: Registry, slot: str | None) -> Callable[[Entry, Any], Any]:
    def wrap(entry: Entry, spec: Any) -> Any:
        if entry.positional and not spec.args and not spec.settings:
            return entry.load()
        return form(registry.build(spec, slot))

    return wrap


def _temperature(entry: Entry, spec: Any) -> Any:
    """Return a scheduler, or a factory if the entry has required settings and none are given."""
    if entry.positional and not spec.args and not spec.settings:
        return entry.load()
    needs = any(setting.required for setting in entry.signature.settings.values())
    if needs and not spec.args and not spec.settings:
        return lambda *args, **settings: TemperatureSchedule(
            temperature_schedulers.build([entry.qualified, *args, settings])
        )
    return TemperatureSchedule(temperature_schedulers.build(spec))


KD_LOSS_MAP = TextBrewerMap("KD_LOSS_MAP", losses, "kd", _direct(KdLoss, losses, "kd"))
MATCH_LOSS_MAP = TextBrewerMap("MATCH_LOSS_MAP", losses, "match", _direct(MatchLoss, losses, "match"))
PROJ_MAP = TextBrewerMap("PROJ_MAP", projections, None, _direct(ProjectionMaker, projections, None))
WEIGHT_SCHEDULER = TextBrewerMap(
    "WEIGHT_SCHEDULER", weight_schedulers, None, _direct(WeightSchedule, weight_schedulers, None)
)
TEMPERATURE_SCHEDULER = TextBrewerMap("TEMPERATURE_SCHEDULER", temperature_schedulers, None, _temperature)
