"""The matches of a config: those written by hand, and those that layer maps stand for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from kdplug.config.error_path import Path, prefixed
from kdplug.config.layer import Layer, Layers, in_list, is_path
from kdplug.contracts.outputs import Outputs
from kdplug.errors import RunError
from kdplug.objective.batch import Batch
from kdplug.objective.capture.path import Modules, Side
from kdplug.objective.kd_term import KdTerm
from kdplug.objective.match_term import MatchTerm, layers
from kdplug.objective.projection import not_built
from kdplug.objective.teacher import Names, place_of
from kdplug.objective.term import HardLabelTerm, unique

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig
    from kdplug.config.layer_map import LayerMap
    from kdplug.config.match import IntermediateMatch


def match_names(matches: Sequence[IntermediateMatch], taken: Iterable[str] = ()) -> list[str]:
    """Each match's own name, or ``feature_loss_S_T``; none of them one of ``taken``, or that of another term."""
    given = [match.name for match in matches if match.name is not None]
    defaults = (_default(match) for match in matches if match.name is None)
    free = iter(unique(defaults, [KdTerm.name, HardLabelTerm.name, *given, *taken]))
    return [match.name or next(free) for match in matches]


def _default(match: IntermediateMatch) -> str:
    loss = match.loss.name.rpartition(":")[2]
    teacher = "" if match.teacher is None else f"_teacher_{match.teacher}"
    return f"{match.feature}_{loss}_{_joined(match.layer_S)}_{_joined(match.layer_T)}{teacher}"


def _joined(layers: Layers) -> str:
    return "-".join(map(str, in_list(layers)))


class WaitingMap:
    """One layer map of a config at ``path``, and what there is to read on each side, as far as that is known."""

    def __init__(self, layer_map: LayerMap, path: Path) -> None:
        self.layer_map = layer_map
        self.path = path
        self._layers: dict[Side, tuple[Layer, ...] | None] = {
            "student": layer_map.indices("S"),
            "teacher": layer_map.indices("T"),
        }

    @property
    def is_counted(self) -> bool:
        """Whether the layers of both sides are known."""
        return None not in self._layers.values()

    def connect(self, student: Modules | None, teacher: Modules | None) -> None:
        """Find the modules that the map names.

        Raises: ``ConfigError`` where there are none, with the side as its field.
        """
        for modules, letter, patterns in (
            (student, "S", self.layer_map.layer_S),
            (teacher, "T", self.layer_map.layer_T),
        ):
            if modules is not None and patterns is not None:
                with prefixed(f"layer_{letter}"):
                    found = modules.expand(patterns[0] if len(patterns) == 1 else patterns, listed=True)
                self._layers[modules.side] = in_list(found)

    def count(self, batch: Batch) -> None:
        """Count what the adaptors returned, on the sides that go by index.

        Raises: ``OutputsError`` where they returned none; ``RunError`` where a side goes by path and was not connected.
        """
        if self.layer_map.layer_S is None and self._layers["student"] is None:
            self._layers["student"] = self._counted(batch.student, "student")
        if self.layer_map.layer_T is None and self._layers["teacher"] is None:
            self._layers["teacher"] = self._counted(batch.teacher, "teacher")
        if not self.is_counted:
            raise RunError("it names modules: let objective.connect(student, teacher) find them in the models first")

    def matches(self) -> tuple[IntermediateMatch, ...]:
        """The matches that the map stands for.

        Raises: ``ConfigError`` where it does not fit the layers, and what else ``LayerMap.matches`` raises.
        """
        student, teacher = self._layers["student"], self._layers["teacher"]
        assert student is not None
        assert teacher is not None
        return self.layer_map.matches(student, teacher)

    def paths(self, side: Side) -> tuple[str, ...]:
        """What may have to be captured on a side."""
        return tuple(layer for layer in self._layers[side] or () if isinstance(layer, str))

    def _counted(self, outputs: Outputs, side: Side) -> tuple[int, ...]:
        layers(outputs, self.layer_map.feature, 0, side)  # raises where there is nothing to count
        found = outputs.hidden if self.layer_map.feature == "hidden" else outputs.attention
        return tuple(range(len(found or ())))


def not_counted(path: Path) -> RunError:
    return RunError(
        "how many layers the models have is not known yet. Call objective.materialize(student=…, teacher=…) with the outputs "
        "for one batch, before the optimizer is made, or write layers_S and layers_T"
    ).at(*path)


