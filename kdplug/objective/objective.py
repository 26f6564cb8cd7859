"""The distillation objective of a config, as one module."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdplug.config.term import HARD_LABEL_PLACE, TermPlace
from kdplug.contracts.outputs import Outputs
from kdplug.errors import ConfigError, KdplugError, SignatureError
from kdplug.objective.balance import Balance, BalancedTerm
from kdplug.objective.batch import Batch, Draws, check_tensors
from kdplug.objective.capture.hooks import Capture, Captures
from kdplug.objective.capture.path import Modules, Side
from kdplug.objective.capture.teachers import Models, teacher_models, teacher_modules
from kdplug.objective.configured import ConfiguredTerms
from kdplug.objective.custom_term import CustomTerm
from kdplug.objective.example_ids import read_example_ids
from kdplug.objective.report import LossReport, TermValue, weighted_sum
from kdplug.objective.schedule import Schedule, checked_progress
from kdplug.objective.teacher import Names, checked, read_teachers, side, teacher_names
from kdplug.objective.term import FirstBatches, HardLabelTerm, LaterBatches, Term

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig


class Objective(nn.Module):
    """The weighted sum of the config's terms and the student's own losses.

    A pure function of both models' outputs and the progress of the run, plus the parameters of its projections and
    losses. Terms of weight 0 are not built. Entries are looked up once, at construction.

    ``teachers`` is the number of teachers, or their keys, by which matches may name them. The logits of several
    teachers are combined into one (``teacher_combiner``) after applying each teacher's own mask, and before
    ``probability_shift``.

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
        self.configured = ConfiguredTerms(config, self.teachers)
        self.custom_matches = nn.ModuleList(term for term in custom_matches if term.weight)
        self.hard_label_loss = HardLabelTerm(config) if config.hard_label_weight else None
        self.balance: Balance | None = None
        """The balancer of the terms' weights, if the config has one; ``None`` until the number of terms is known."""
        self.expects_gradient = False
        """Set by ``mark_trained``."""
        self.has_labels = True
        """Set by ``without_labels``."""
        self.num_examples: int | None = None
        """The number of examples that losses were built for; ``None`` if none takes it, or before ``materialize``."""
        self._has_looked = self._has_left_out = False
        self._prefix = ""
        self._calls = (0, 0)
        self._write_down()
        _check_names(self.terms)
        if not self._in_order and not self.needs_materialize:
            raise ConfigError("every weight is 0, so there is nothing to train. Set a weight above 0")

    @property
    def config(self) -> DistillationConfig:
        """The config; each layer map is replaced by its matches once its layers are counted."""
        return self.configured.config

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms in summation order, each with ``name`` and ``weight``."""
        return tuple(term for term, _, _ in self._in_order)

    def reads_of_teachers(self) -> dict[str, tuple[str, ...]]:
        """Return each term that needs a teacher, and what it reads of it. Without any, the objective needs no teacher."""
        found = {term.name: term.reads_of_teacher for term in self.configured.terms() if term.reads_of_teacher}
        found |= {f"layer_map {one.loss.name}": ("teacher_features",) for one in self.configured.waiting}
        return found | {cast("CustomTerm", term).name: ("teacher_features",) for term in self.custom_matches}

    @property
    def needs_materialize(self) -> bool:
        """True if a width of a projection or loss, or a layer map's number of layers, is still unknown."""
        return self.configured.needs_materialize

    def paths(self, side: Side, place: int = 0) -> tuple[str, ...]:
        """Return the paths to capture in the student, or in the teacher at ``place``, without duplicates."""
        custom = [cast("CustomTerm", term) for term in self.custom_matches]
        found = [term.layer_student if side == "student" else term.layer_teacher for term in custom]
        return tuple(
            dict.fromkeys([*self.configured.paths(side, place), *(found if side == "student" or not place else [])])
        )

    def connect(self, student: nn.Module | None = None, teacher: Models = None) -> None:
        """Resolve every path of the config in the models; expand globs, and layer maps that use paths.

        Terms then read parameters and buffers of these models. ``teacher`` is the teacher, or several as a list or by key. The paths of an omitted side stay unchanged.

        Raises: ``ConfigError`` with the path of the field, and the nearest real paths, if there is no such module,
        parameter or buffer.
        """
        if not self.configured.names_modules:
            return
        ours, own = None, None
        if student is not None:
            ours, own = Modules(student, "student"), Modules(student, "teacher", "student")
        self.configured.connect(ours, (*teacher_modules(teacher, self.teachers), own))
        self._write_down()

    def connect_stored(self, place: int, tensors: Mapping[str, Tensor]) -> None:
        """Let terms read the parameters of the teacher at ``place`` from ``tensors``, by path, as a teacher cache holds them."""
        self.configured.connect_stored(place, tensors)

    @contextmanager
    def capture(self, student: nn.Module, teacher: Models = None) -> Iterator[Captures]:
        """Attach hooks to every module that a match reads, inside the block. For custom training loops.

        Run each model inside ``with capture.student.reading():``, and give the objective
        ``capture.student.join(outputs)``; likewise ``capture.teacher``, or each of ``capture.teachers``.

        Each pass of a teacher in eval mode is checked: it must stay in eval mode and leave its parameters and buffers
        unchanged.

        Raises: ``ConfigError`` as ``connect`` does; inside ``reading()``, ``RunError`` if a teacher changes.
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

    def materialize(self, student: object, teacher: object = None, *, num_examples: int | None = None) -> None:
        """Build projections whose widths are ``auto`` and losses that take widths from the outputs for one batch, and count
        layers for unexpanded layer maps. Existing modules are kept.

        ``num_examples`` is the number of examples in the data, for losses that take it.

        Raises: ``OutputsError``, ``ConfigError``, ``ShapeError`` with the path of the match.
        """
        batch = Batch(Outputs.read(student, "student"), read_teachers(teacher, self.teachers), 0.0, 0, 0)
        self.configured.materialize(batch, num_examples)
        if self.num_examples is None and any(self.configured.requesting("num_examples")):
            self.num_examples = num_examples
        self._write_down()

    def _write_down(self) -> None:
        """Cache the terms and their paths, so that a call need not search for them. The modules hold the terms."""
        self._in_order = _in_order(self)
        _check_shapes(self._in_order)
        self._is_counted = not self.configured.waiting
        self._balance_terms()
        self._first = FirstBatches(self.terms, self._prefix)
        self._first.untempered = {term.name for term in self.configured.terms() if term.temperature.trained()}
        self.reads_ids = any("example_ids" in getattr(term, "inputs", ()) for term in self.terms)
        self._draws = any("draw_seed" in getattr(term, "inputs", ()) for term in self.terms)

    def _balance_terms(self) -> None:
        """Build the balancer once all terms are known."""
        spec = self.config.used_balancer
        if spec is None or not self._is_counted or not self._in_order:
            return
        terms = [
            BalancedTerm(term.name, term.weight, getattr(term, "share", None), place)
            for term, place, _ in self._in_order
        ]
        if self.balance is None or self.balance.terms != tuple(terms):
            self.balance = Balance(spec, terms)

    def name_task(self, task: str) -> None:
        """Prefix the terms' names in warnings with ``task``."""
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
        epoch: int = 0,
        example_ids: object = None,
        micro_batch: int | None = None,
    ) -> LossReport:
        """Return the loss of one batch, and each of its terms.

        ``student`` and ``teacher`` are adaptor results, or anything that ``Outputs.read`` accepts; several teachers are
        a list, or a mapping by key. ``progress`` is the fraction of the run done, in [0, 1], before this step.
        ``epoch`` is the number of passes over the data that are done. ``example_ids`` are the places of the batch's
        examples in the data, integers ``[batch]``, for losses that request them. In eval mode without ids these losses
        are left out: other data have no place in the training data.
        ``micro_batch`` numbers this batch among all batches of the step, on all processes, so that losses with random
        draws differ between them. ``None`` counts the calls of a step, which suffices in one process.

        Raises: ``OutputsError``, ``ShapeError`` for missing, mismatched or unreadable outputs; ``ConfigError`` for a missing layer
        or a ``progress`` out of range; ``RunError`` if ``materialize`` must be called first.
        """
        if not 0.0 <= progress <= 1.0:
            checked_progress(progress)
        if not self._is_counted:
            self.configured.check_counted()
        teachers = read_teachers(teacher, self.teachers)
        outputs = Outputs.read(student, "student")
        if not self._has_looked and not torch.compiler.is_compiling():
            check_tensors(outputs, "student")
            for place, one in enumerate(teachers):
                check_tensors(one, side(self.teachers, place))
        batch = Batch(
            outputs,
            teachers,
            progress,
            step,
            total_steps,
            epoch=epoch,
            example_ids=self._ids(example_ids) if self.reads_ids else None,
            draws=Draws(step, self._calls_before(step) if micro_batch is None else micro_batch),
            looks=not self._has_looked,
        )
        self._has_looked = True
        left_out = self._left_out() if self.reads_ids and not self.training and example_ids is None else ()
        factors = self._factors(step)
        terms: dict[str, TermValue] = {}
        for (term, where, place), factor in zip(self._in_order, factors, strict=False):
            try:
                weight = self._weight(term.schedule, progress, step, total_steps)
                seen = batch.of_teacher(place) if place else batch
                is_live = weight and term.name not in left_out
                terms[term.name] = value = (
                    term.value(seen, weight) if is_live else TermValue(term.skipped(seen), 0, 0.0)
                )
                value.balance = factor
                if self.has_labels or term is not self.hard_label_loss:
                    self._first.look_at_count(term, value, seen)
            except KdplugError as error:
                raise where.locate(error) from error.__cause__
        report = LossReport(weighted_sum(list(terms.values())), terms)
        if self._first.ungraded and self.training and torch.is_grad_enabled() and report.total.requires_grad:
            live = [(term, batch.of_teacher(place)) for term, _, place in self._in_order if terms[term.name].weight]
            self._first.look_at_gradients(live, is_expected=self.expects_gradient)
        if self._first.untempered and self.training and torch.is_grad_enabled():
            self._first.look_at_temperatures(self.configured.terms(), terms)
        return report

    def _weight(self, schedule: Schedule, progress: float, step: int, total_steps: int) -> float:
        """Return the weight of a term without the balancer's factor."""
        if self.balance is not None and self.balance.is_unweighted:
            return 1.0
        return schedule.base if schedule.scheduler is None else schedule.at(progress, step, total_steps)

    def _factors(self, step: int) -> Iterable[Tensor | None]:
        """Return the balancer's factor of each term; ``None`` without a balancer."""
        if self.balance is None:
            return repeat(None)
        return self.balance.each(step, trains=self.training and torch.is_grad_enabled())

    def _left_out(self) -> tuple[str, ...]:
        """Return the terms that need ids of the examples, for a batch without any in eval mode; warn of them once."""
        names = tuple(term.name for term in self.terms if "example_ids" in getattr(term, "inputs", ()))
        if not self._has_left_out:
            self._has_left_out = True
            warnings.warn(
                f"the loss in eval mode leaves out each term that requests example_ids, since the batch has none: "
                f"{', '.join(f'{self._prefix}{name}' for name in names)}. To include them, add example_ids to the batches for "
                "evaluation",
                stacklevel=3,
            )
        return names

    def _ids(self, example_ids: object) -> Tensor | None:
        return None if example_ids is None else read_example_ids(example_ids, self.num_examples)

    def record_counts(self, later: LaterBatches | None) -> None:
        """Record the counts of each batch in ``later``, which also gets the warnings about terms without items."""
        self._first.later = later
        if later is not None:
            later.terms += [f"{self._prefix}{term.name}" for term in self.terms]

    def _calls_before(self, step: int) -> int:
        """Count earlier calls for ``step``, if a loss uses random draws."""
        if not self._draws:
            return 0
        last, calls = self._calls
        calls = calls if step == last else 0
        self._calls = (step, calls + 1)
        return calls

    def param_groups(self) -> list[dict[str, Any]]:
        """Return optimizer groups: one for each projection and each loss with its own options, and one for the rest.

        Raises: ``RunError`` if ``materialize`` must be called first.
        """
        groups: list[dict[str, Any]] = []
        taken: set[int] = set()
        custom = [cast("CustomTerm", term) for term in self.custom_matches]
        own = [(term.projection, term.options) for term in custom if isinstance(term.projection, nn.Module)]
        for projection, options in [*self.configured.groups(), *own]:
            parameters = [p for p in projection.parameters() if p.requires_grad and id(p) not in taken]
            taken.update(map(id, parameters))
            if parameters:
                groups.append({"params": parameters, **options})
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in taken]
        return [*groups, {"params": rest}] if rest else groups

    def extra_repr(self) -> str:
        return ", ".join(f"{term.name}: {term.weight:g}" for term in self.terms)


