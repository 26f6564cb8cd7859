"""``TaskLaws``: all tests for tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdplug.config.distillation import DistillationConfig
from kdplug.contracts.loss import LossSum
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.contracts.task import Part, Task
from kdplug.engine.training_module import split
from kdplug.objective.objective import Objective
from kdplug.objective.report import LossReport, TermValue
from kdplug.objective.term import HardLabelTerm
from kdplug.testing.law import advise, broken
from kdplug.testing.sample import seeded
from kdplug.testing.task.case import PARTS, same_content, spans
from kdplug.testing.task.option import TaskOptionLaws
from kdplug.testing.task.prediction import TaskPredictionLaws

if TYPE_CHECKING:
    from kdplug.contracts.outputs import Logits, Outputs


_FIT = "build both for the same classes, or describe the difference in vocabulary_difference"
_MARK = "mark the same items in logits_mask on both sides"


class TaskLaws(TaskOptionLaws, TaskPredictionLaws):
    """Tests that every task must pass, for pytest. They build its models and read its data, so declare small ``settings``.

    ::

        class TestMyTask(TaskLaws):
            entry = "mytask"
            settings = {"data_seed": 1}
    """

    def test_it_offers_all_that_a_recipe_asks_for(self) -> None:
        """Catches a missing or misspelt method, which would fail only after the teacher is trained."""
        task = self.task()
        lacking = [name for name in vars(Task) if not name.startswith("_") and not hasattr(task, name)]
        if lacking:
            broken(f"is not a task: it lacks {', '.join(lacking)}. Define every member of kdplug.Task")

    def test_it_says_what_it_is_about(self) -> None:
        """Catches a run that begins with an empty line."""
        about: Any = self.task().about()
        if not isinstance(about, str) or not about.strip():
            broken(f"about() must describe the data in one or two sentences, got {about!r}")

    def test_the_teacher_is_fitted_in_steps_that_exist(self) -> None:
        """Catches a misspelt or zero value in ``teacher_fit``."""
        fit: Any = self.task().teacher_fit()
        if fit is None:
            return
        keys = ("epochs", "batch_size", "learning_rate")
        if not isinstance(fit, Mapping) or set(fit) != set(keys):
            broken(f"teacher_fit() must return None or {', '.join(keys)}, got {fit!r}")
        for key in keys:
            if not fit[key] > 0:
                broken(f"teacher_fit()[{key!r}] must be above 0, got {fit[key]!r}")

    def test_every_part_has_examples(self) -> None:
        """Catches a missing part, or one without a length."""
        task = self.task()
        for part in PARTS:
            data: Any = task.data(part)
            if not isinstance(data, Sized) or not len(data):
                broken(f"data({part!r}) must have a length above 0")

    @advise("Draw from a separate torch.Generator with a fixed seed")
    def test_examples_are_the_same_in_every_run(self) -> None:
        """Catches a split or order drawn from the global generator: a resumed run then uses different data."""
        one, two = self.task(1), self.task(2)
        for part in PARTS:
            if not same_content(self.batch(one, part, 1), self.batch(two, part, 2)):
                broken(f"data({part!r}) returns different examples, or a different order, when the task is built again")

    def test_adaptors_give_what_an_objective_reads(self) -> None:
        """Catches a key with a typo; logits that are not finite; teacher and student that differ in classes or length."""
        task = self.task()
        for part in PARTS:
            sides = {side: outputs for side, _, outputs in self.outputs(task, part)}
            logits = {side: outputs.logits or () for side, outputs in sides.items()}
            found = _items if spans(task) else _shapes
            cure = _MARK if spans(task) else _FIT
            shapes = {side: found(outputs) for side, outputs in sides.items()}
            if shapes["teacher"] != shapes.get("student", shapes["teacher"]):
                broken(
                    f"for data({part!r}) the teacher returns logits {shapes['teacher']} but the student "
                    f"{shapes['student']}: {cure}"
                )
            for side, heads in logits.items():
                if not all(bool(torch.isfinite(tensor).all()) for head in heads for tensor in _tensors(head)):
                    broken(
                        f"the {side}'s logits of data({part!r}) are not finite: clamp the inputs of logarithms and divisions"
                    )

    def test_the_student_can_be_trained_on_its_labels(self) -> None:
        """Catches a detached or missing loss, without which a student without a teacher learns nothing."""
        for side, model, outputs in self.outputs(self.task(), "baseline"):
            if side == "teacher":
                continue
            if outputs.losses is None:
                broken(
                    "student_adaptor returns no 'losses' for data('baseline'), on which a student without a teacher "
                    "is trained: return the loss on the labels of each item"
                )
            total = _label_term(outputs).value
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            if not total.requires_grad or not any(
                gradient is not None and bool(gradient.any())
                for gradient in torch.autograd.grad(total, trained, allow_unused=True)
            ):
                broken(
                    "the 'losses' of student_adaptor do not reach the student: remove detach(), item() and no_grad()"
                )

    def test_cutting_a_batch_leaves_the_loss_on_its_labels_unchanged(self) -> None:
        """Catches a mean under ``losses``, which weights micro-batches and processes equally despite unequal label counts."""
        task = self.task()
        for part in ("distillation", "baseline"):
            if min(self.examples, len(task.data(part))) < 2:
                continue
            with seeded(0):
                model = task.build_student().eval()
            whole, first, rest = (
                self._label_losses(task, model, part, places) for places in (slice(None), slice(1), slice(1, None))
            )
            if not len(whole) == len(first) == len(rest):
                broken(
                    f"student_adaptor returns {len(whole)} 'losses' for a batch of data({part!r}), but another number "
                    "for its halves: return one tensor with a loss per item, or one kdplug.LossSum"
                )
            for one, two, three in zip(whole, first, rest, strict=True):
                count, apart = float(one.count), float(two.count) + float(three.count)
                if count != apart:
                    broken(
                        f"the 'losses' of student_adaptor are a mean over {count:g} items in a batch of data({part!r}) "
                        f"but over {apart:g} in its two halves: return kdplug.LossSum(total, count), or one loss per "
                        "item"
                    )
                total, pieces = float(one.total), float(two.total) + float(three.total)
                if not math.isclose(total, pieces, rel_tol=1e-3, abs_tol=1e-4):
                    broken(
                        f"the 'losses' of student_adaptor add up to {total:g} in a batch of data({part!r}) but to "
                        f"{pieces:g} in its two halves, although both count the same items: return a sum as total"
                    )

    def test_the_metric_is_among_the_figures(self) -> None:
        """Catches a figure under a name other than ``metric``, which fails only at the end of a run; a mean over nothing."""
        task = self.task()
        metric = task.metric
        for side, found in (
            ("teacher", self._figures(task, task.build_teacher())),
            ("student", self._figures(task, task.build_student())),
        ):
            if metric not in found:
                broken(
                    f"evaluate returns {', '.join(found) or 'nothing'} for the {side}, but not its metric {metric!r}: give both the same name"
                )
            wrong = {name: value for name, value in found.items() if not math.isfinite(value)}
            if wrong:
                broken(
                    f"evaluate returns {wrong} for the {side}: figures must be finite, so clamp a count before dividing by it"
                )

    def test_evaluating_changes_nothing(self) -> None:
        """Catches a model left in training mode, or trained on the test part."""
        task = self.task()
        model = task.build_student()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self._figures(task, model)
        if model.training:
            broken("evaluate leaves the model in training mode: call model.eval()")
        changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
        if changed:
            broken(f"evaluate changes {changed[0]} of the model: change no parameter or buffer")

    def _label_losses(self, task: Any, model: nn.Module, part: Part, places: slice) -> tuple[LossSum, ...]:
        """Return the losses of some of a part's first examples, with their counts; empty if there are none."""
        batch = split(self.batch(task, part, places=places))
        with seeded(0), torch.no_grad():
            outputs = self.read(task, "student", model, batch, f"data({part!r})")
        return () if outputs.losses is None else _label_term(outputs).parts

    def _figures(self, task: Any, model: nn.Module) -> dict[str, float]:
        with seeded(0), torch.no_grad():
            found: Any = task.evaluate(model.eval(), [self.batch(task, "test")])
        return {name: float(value) for name, value in found.items()}


def _label_term(outputs: Outputs) -> TermValue:
    """Compute the hard label loss as a run does."""
    objective = Objective(DistillationConfig(kd_loss_weight=0.0, hard_label_weight=1.0))
    report: LossReport = objective(student=outputs)
    return report.terms[HardLabelTerm.name]


def _shapes(outputs: Outputs) -> list[Any]:
    return [list(head.shape) for head in outputs.logits or ()]


def _items(outputs: Outputs) -> list[Any]:
    """Return the number of compared items of each head: classes, and item positions, may differ between the sides."""
    masks = outputs.logits_mask or ()
    counts = [int(mask.sum()) for mask in masks] or [head.shape[:-1].numel() for head in outputs.logits or ()]
    return [f"{count} items" for count in counts]


def _tensors(head: Logits) -> tuple[Tensor, ...]:
    """Return the tensors that must be finite: logits, or their factors. ``-inf`` is a probability of 0."""
    if isinstance(head, SparseLogits):
        return () if head.weights is None else (head.weights,)
    return (head,) if isinstance(head, Tensor) else head.tensors