class Matches(nn.ModuleDict):
    """The matches whose weight is not 0, by their place in ``config``, which is the config with layer maps written out.

    A layer map waits until its layers are counted: in the config, in the models, or in what they returned.
    """

    def __init__(self, config: DistillationConfig, teachers: Names) -> None:
        super().__init__()
        self.config = config
        self._teachers = teachers
        self._fields: list[Path] = []
        self._waiting = [
            WaitingMap(layer_map, config.path_of_map(place))
            for place, layer_map in enumerate(config.layer_map)
            if layer_map.weight
        ]
        for waiting in self._waiting:
            with prefixed(*waiting.path):
                place_of(waiting.layer_map.teacher, teachers)
        fields: list[Path] = [("intermediate_matches", place) for place in range(len(config.intermediate_matches))]
        self._add(config.intermediate_matches, 0, fields)
        self._write_out()

    @property
    def needs_materialize(self) -> bool:
        """Whether a projection waits for its width, or a layer map for the number of layers."""
        return bool(self._waiting) or any(match.needs_materialize for match, _, _ in self.terms())

    @property
    def names_modules(self) -> bool:
        """Whether a match, or a layer map that waits, goes by module path."""
        written = [
            layer
            for match, _, _ in self.terms()
            for layer in (*in_list(match.match.layer_S), *in_list(match.match.layer_T))
        ]
        return any(map(is_path, written)) or any(
            one.layer_map.layer_S is not None or one.layer_map.layer_T is not None for one in self._waiting
        )

    @property
    def waiting(self) -> tuple[LayerMap, ...]:
        """The layer maps whose layers are not counted yet."""
        return tuple(one.layer_map for one in self._waiting)

    def terms(self) -> Iterator[tuple[MatchTerm, Path, int]]:
        """Each match with the path of the field that it comes from, and the place of the teacher that it reads."""
        for match, field in zip(self.values(), self._fields, strict=True):
            term = cast("MatchTerm", match)
            yield term, field, place_of(term.teacher, self._teachers)

    def check_counted(self) -> None:
        """Raises: ``RunError`` where a layer map still waits."""
        if self._waiting:
            raise not_counted(self._waiting[0].path)

    def paths(self, side: Side, place: int) -> list[str]:
        """What has to be captured in the student, or in the teacher at ``place``."""
        found: list[Layer] = []
        for match, _, teacher in self.terms():
            if side == "student" or teacher == place:
                found += in_list(match.layer_student if side == "student" else match.layer_teacher)
        for waiting in self._waiting:
            if side == "student" or self._place(waiting) == place:
                found += waiting.paths(side)
        return [layer for layer in found if isinstance(layer, str)]

    def connect(self, student: Modules | None, teachers: Sequence[Modules | None]) -> None:
        """Look every path up in the models; see ``Objective.connect``."""
        for match, field, place in self.terms():
            with prefixed(*field):
                match.connect(student, teachers[place])
        for waiting in self._waiting:
            with prefixed(*waiting.path):
                waiting.connect(student, teachers[self._place(waiting)])
        self._write_out()

    def materialize(self, batch: Batch) -> None:
        """Count the layers and make the projections that wait for a batch; see ``Objective.materialize``."""
        for waiting in self._waiting:
            with prefixed(*waiting.path):
                waiting.count(batch.of_teacher(self._place(waiting)))
        self._write_out(is_late=True)
        for match, field, place in self.terms():
            with prefixed(*field):
                match.materialize(batch.of_teacher(place))

    def projections(self) -> Iterator[tuple[nn.Module, Mapping[str, Any]]]:
        """Each projection with the options of its optimizer group.

        Raises: ``RunError`` where one is not made yet.
        """
        self.check_counted()
        for match, field, _ in self.terms():
            if match.needs_materialize:
                raise not_built().at(*field)
            if match.plan is not None and match.projection is not None:
                yield match.projection, match.plan.options

    def _place(self, waiting: WaitingMap) -> int:
        return place_of(waiting.layer_map.teacher, self._teachers)

    def _add(
        self, matches: Sequence[IntermediateMatch], start: int, fields: Sequence[Path], *, is_late: bool = False
    ) -> None:
        names = match_names(matches, [match.name for match, _, _ in self.terms()])
        for place, (match, name, field) in enumerate(zip(matches, names, fields, strict=True), start):
            if not match.weight:
                continue
            with prefixed(*field):
                place_of(match.teacher, self._teachers)
                term = self[str(place)] = MatchTerm(match, name, waits=is_late)
            term.use_temperature(self.config.temperature, self.config.temperature_scheduler)
            self._fields.append(field)

    def _write_out(self, *, is_late: bool = False) -> None:
        """Put matches in the place of each layer map whose layers are counted, also in the config."""
        counted = [waiting for waiting in self._waiting if waiting.is_counted]
        self._waiting = [waiting for waiting in self._waiting if not waiting.is_counted]
        for one in counted:
            with prefixed(*one.path):
                found = one.matches()
            written = self.config.intermediate_matches
            self._add(found, len(written), [one.path] * len(found), is_late=is_late)
            rest = [layer_map for layer_map in self.config.layer_map if layer_map is not one.layer_map]
            self.config = self.config.with_matches([*written, *found], rest)
