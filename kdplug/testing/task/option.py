"""Laws on what a task may offer beyond what every task does. Each holds where the task offers it with these settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdplug.contracts.task import (
    AnswersWhole,
    CountsUnits,
    Directed,
    FingerprintedTask,
    PreparesBatches,
    ReadsAware,
    SelfChecking,
    SpansVocabularies,
    StartsStudent,
)
from kdplug.engine.training_module import split
from kdplug.errors import KdplugError
from kdplug.testing.law import broken
from kdplug.testing.sample import seeded
from kdplug.testing.task.case import TaskCase, alike


class TaskOptionLaws(TaskCase):
    """A run uses those options that it finds."""

    def test_it_finds_nothing_wrong_with_good_settings(self) -> None:
        """For: a check that refuses what would have run; one that changes what the examples are."""
        task, unchecked = self.task(), self.task()
        if not _offers(task, SelfChecking):
            return
        try:
            task.check()
        except KdplugError as error:
            broken(f"check() refuses the settings that the laws are tried with: {error}")
        if not alike(self.batch(task, "distillation"), self.batch(unchecked, "distillation")):
            broken("data('distillation') holds other examples after check()")

    def test_what_an_objective_reads_does_not_change_the_rest(self) -> None:
        """For: models that give other logits, or no losses, where a run tells the task that hidden states are read."""
        for reads in (frozenset({"logits", "losses"}), frozenset({"logits", "losses", "hidden"})):
            plain, told = self.task(), self.task()
            if not _offers(told, ReadsAware):
                return
            told.expect(reads)
            pairs = zip(self.outputs(plain, "baseline"), self.outputs(told, "baseline"), strict=True)
            for (side, _, expected), (_, _, found) in pairs:
                for name in ("logits", "losses"):
                    one, two = getattr(expected, name), getattr(found, name)
                    if (one is None) is not (two is None):
                        broken(f"the {side}'s {name} come and go with what is read, {', '.join(sorted(reads))}")
                if "hidden" in reads and found.hidden is None:
                    broken(f"the {side} gives no 'hidden' states, which it was told are read")

    def test_a_student_starts_from_the_teacher_and_leaves_it_alone(self) -> None:
        """For: a student that stays random; one that shares weights with the teacher, which then learns with it."""
        task = self.task()
        if not _offers(task, StartsStudent) or not task.starts_student:
            return
        with seeded(0):
            teacher, student = task.build_teacher(), task.build_student()
        fresh = _state(student)
        with _untouched(teacher, "start_student changes {} of the teacher"):
            task.start_student(student, teacher)
        if not _changed(student, fresh):
            broken("start_student leaves the student as it was built")
        with _untouched(teacher, "{} of the teacher is the student's own: copy it"), torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(1.0)

    def test_it_says_which_way_its_metric_points(self) -> None:
        """For: a flag that is written as a method, which is always true: the best checkpoint is then the worst."""
        task = self.task()
        if isinstance(task, Directed) and not isinstance(task.is_lower_better, bool):
            broken(
                f"is_lower_better must be True or False, and is {task.is_lower_better!r}: an attribute or a property"
            )

    def test_units_are_counted_and_padding_is_none(self) -> None:
        """For: tokens per second that rise with the longest example of a batch."""
        task = self.task()
        if not _offers(task, CountsUnits):
            return
        if not isinstance(task.unit, str) or not task.unit.strip():
            broken(f"unit must say what is counted, in the plural, and is {task.unit!r}")
        data: Any = task.data("test")
        singles = [task.collate([data[place]]) for place in range(min(self.examples, len(data)))]
        together, apart = task.count(self.batch(task, "test")), sum(map(task.count, singles))
        if not isinstance(together, int) or together < 1 or together != apart:
            broken(f"count finds {together} {task.unit} in a batch, and {apart} in its examples one by one")

    def test_batches_that_are_made_anew_are_the_same_in_a_resumed_run(self) -> None:
        """For: draws from a generator that no checkpoint holds; a student that is trained, or left in training mode, by its own
        writing; a batch that the adaptors cannot read.
        """
        task = self.task()
        if not _offers(task, PreparesBatches) or not task.prepares_batches:
            return
        with seeded(0):
            student = task.build_student().eval()
        made = []
        with _untouched(student, "prepare_batch changes {} of the student"), torch.no_grad():
            for _ in range(2):
                batch = self.batch(task, "distillation")
                with seeded(3):
                    made.append(task.prepare_batch(batch, student))
        if student.training:
            broken("prepare_batch leaves the student in training mode")
        if not alike(*made):
            broken("prepare_batch makes another batch of the same one where torch's global generators stand the same")
        for side in ("teacher", "student"):
            self.read(task, side, student, split(made[0]), "a batch that was made anew")

    def test_an_answer_leaves_the_model_as_it_was(self) -> None:
        """For: a head that is put back for the answer, and stays: the next step then holds all logits."""
        task = self.task()
        if not _offers(task, AnswersWhole):
            return
        with seeded(0):
            model = task.build_student().eval()
        batch = self.batch(task, "test")
        parts = split(batch)
        with torch.no_grad(), _untouched(model, "answer changes {} of the model"):
            before = self.read(task, "student", model, parts, "data('test')")
            task.answer(model, batch)
            after = self.read(task, "student", model, parts, "data('test')")
        if [_form(head) for head in before.logits or ()] != [_form(head) for head in after.logits or ()]:
            broken("the model gives logits in another form after answer()")

    def test_each_side_of_two_vocabularies_has_inputs_of_its_own(self) -> None:
        """For: a flag in the place of what differs; one batch for both models, which then read ids that mean other tokens."""
        task = self.task()
        if not _offers(task, SpansVocabularies):
            return
        if not isinstance(task.vocabulary_difference, str):
            broken(f"vocabulary_difference must be a text, and is {task.vocabulary_difference!r}")
        for part in ("distillation", "baseline", "test") if task.vocabulary_difference else ():
            batch = self.batch(task, part)
            if not isinstance(batch, Mapping) or not {"teacher", "student"} <= batch.keys():
                broken(
                    f"a batch of data({part!r}) must be {{'teacher': …, 'student': …}}, since their vocabularies differ"
                )

    def test_its_fingerprint_is_plain_data_and_the_same_in_every_run(self) -> None:
        """For: an object's address, or an absolute date, by which no cache is ever found again."""
        one, two = self.task(1), self.task(2)
        if not _offers(one, FingerprintedTask):
            return
        found, again = one.fingerprint(), two.fingerprint()
        try:
            plain = json.loads(json.dumps(found))
        except (TypeError, ValueError) as error:
            broken(f"fingerprint() must return plain data: {error}")
        if not plain or json.dumps(found) != json.dumps(again):
            broken(f"fingerprint() is {found}, and {again} when the task is made again")


def _offers(task: Any, option: type) -> bool:
    return isinstance(task, option)


def _form(head: Any) -> tuple[str, list[int]]:
    return type(head).__name__, list(head.shape)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _changed(model: nn.Module, before: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]


@contextmanager
def _untouched(model: nn.Module, message: str) -> Iterator[None]:
    before = _state(model)
    yield
    changed = _changed(model, before)
    if changed:
        broken(message.format(changed[0]))
