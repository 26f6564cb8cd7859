"""The matches of a config: those written by hand, and those that layer maps stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from kdplug.config.layer import Layer, in_list, is_path
from kdplug.objective.batch import Batch
from kdplug.objective.capture_path import Modules, Side
from kdplug.objective.field import Path, below
from kdplug.objective.layer_map import WaitingMap, not_counted
from kdplug.objective.match_name import match_names
from kdplug.objective.match_term import MatchTerm
from kdplug.objective.projection import not_built
from kdplug.objective.teacher import Names, place_of

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig
    from kdplug.config.layer_map import LayerMap
    from kdplug.config.match import IntermediateMatch


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
            with below(*waiting.path):
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
            with below(*field):
                match.connect(student, teachers[place])
        for waiting in self._waiting:
            with below(*waiting.path):
                waiting.connect(student, teachers[self._place(waiting)])
        self._write_out()

    def materialize(self, batch: Batch) -> None:
        """Count the layers and make the projections that wait for a batch; see ``Objective.materialize``."""
        for waiting in self._waiting:
            with below(*waiting.path):
                waiting.count(batch.of_teacher(self._place(waiting)))
        self._write_out(is_late=True)
        for match, field, place in self.terms():
            with below(*field):
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
            with below(*field):
                place_of(match.teacher, self._teachers)
                term = self[str(place)] = MatchTerm(match, name, waits=is_late)
            term.use_temperature(self.config.temperature, self.config.temperature_scheduler)
            self._fields.append(field)

    def _write_out(self, *, is_late: bool = False) -> None:
        """Put matches in the place of each layer map whose layers are counted, also in the config."""
        counted = [waiting for waiting in self._waiting if waiting.is_counted]
        self._waiting = [waiting for waiting in self._waiting if not waiting.is_counted]
        for one in counted:
            with below(*one.path):
                found = one.matches()
            written = self.config.intermediate_matches
            self._add(found, len(written), [one.path] * len(found), is_late=is_late)
            rest = [layer_map for layer_map in self.config.layer_map if layer_map is not one.layer_map]
            self.config = self.config.with_matches([*written, *found], rest)
