"""A task on transformers models: combines data, models and a problem for a recipe to run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from torch import nn

import kdplug
from kdplug_tasks.batch import Batch
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.data.source import Source, read_source, repeated_rows, shared_data
from kdplug_tasks.fingerprint import Identified, fingerprint_of
from kdplug_tasks.models.card import model_card, teacher_card
from kdplug_tasks.models.family import Family, Side
from kdplug_tasks.problem import Adapt, Problem, Reviewing, ReviewingData, Sampling, Spanning
from kdplug_tasks.text.tokenizer import difference

Part = Literal["teacher", "distillation", "baseline", "validation", "test"]


class ModelTask:
    """Implements ``kdplug.Task`` and its optional methods.

    The labelled rows of ``train`` train the teacher (if it is trained) and the baseline student. The student is
    distilled on ``distillation``, whose rows may lack labels. ``validation`` and ``test`` are never trained on.
    """

    def __init__(self, problem: Problem, data: DataSettings, family: Family) -> None:
        _check_extra()
        self.problem = problem
        self.settings = data
        self.family = family
        self._adaptors = _adaptors(problem)
        self._examples: dict[str, Identified] = {}

    @property
    def metric(self) -> str:
        """Name of the main metric."""
        return self.problem.metric

    @property
    def is_lower_better(self) -> bool:
        """True if a lower metric is better."""
        return self.problem.is_lower_better

    @property
    def unit(self) -> str:
        """Unit of throughput."""
        return self.problem.unit

    def count(self, batch: Any) -> int:
        """Return the number of units in a batch."""
        return self.problem.count(batch)

    def expect(self, reads: frozenset[str]) -> None:
        """Set which outputs the objective reads, so that models return no others."""
        self.family.reads = reads

    def check(self) -> None:
        """Read all data, build both configs and check that they are compatible. Raises: ``ConfigError``."""
        self._source  # noqa: B018  reads the data
        self.family.check()
        for part in _PARTS:
            self.data(part)

    def about(self) -> str:
        """Describe the task, for printing at the start of a run."""
        distilled, labelled, validated, tested = (len(self.data(part)) for part in _PARTS)
        known = f"{labelled} labelled examples for training without a teacher"
        sizes = f"{distilled} examples for distillation, {known}, {validated} for validation, {tested} for testing."
        lines = [sizes, self.problem.about()]
        if self.family.needs_eager:
            lines.append("Attention is computed eagerly in both models, since a match reads it.")
        return " ".join(filter(None, lines))

    def build_teacher(self) -> nn.Module:
        """Return the teacher, loaded or from scratch."""
        self._source  # noqa: B018  determines the classes
        return self.family.build_teacher()

    def teacher_fit(self) -> dict[str, Any] | None:
        """Return the teacher's training settings, ``None`` if it is not trained."""
        teacher = self.family.teacher
        if not teacher.train:
            return None
        return {"epochs": teacher.epochs, "batch_size": teacher.batch_size, "learning_rate": teacher.lr}

    def build_student(self) -> nn.Module:
        """Return the student without weights from the teacher."""
        self._source  # noqa: B018
        return self.family.build_student()

    @property
    def starts_student(self) -> bool:
        """True if the student is initialized from the teacher."""
        return self.family.student.from_teacher is not None

    def start_student(self, student: nn.Module, teacher: nn.Module) -> None:
        """Copy weights from the teacher to the student, according to the settings."""
        self.family.start_student(student, teacher)

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that the teacher's outputs depend on."""
        return dict(self._fingerprint)

    def data(self, part: Part) -> Identified:
        """Return the examples of one part; ``teacher`` equals ``baseline`` if both sides share a tokenizer."""
        if part not in self._examples:
            self._examples[part] = self._made(part)
        return self._examples[part]

    def collate(self, examples: list[Any]) -> Batch | Mapping[str, Batch]:
        """Return a padded batch, or one for each side."""
        return self.problem.collate(examples)

    @property
    def teacher_adaptor(self) -> Adapt:
        """Adaptor of the teacher."""
        return self._adaptors["teacher"]

    @property
    def student_adaptor(self) -> Adapt:
        """Adaptor of the student."""
        return self._adaptors["student"]

    @property
    def vocabulary_difference(self) -> str:
        """Description of how the student's vocabulary differs from the teacher's; empty if they share one."""
        self._source  # noqa: B018  determines the tokenizers
        if not isinstance(self.problem, Spanning) or not self.problem.spans_vocabularies:
            return ""
        teacher, student = (self.problem.processor_of(side).tokenizer for side in ("teacher", "student"))
        return difference(teacher, student)

    def predict(self, model: nn.Module, batches: Iterable[Any]) -> kdplug.Predictions:
        """Return the problem's metrics, and the prediction for each example."""
        return self.problem.predict(model, batches)

    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        """Return the problem's metrics."""
        return dict(self.predict(model, batches).metrics)

    def review_teacher(self, outputs: Iterable[kdplug.Outputs]) -> Iterable[tuple[str, str]]:
        """Yield a setting and a warning about it, from a trained teacher's outputs on the first batches."""
        return self.problem.review_teacher(outputs) if isinstance(self.problem, Reviewing) else ()

    def review_data(self) -> Iterator[tuple[str, str]]:
        """Yield a setting and a warning about it, for probably unintended properties of the data."""
        yield from shared_data(self.settings)
        yield from repeated_rows(self.settings, self._source, self.problem.columns.inputs)
        if isinstance(self.problem, ReviewingData):
            yield from self.problem.review_data(self._source)

    @property
    def prepares_batches(self) -> bool:
        """True if the student generates some batches itself."""
        return isinstance(self.problem, Sampling) and self.problem.samples

    def prepare_batch(self, batch: Batch, student: nn.Module) -> Batch:
        """Return a batch that the student generated, or ``batch`` itself."""
        assert isinstance(self.problem, Sampling)
        with self.family.multiplied_out():
            return self.problem.sampled(batch, student)

    def answer(self, model: nn.Module, batch: Any) -> Any:
        """Return the outputs that a user of the model gets for a batch, with full logits."""
        part = self.problem.part_of(batch, model) if isinstance(self.problem, Spanning) else batch
        with self.family.multiplied_out():
            return model(**part)

    def save_student(self, student: nn.Module, folder: Path, record: Mapping[str, Any]) -> None:
        """Write a folder for ``from_pretrained``: config, weights, tokenizer or image processor, and a model card."""
        self._save(student, folder, "student", model_card(record, self.family, self.problem))

    def save_teacher(self, teacher: nn.Module, folder: Path, record: Mapping[str, Any]) -> None:
        """Write a folder that ``teacher`` can name, as ``save_student`` does, with the teacher's own tokenizer."""
        self._save(teacher, folder, "teacher", teacher_card(record, self.family, self.problem))

    def _save(self, model: nn.Module, folder: Path, side: Side, card: str) -> None:
        self.family.save(model, folder)
        self.problem.save(folder, side)
        (folder / "README.md").write_text(card, encoding="utf-8")

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        return fingerprint_of(self.problem, self.family, self.data("teacher"))

    @cached_property
    def _source(self) -> Source:
        source = read_source(self.settings, self.problem.columns)
        self.problem.settle(source, self.family)
        return source

    def _made(self, part: Part) -> Identified:
        source = self._source
        if part in ("validation", "test"):
            held_out = source.validation if part == "validation" else source.test
            return Identified(self.problem.examples(held_out, optional=False), held_out)
        if part == "baseline":
            return Identified(self.problem.examples(source.train, optional=False), source.train)
        if part == "teacher":
            labelled = self.data("baseline")
            if not isinstance(self.problem, Spanning):
                return labelled
            return Identified(self.problem.examples_of_teacher(labelled.examples), source.train)
        if source.distillation is source.train:
            return self.data("baseline")
        found = self.problem.examples(source.distillation, optional=True)
        if not len(found):
            raise kdplug.ConfigError(
                "yields no examples. Add rows, or remove data.distillation to distil on data.train",
                field="data.distillation",
            )
        return Identified(found, source.distillation)


_PARTS: tuple[Part, ...] = ("distillation", "baseline", "validation", "test")


def _adaptors(problem: Problem) -> dict[Side, Adapt]:
    if isinstance(problem, Spanning):
        return {"teacher": problem.adaptor("teacher"), "student": problem.adaptor("student")}
    return dict.fromkeys(("teacher", "student"), problem.adaptor())


def _check_extra() -> None:
    missing = [name for name in ("transformers", "tokenizers", "datasets") if find_spec(name) is None]
    if missing:
        raise kdplug.ConfigError(
            f'the task needs {", ".join(missing)}: pip install "kdplug-tasks[transformers]"', field="name"
        )
