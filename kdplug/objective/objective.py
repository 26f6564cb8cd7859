"""The objective: what a config says, as one module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from kdplug.contracts.outputs import Outputs
from kdplug.errors import ConfigError, KdplugError
from kdplug.objective.batch import Batch
from kdplug.objective.hard_label_term import HardLabelTerm
from kdplug.objective.kd_term import KdTerm
from kdplug.objective.match_term import MatchTerm
from kdplug.objective.projection import not_built
from kdplug.objective.report import LossReport, TermValue
from kdplug.objective.schedule import checked_progress
from kdplug.objective.term import Term, unique

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig, IntermediateMatch


class Objective(nn.Module):
    """The weighted sum of the kd loss, the intermediate matches and the student's own losses.

    A pure function of what the two models gave and of how far the run is, plus the parameters of its projections and of
    losses that have some. Terms of weight 0 are not built. Entries are looked up once, here; a call looks nothing up.

    Raises: ``ConfigError``, ``EntryError``, ``SignatureError`` with the path of the config's field.
    """

    def __init__(self, config: DistillationConfig) -> None:
        super().__init__()
        self.config = config
        self.kd_loss = KdTerm(config) if config.kd_loss_weight else None
        self.matches = _matches(config)
        self.hard_label_loss = HardLabelTerm(config) if config.hard_label_weight else None
        self._in_order = _in_order(self)
        if not self._in_order:
            raise ConfigError("every weight is 0, so there is nothing to train")

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms in the order in which they are summed, each with ``name`` and ``weight``."""
        return tuple(term for term, _ in self._in_order)

    @property
    def needs_materialize(self) -> bool:
        """Whether a projection waits for its width."""
        return any(match.needs_materialize for _, match in self._matches())

    def materialize(self, student: object, teacher: object = None) -> None:
        """Make the projections whose widths are ``auto`` from the outputs for one batch. Those that exist stay.

        Raises: ``OutputsError``, ``ConfigError``, ``ShapeError`` with the path of the match.
        """
        batch = Batch(Outputs.read(student, "student"), _teacher(teacher), 0.0, 0, 0)
        for key, match in self._matches():
            try:
                match.materialize(batch)
            except KdplugError as error:
                raise error.at("intermediate_matches", key) from error.__cause__

    def forward(
        self,
        student: object,
        teacher: object = None,
        progress: float = 0.0,
        step: int = 0,
        total_steps: int = 0,
    ) -> LossReport:
        """The loss of one batch, and each term in it.

        ``student`` and ``teacher`` are what adaptors return, or what ``Outputs.read`` understands. ``progress`` is the share
        of the run that is done, in [0, 1], before the step that this loss is for.

        Raises: ``OutputsError``, ``ShapeError`` for what the outputs lack; ``ConfigError`` for a layer that does not exist or
        a ``progress`` out of range; ``RunError`` where ``materialize`` must come first.
        """
        checked_progress(progress)
        batch = Batch(Outputs.read(student, "student"), _teacher(teacher), progress, step, total_steps)
        terms: dict[str, TermValue] = {}
        total = None
        for term, path in self._in_order:
            try:
                weight = term.schedule.at(progress, step, total_steps)
                value = term.value(batch, weight) if weight else TermValue(term.skipped(batch), 0, 0.0)
            except KdplugError as error:
                raise error.at(*path) from error.__cause__
            terms[term.name] = value
            total = value.added_to(total)
        assert total is not None
        return LossReport(total, terms)

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups: one for each projection with its own options, and one for what losses hold.

        Raises: ``RunError`` where ``materialize`` must come first.
        """
        groups: list[dict[str, Any]] = []
        taken: set[int] = set()
        for key, match in self._matches():
            if match.needs_materialize:
                raise not_built().at("intermediate_matches", key)
            if match.plan is None or match.projection is None:
                continue
            parameters = [p for p in match.projection.parameters() if p.requires_grad]
            taken.update(map(id, parameters))
            if parameters:
                groups.append({"params": parameters, **match.plan.options})
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in taken]
        return [*groups, {"params": rest}] if rest else groups

    def extra_repr(self) -> str:
        return ", ".join(f"{term.name}: {term.weight:g}" for term in self.terms)

    def _matches(self) -> Iterable[tuple[str, MatchTerm]]:
        return cast("Iterable[tuple[str, MatchTerm]]", self.matches.items())


def _in_order(objective: Objective) -> tuple[tuple[Term, tuple[str, ...]], ...]:
    """Each term with the config path of what it computes. The modules own the terms; this saves a call the search for them."""
    found: list[tuple[Term, tuple[str, ...]]] = []
    if objective.kd_loss is not None:
        found.append((objective.kd_loss, ()))
    for key, match in objective.matches.items():
        found.append((cast("MatchTerm", match), ("intermediate_matches", key)))
    if objective.hard_label_loss is not None:
        found.append((objective.hard_label_loss, ()))
    return tuple(found)


def _matches(config: DistillationConfig) -> nn.ModuleDict:
    """The matches whose weight is not 0, by their place in the config."""
    matches = config.intermediate_matches
    given = [match.name for match in matches if match.name is not None]
    free = iter(
        unique((_default_name(m) for m in matches if m.name is None), [KdTerm.name, HardLabelTerm.name, *given])
    )
    names = [match.name or next(free) for match in matches]
    found: dict[str, nn.Module] = {}
    for place, (match, name) in enumerate(zip(matches, names, strict=True)):
        if not match.weight:
            continue
        try:
            found[str(place)] = MatchTerm(match, name, config.temperature)
        except KdplugError as error:
            raise error.at("intermediate_matches", place) from error.__cause__
    return nn.ModuleDict(found)


def _default_name(match: IntermediateMatch) -> str:
    loss = match.loss.name.rpartition(":")[2]
    return f"{match.feature}_{loss}_{_joined(match.layer_S)}_{_joined(match.layer_T)}"


def _joined(layer: int | tuple[int, ...]) -> str:
    return str(layer) if isinstance(layer, int) else "-".join(map(str, layer))


def _teacher(value: object) -> Outputs:
    return Outputs() if value is None else Outputs.read(value, "teacher")
