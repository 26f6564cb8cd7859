"""The objective: what a config says, as one module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from kdplug.config.error_path import Path
from kdplug.contracts.outputs import Outputs
from kdplug.errors import ConfigError, KdplugError
from kdplug.objective.batch import Batch, Draws
from kdplug.objective.capture.hooks import Capture, Captures
from kdplug.objective.capture.path import Modules, Side
from kdplug.objective.capture.teachers import Models, teacher_models, teacher_modules
from kdplug.objective.custom_term import CustomTerm
from kdplug.objective.kd_term import KdTerm
from kdplug.objective.matches import Matches
from kdplug.objective.report import LossReport, TermValue, weighted_sum
from kdplug.objective.schedule import checked_progress
from kdplug.objective.teacher import Names, checked, read_teachers, side, teacher_names
from kdplug.objective.term import FirstBatches, HardLabelTerm, Term

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig


class Objective(nn.Module):
    """The weighted sum of the kd loss, the intermediate matches and the student's own losses.

    A pure function of what the two models gave and of how far the run is, plus the parameters of its projections and of
    losses that have some. Terms of weight 0 are not built. Entries are looked up once, here; a call looks nothing up.

    ``teachers`` is how many teachers there are, or their keys, by which matches may name them. The logits of several are
    combined into one (``teacher_combiner``) after each teacher's own mask was applied, and before ``probability_shift``.

    Raises: ``ConfigError``, ``EntryError``, ``SignatureError`` with the path of the config's field.
    """

    def __init__(
        self,
        config: DistillationConfig,
        teachers: int | Sequence[str] = 1,
        custom_matches: Iterable[CustomTerm] = (),
    ) -> None:
        super().__init__()
        self.teachers: Names = teacher_names(teachers)
        self.kd_loss = KdTerm(config, self.teachers) if config.kd_loss_weight else None
        self.matches = Matches(config, self.teachers)
        self.custom_matches = nn.ModuleList(term for term in custom_matches if term.weight)
        self.hard_label_loss = HardLabelTerm(config) if config.hard_label_weight else None
        self.expects_gradient = False
        """Set by ``mark_trained``."""
        self._has_looked = False
        self._prefix = ""
        self._calls = (0, 0)
        self._write_down()
        _check_names(self.terms)
        if not self._in_order and not self.needs_materialize:
            raise ConfigError("every weight is 0, so there is nothing to train")

    @property
    def config(self) -> DistillationConfig:
        """The config, with the matches of each layer map in its place as soon as its layers are counted."""
        return self.matches.config

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms in the order in which they are summed, each with ``name`` and ``weight``."""
        return tuple(term for term, _, _ in self._in_order)

    @property
    def needs_materialize(self) -> bool:
        """Whether a projection waits for its width, or a layer map for the number of layers."""
        return self.matches.needs_materialize

    def paths(self, side: Side, place: int = 0) -> tuple[str, ...]:
        """What has to be captured in the student, or in the teacher at ``place``: each path that a match reads, once."""
        custom = [cast("CustomTerm", term) for term in self.custom_matches]
        found = [term.layer_student if side == "student" else term.layer_teacher for term in custom]
        return tuple(
            dict.fromkeys([*self.matches.paths(side, place), *(found if side == "student" or not place else [])])
        )

    def connect(self, student: nn.Module | None = None, teacher: Models = None) -> None:
        """Look up in the models every module path that the config names; write globs, and layer maps that go by path, out.

        ``teacher`` is the teacher, or several as a list or by key. Without one of the sides, its paths are left as they are.

        Raises: ``ConfigError`` with the path of the field, and the nearest real module paths, where there is no such module.
        """
        if not self.matches.names_modules:
            return
        ours = None if student is None else Modules(student, "student")
        self.matches.connect(ours, teacher_modules(teacher, self.teachers))
        self._write_down()

    @contextmanager
    def capture(self, student: nn.Module, teacher: Models = None) -> Iterator[Captures]:
        """Inside the block, hooks on every module that a match reads: for a loop of your own.

        Run each model inside ``with capture.student.reading():``, and give the objective
        ``capture.student.join(outputs)``; likewise ``capture.teacher``, or each of ``capture.teachers``.

        A teacher that is in eval mode is checked to be so after each pass, and to leave its parameters and
        buffers unchanged.

        Raises: ``ConfigError`` as ``connect`` does; inside ``reading()``, ``RunError`` where a teacher changes.
        """
        self.connect(student, teacher)
        models = teacher_models(teacher, self.teachers)
        with ExitStack() as stack:
            ours = stack.enter_context(Capture(student, self.paths("student"), "student").hooked())
            theirs = [
                Capture(one, self.paths("teacher", place), "teacher", checked(one, side(self.teachers, place), student))
                for place, one in enumerate(models)
            ]
            yield Captures(ours, tuple([stack.enter_context(one.hooked()) for one in theirs]))

    def materialize(self, student: object, teacher: object = None) -> None:
        """Make the projections whose widths are ``auto`` from the outputs for one batch, and count the layers for the layer
        maps that wait for it. What is made stays.

        Raises: ``OutputsError``, ``ConfigError``, ``ShapeError`` with the path of the match.
        """
        batch = Batch(Outputs.read(student, "student"), read_teachers(teacher, self.teachers), 0.0, 0, 0)
        self.matches.materialize(batch)
        self._write_down()

    def _write_down(self) -> None:
        """What a call walks through. The modules own the terms; this saves a call the search for them."""
        self._in_order = _in_order(self)
        self._is_counted = not self.matches.waiting
        self._first = FirstBatches(self.terms, self._prefix)
        self._draws = any("draw_seed" in getattr(term, "inputs", ()) for term in self.terms)

    def name_task(self, task: str) -> None:
        """Put ``task`` in front of the terms' names in warnings."""
        self._prefix = f"{task}/"
        self._write_down()

    def forward(
        self,
        student: object,
        teacher: object = None,
        progress: float = 0.0,
        step: int = 0,
        total_steps: int = 0,
        *,
        micro_batch: int | None = None,
    ) -> LossReport:
        """The loss of one batch, and each term in it.

        ``student`` and ``teacher`` are what adaptors return, or what ``Outputs.read`` understands; of several teachers, a
        list of that or a mapping by key. ``progress`` is the share of the run that is done, in [0, 1], before the step that
        this loss is for. ``micro_batch`` is the number of this batch among all batches of the step, on all processes: losses that
        draw at random draw apart in each. ``None`` counts the calls of a step, which is enough in one process.

        Raises: ``OutputsError``, ``ShapeError`` for what the outputs lack; ``ConfigError`` for a layer that does not exist or
        a ``progress`` out of range; ``RunError`` where ``materialize`` must come first.
        """
        if not 0.0 <= progress <= 1.0:
            checked_progress(progress)
        if not self._is_counted:
            self.matches.check_counted()
        teachers = read_teachers(teacher, self.teachers)
        batch = Batch(
            Outputs.read(student, "student"),
            teachers,
            progress,
            step,
            total_steps,
            draws=Draws(step, self._calls_before(step) if micro_batch is None else micro_batch),
            looks=not self._has_looked,
        )
        self._has_looked = True
        terms: dict[str, TermValue] = {}
        for term, path, place in self._in_order:
            try:
                schedule = term.schedule
                weight = schedule.base if schedule.scheduler is None else schedule.at(progress, step, total_steps)
                seen = batch.of_teacher(place) if place else batch
                terms[term.name] = value = term.value(seen, weight) if weight else TermValue(term.skipped(seen), 0, 0.0)
                self._first.look_at_count(term, value, seen)
            except KdplugError as error:
                raise error.at(*path) from error.__cause__
        report = LossReport(weighted_sum(list(terms.values())), terms)
        if self._first.ungraded and self.training and torch.is_grad_enabled() and report.total.requires_grad:
            live = [(term, batch.of_teacher(place)) for term, _, place in self._in_order if terms[term.name].weight]
            self._first.look_at_gradients(live, is_expected=self.expects_gradient)
        return report

    def _calls_before(self, step: int) -> int:
        """How often this was called for ``step`` before, where a loss draws at random."""
        if not self._draws:
            return 0
        last, calls = self._calls
        calls = calls if step == last else 0
        self._calls = (step, calls + 1)
        return calls

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups: one for each projection with its own options, and one for what losses hold.

        Raises: ``RunError`` where ``materialize`` must come first.
        """
        groups: list[dict[str, Any]] = []
        taken: set[int] = set()
        custom = [cast("CustomTerm", term) for term in self.custom_matches]
        own = [(term.projection, term.options) for term in custom if isinstance(term.projection, nn.Module)]
        for projection, options in [*self.matches.projections(), *own]:
            parameters = [p for p in projection.parameters() if p.requires_grad and id(p) not in taken]
            taken.update(map(id, parameters))
            if parameters:
                groups.append({"params": parameters, **options})
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in taken]
        return [*groups, {"params": rest}] if rest else groups

    def extra_repr(self) -> str:
        return ", ".join(f"{term.name}: {term.weight:g}" for term in self.terms)


def mark_trained(objective: nn.Module) -> None:
    """Tell the objectives in ``objective`` that each of their calls in train mode with gradients is a training step."""
    for module in objective.modules():
        if isinstance(module, Objective):
            module.expects_gradient = True


def _in_order(objective: Objective) -> tuple[tuple[Term, Path, int], ...]:
    """Each term with the config path of what it computes and the place of the teacher it reads, 0 where it reads all or none."""
    found: list[tuple[Term, Path, int]] = []
    if objective.kd_loss is not None:
        found.append((objective.kd_loss, (), 0))
    found += objective.matches.terms()
    for place, term in enumerate(objective.custom_matches):
        found.append((cast("CustomTerm", term), ("custom_matches", place), 0))
    if objective.hard_label_loss is not None:
        found.append((objective.hard_label_loss, (), 0))
    return tuple(found)


def _check_names(terms: Sequence[Term]) -> None:
    """Raises: ``ConfigError`` where a custom match has the name of another term."""
    names = [term.name for term in terms]
    for term in terms:
        if isinstance(term, CustomTerm) and names.count(term.name) > 1:
            raise ConfigError(f"{term.name!r} is the name of another term", field="custom_matches")
