"""Tests for the optional methods of a task. A test applies if the task, with the given settings, has the method."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from kdplug.contracts.task import (
    AnswersWhole,
    CountsUnits,
    Directed,
    FingerprintedTask,
    PreparesBatches,
    ReadsAware,
    ReviewsData,
    ReviewsTeacher,
    SelfChecking,
    SpansVocabularies,
    StartsStudent,
)
from kdplug.contracts.tree import tensors
from kdplug.engine.training_module import split
from kdplug.errors import KdplugError
from kdplug.testing.law import advise, broken
from kdplug.testing.sample import seeded
from kdplug.testing.task.case import PARTS, TaskCase, offers, same_content


class TaskOptionLaws(TaskCase):
    """Tests for the optional methods of a task."""

    @advise(
        "Make check() raise only for settings that cannot be used, and change nothing; or correct the settings of the test class"
    )
    def test_it_finds_nothing_wrong_with_good_settings(self) -> None:
        """Catches a check that rejects valid settings, or that changes the examples."""
        task, unchecked = self.task(), self.task()
        if not offers(task, SelfChecking):
            return
        try:
            task.check()
        except KdplugError as error:
            broken(f"check() rejects the settings of the test class: {error}")
        if not same_content(self.batch(task, "distillation"), self.batch(unchecked, "distillation")):
            broken("data('distillation') returns different examples after check()")

    def test_what_an_objective_reads_does_not_change_the_rest(self) -> None:
        """Catches models that return other logits, or no losses, after ``expect`` is called with hidden states."""
        for reads in (frozenset({"logits", "losses"}), frozenset({"logits", "losses", "hidden"})):
            plain, informed = self.task(), self.task()
            if not offers(informed, ReadsAware):
                return
            informed.expect(reads)
            pairs = zip(self.outputs(plain, "baseline"), self.outputs(informed, "baseline"), strict=True)
            for (side, _, expected), (_, _, found) in pairs:
                for name in ("logits", "losses"):
                    one, two = getattr(expected, name), getattr(found, name)
                    if (one is None) is not (two is None):
                        broken(
                            f"the {side}'s {name} depend on the keys passed to expect: {', '.join(sorted(reads))}. Return {name} for any keys"
                        )
                if "hidden" in reads and found.hidden is None:
                    broken(
                        f"the {side} returns no 'hidden' states, although expect was called with 'hidden': return them after that call"
                    )

    def test_a_student_starts_from_the_teacher_and_leaves_it_alone(self) -> None:
        """Catches a student that stays random; one that shares weights with the teacher, which is then trained too."""
        task = self.task()
        if not offers(task, StartsStudent) or not task.starts_student:
            return
        with seeded(0):
            teacher, student = task.build_teacher(), task.build_student()
        fresh = _state(student)
        with _untouched(teacher, "start_student changes {} of the teacher: copy from the teacher to the student"):
            task.start_student(student, teacher)
        if not _changed(student, fresh):
            broken(
                "start_student leaves the student as it was built: copy weights into it, or set starts_student = False"
            )
        with _untouched(teacher, "{} of the teacher is shared with the student: copy it"), torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(1.0)

    def test_it_says_which_way_its_metric_points(self) -> None:
        """Catches a flag written as a method, which is always true, so that the worst checkpoint counts as the best."""
        task = self.task()
        if isinstance(task, Directed) and not isinstance(task.is_lower_better, bool):
            broken(
                f"is_lower_better must be True or False, got {task.is_lower_better!r}: use an attribute or a property"
            )

    def test_units_are_counted_and_padding_is_none(self) -> None:
        """Catches padding counted in tokens per second."""
        task = self.task()
        if not offers(task, CountsUnits):
            return
        if not isinstance(task.unit, str) or not task.unit.strip():
            broken(f"unit must be a plural noun, got {task.unit!r}")
        data: Any = task.data("test")
        singles = [task.collate([data[place]]) for place in range(min(self.examples, len(data)))]
        together, apart = task.count(self.batch(task, "test")), sum(map(task.count, singles))
        if not isinstance(together, int) or together < 1 or together != apart:
            broken(
                f"count finds {together} {task.unit} in a batch, but {apart} in its examples one by one: "
                "return the sum over examples as a Python int, without padding"
            )

    def test_batches_that_are_made_anew_are_the_same_in_a_resumed_run(self) -> None:
        """Catches draws from a generator that is not in checkpoints; a student that is trained, or left in training
        mode, by generation; a batch that the adaptors cannot read.
        """
        task = self.task()
        if not offers(task, PreparesBatches) or not task.prepares_batches:
            return
        with seeded(0):
            student = task.build_student().eval()
        made = []
        with (
            _untouched(student, "prepare_batch changes {} of the student: change no parameter or buffer"),
            torch.no_grad(),
        ):
            for _ in range(2):
                batch = self.batch(task, "distillation")
                with seeded(3):
                    made.append(task.prepare_batch(batch, student))
        if student.training:
            broken("prepare_batch leaves the student in training mode: call student.eval()")
        if not same_content(*made):
            broken(
                "prepare_batch returns another batch for the same input and state of torch's global generators: draw only "
                "from these"
            )
        for side in ("teacher", "student"):
            self.read(task, side, student, split(made[0]), "a prepared batch")

    @advise("Change a copy of the model, or restore the model before answer() returns")
    def test_an_answer_leaves_the_model_as_it_was(self) -> None:
        """Catches a head restored for the answer and not removed: the next step then holds all logits."""
        task = self.task()
        if not offers(task, AnswersWhole):
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
            broken("the model returns logits in another form after answer()")

    def test_each_side_of_two_vocabularies_has_inputs_of_its_own(self) -> None:
        """Catches a flag instead of a description; one batch for both models, whose ids mean different tokens."""
        task = self.task()
        if not offers(task, SpansVocabularies):
            return
        if not isinstance(task.vocabulary_difference, str):
            broken(f"vocabulary_difference must be a string, got {task.vocabulary_difference!r}: describe it")
        for part in ("distillation", "baseline", "test") if task.vocabulary_difference else ():
            batch = self.batch(task, part)
            if not isinstance(batch, Mapping) or not {"teacher", "student"} <= batch.keys():
                broken(
                    f"a batch of data({part!r}) must be {{'teacher': …, 'student': …}}, since their vocabularies differ"
                )

    def test_its_fingerprint_is_plain_data_and_the_same_in_every_run(self) -> None:
        """Catches an object's address or a timestamp, with which a cache is never reused."""
        one, two = self.task(1), self.task(2)
        if not offers(one, FingerprintedTask):
            return
        found, again = one.fingerprint(), two.fingerprint()
        try:
            plain = json.loads(json.dumps(found))
        except (TypeError, ValueError) as error:
            broken(f"fingerprint() must return plain data: {error}. Return strings, numbers, lists and dicts")
        if not plain:
            broken(f"fingerprint() is {found!r}: return what identifies the models and their data")
        if json.dumps(found) != json.dumps(again):
            broken(
                f"fingerprint() is {found}, but {again} when the task is built again: compute it from settings and files"
            )

    def test_its_reviews_are_warnings_and_change_nothing(self) -> None:
        """Catches a warning without its setting; one that differs in the next run; a review that draws random numbers, so
        that a run with another review trains another student; one that changes the data, the models or their outputs.
        """
        for option, review, name in (
            (ReviewsData, self._review_data, "review_data"),
            (ReviewsTeacher, self._review_teacher, "review_teacher"),
        ):
            if not offers(self.task(), option):
                continue
            found, again = review(self.task(1)), review(self.task(2))
            if found != again:
                broken(
                    f"{name} yields {found}, but {again} when the task is built again: compute warnings from data and "
                    "settings"
                )

    def _review_data(self, task: Any) -> list[tuple[str, str]]:
        if offers(task, SelfChecking):
            with suppress(KdplugError):
                task.check()
        before = [self.batch(task, part) for part in PARTS]
        found = _warnings(task.review_data, "review_data")
        if not same_content(before, [self.batch(task, part) for part in PARTS]):
            broken("data() returns other examples after review_data(): change nothing in it")
        return found

    def _review_teacher(self, task: Any) -> list[tuple[str, str]]:
        if offers(task, SelfChecking):
            with suppress(KdplugError):
                task.check()
        with torch.no_grad():
            _, teacher, outputs = next(self.outputs(task, "distillation"))
        teacher.requires_grad_(False)  # as a run does, before factors of its logits are read
        held = [one.clone() for one in tensors(outputs)]
        with _untouched(teacher, "review_teacher changes {} of the teacher: change no parameter or buffer"):
            found = _warnings(lambda: task.review_teacher(iter((outputs,))), "review_teacher")
        if not same_content(held, list(tensors(outputs))):
            broken("review_teacher changes the outputs that are passed to it: change a copy")
        return found


def _warnings(review: Callable[[], Any], name: str) -> list[tuple[str, str]]:
    """Return what a review yields, after checking its form, and that no global generator was used."""
    states = _generators()
    found = list(review())
    if _generators() != states:
        broken(
            f"{name} draws from a global generator, so the run after it draws other numbers. Use a separate torch.Generator"
        )
    for one in found:
        if (
            not isinstance(one, tuple)
            or len(one) != 2
            or not all(isinstance(part, str) and part.strip() for part in one)
        ):
            broken(f"{name} must yield pairs of a setting and a warning, got {one!r}")
        if any("\n" in part for part in one) or not _SETTING.fullmatch(one[0]):
            broken(
                f"{name} must yield the path of a setting, such as data.train, and a warning of one line, got {one!r}"
            )
    return found


_SETTING = re.compile(r"\w+(\.\w+)*")


def _generators() -> tuple[Any, ...]:
    of_numpy: Any = numpy.random.get_state()  # noqa: NPY002  what other code may draw from
    return torch.get_rng_state().tolist(), random.getstate(), of_numpy[1].tolist(), of_numpy[2]


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