def mark_trained(objective: nn.Module) -> None:
    """Mark the objectives in ``objective`` so that each call in train mode with gradients counts as a training step."""
    for module in objective.modules():
        if isinstance(module, Objective):
            module.expects_gradient = True


@contextmanager
def without_labels(objective: nn.Module) -> Iterator[None]:
    """Allow hard label terms in ``objective`` to count no items in the block, since its batch is generated."""
    found = [module for module in objective.modules() if isinstance(module, Objective)]
    for module in found:
        module.has_labels = False
    try:
        yield
    finally:
        for module in found:
            module.has_labels = True


@contextmanager
def counts_recorded(objective: nn.Module, *, withholds: bool) -> Iterator[LaterBatches]:
    """Record the counts of every batch in the block; with ``withholds``, also the warnings about terms without items.

    Enter it after ``connect`` and ``materialize``.
    """
    later = LaterBatches(withholds=withholds)
    found = [module for module in objective.modules() if isinstance(module, Objective)]
    for module in found:
        module.record_counts(later)
    try:
        yield later
    finally:
        for module in found:
            module.record_counts(None)


def _in_order(objective: Objective) -> tuple[tuple[Term, TermPlace, int], ...]:
    """Return each term with its place in the config and the index of the teacher it reads (0 if it reads all or none)."""
    found: list[tuple[Term, TermPlace, int]] = [
        (term, term.place, term.teacher or 0) for term in objective.configured.terms()
    ]
    for place, term in enumerate(objective.custom_matches):
        found.append((cast("CustomTerm", term), TermPlace(("custom_matches", place)), 0))
    if objective.hard_label_loss is not None:
        found.append((objective.hard_label_loss, HARD_LABEL_PLACE, 0))
    return tuple(found)


def _check_shapes(terms: Sequence[tuple[Term, TermPlace, int]]) -> None:
    """Raise ``SignatureError`` for parameters or buffers whose shape the first forward pass sets.

    They would be trained, but a resumed run must load them before that pass.
    """
    for term, where, _ in terms:
        module = cast("nn.Module", term)
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            if is_lazy(tensor):
                error = SignatureError(
                    f"{term.name}: {getattr(term, 'owner', type(term).__name__)} has the lazy parameter {name!r}, whose shape is "
                    "known only after a forward pass, so it could not be loaded from a checkpoint. Pass the width to its module, for "
                    "example as a setting (nn.Linear instead of nn.LazyLinear), or use a projection with width 'auto'",
                    field="loss" if getattr(term, "logits", None) is not None else "",
                )
                raise where.locate(error)


def _check_names(terms: Sequence[Term]) -> None:
    """Raise ``ConfigError`` if a custom match has the name of another term."""
    names = [term.name for term in terms]
    for term in terms:
        if isinstance(term, CustomTerm) and names.count(term.name) > 1:
            raise ConfigError(
                f"{term.name!r} is already the name of another term. Choose another name", field="custom_matches"
            )
