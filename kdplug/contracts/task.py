"""Interface of a recipe's task, which provides models, data, adaptors and a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Required, TypedDict, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    from torch.nn import Module
    from torch.utils.data import Dataset

    from kdplug.contracts.outputs import Outputs


Part = Literal["teacher", "distillation", "baseline", "validation", "test"]
"""A part of a task's data.

``teacher``, ``distillation`` and ``baseline`` are for training the teacher, the distilled student, and a student without
a teacher. ``validation`` is for evaluations during training, and ``test`` for the evaluation at the end of a run. No
model is trained on ``validation`` or ``test``, and nothing is chosen on ``test``."""


class TeacherFit(TypedDict):
    """Training settings of an untrained teacher: AdamW, learning rate decaying linearly to 0."""

    epochs: int
    batch_size: int
    learning_rate: float


Aggregate = Literal["mean", "exp_mean", "root_mean", "pearson", "spearman", "macro_f1"]
"""Method of computing the main metric from predictions: the weighted mean of their scores, its exponential (perplexity),
its square root; or, from labels and predictions, their correlation, or F1 averaged over the classes that occur."""

Target = Literal["class", "tags", "classes", "number", "text", "tokens"]
"""The kind of prediction for an example: a class, one class for each of its parts, any number of classes, a number, text,
or the tokens of a language model."""


class Prediction(TypedDict, total=False):
    """A model's prediction for one example. Only ``score`` is required.

    ``score`` is the example's part of the task's main metric, and ``weight`` (default 1) the weight of the score in it.
    ``unit`` identifies the independent unit that the example belongs to, such as a document; by default each example is
    a unit. ``label`` and ``prediction`` are classes, numbers or texts, or lists of classes. ``probability`` is the
    probability of the prediction; for a list of tags, it is a list with one probability for each tag. ``input`` is a
    short text to show in reports.
    """

    score: Required[float]
    weight: float
    unit: str | int
    label: Any
    prediction: Any
    probability: float | list[float]
    input: str


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions for the examples of a part, in order, and their metrics, by name."""

    metrics: Mapping[str, float]
    rows: Sequence[Prediction]
    aggregate: Aggregate = "mean"
    target: Target = "class"


@runtime_checkable
class Task(Protocol):
    """Models, data, adaptors and a metric.

    Any class with these members is a task; it need not import kdplug. Its ``__init__`` takes keyword-only settings and
    is cheap: data is read and models are built only when a method needs them.

    Mapping batches are passed to a model as keyword arguments, tuples and lists as positional arguments, anything else
    as the only argument.
    """

    @property
    def metric(self) -> str:
        """Name of the ``evaluate`` metric in the final table. Higher is better unless ``is_lower_better`` is true."""
        ...

    def about(self) -> str:
        """One or two sentences printed at the start of a run: the data, and the part of it that the student gets."""
        ...

    def build_teacher(self) -> Module:
        """Build the teacher; random initial weights come from torch's global generator."""
        ...

    def teacher_fit(self) -> TeacherFit | None:
        """Return settings to train the teacher on ``data("teacher")``, or ``None`` if it needs no training."""
        ...

    def build_student(self) -> Module:
        """Build the student; random initial weights come from torch's global generator."""
        ...

    def data(self, part: Part) -> Dataset[Any]:
        """Return the examples of one part, in a fixed order."""
        ...

    def collate(self, examples: list[Any]) -> Any:
        """Build a batch from examples of any part."""
        ...

    def teacher_adaptor(self, batch: Any, outputs: Any) -> Mapping[str, Any]:
        """Map the teacher's outputs to adaptor keys, with ``losses`` if the batch has labels."""
        ...

    def student_adaptor(self, batch: Any, outputs: Any) -> Mapping[str, Any]:
        """Map the student's outputs to adaptor keys, with ``losses`` if the batch has labels."""
        ...

    def evaluate(self, model: Module, batches: Iterable[Any]) -> Mapping[str, float]:
        """Return a model's metrics over batches, by name.

        ``model`` is in eval mode and on the device of the batches, and gradients are disabled.
        """
        ...


@runtime_checkable
class ReadsAware(Protocol):
    """A task that needs the keys that the objective reads, because its models return some outputs only on request."""

    def expect(self, reads: frozenset[str]) -> None:
        """Receive the ``kdplug.ADAPTOR_KEYS`` that are read. Called once, before data is read or a model is built.

        ``hidden`` is omitted if every match of it uses module paths. ``attention`` is not: a module that computes
        attention may need a setting to return it.
        """
        ...


@runtime_checkable
class PredictsExamples(Protocol):
    """A task that returns its predictions for each example. A run needs them for a verdict."""

    def predict(self, model: Module, batches: Iterable[Any]) -> Predictions:
        """Return a model's predictions, and the metrics that ``evaluate`` returns for the same batches.

        ``model`` is in eval mode and on the device of the batches, and gradients are disabled.
        """
        ...


@runtime_checkable
class SelfChecking(Protocol):
    """A task that can detect, before training, problems that would make the run fail later."""

    def check(self) -> None:
        """Raise a ``KdplugError`` whose field is the setting, for unreadable data or incompatible models."""
        ...


@runtime_checkable
class StartsStudent(Protocol):
    """A task whose student may start from the weights of the trained teacher."""

    @property
    def starts_student(self) -> bool:
        """Return whether the settings request this.

        If not, the teacher is not built when a cache of its outputs exists.
        """
        ...

    def start_student(self, student: Module, teacher: Module) -> None:
        """Initialise a new student from ``build_student``. Do not modify ``teacher``.

        ``teacher`` is trained, except in ``kdplug plan`` and in the trial of a first batch before a run trains its
        teacher: these pass the untrained teacher from ``build_teacher``.
        """
        ...


@runtime_checkable
class SavesStudent(Protocol):
    """A task that saves its students itself, in the format of their library, such as for ``from_pretrained``."""

    def save_student(self, student: Module, folder: Path, record: Mapping[str, Any]) -> None:
        """Write the trained student into the empty ``folder``, instead of ``student.safetensors``.

        ``record`` is the content of ``kdplug-run.json``, with that of ``metrics.json`` under ``results``. It is written
        to the folder as ``kdplug-run.json`` afterwards.
        """
        ...


@runtime_checkable
class SavesTeacher(Protocol):
    """A task that saves a teacher that the run trained, so that another recipe can name it."""

    def save_teacher(self, teacher: Module, folder: Path, record: Mapping[str, Any]) -> None:
        """Write the trained teacher into the empty ``folder``. Called after ``teacher_fit``'s training, before distillation.

        ``record`` is the content of ``kdplug-run.json``, which is written to the folder afterwards.
        """
        ...


@runtime_checkable
class Directed(Protocol):
    """A task that declares the direction of its metric. Without it, higher is better."""

    @property
    def is_lower_better(self) -> bool:
        """Return whether a lower value is better, as with perplexity."""
        ...


@runtime_checkable
class CountsUnits(Protocol):
    """A task whose throughput is measured in units other than examples."""

    @property
    def unit(self) -> str:
        """Plural name of the unit: ``tokens``."""
        ...

    def count(self, batch: Any) -> int:
        """Return the number of units in a batch, without padding."""
        ...


@runtime_checkable
class AnswersWhole(Protocol):
    """A task whose models omit some outputs during training and evaluation. Throughput is measured with full output."""

    def answer(self, model: Module, batch: Any) -> Any:
        """Run ``model``, in eval mode and without gradient, as its users do after training."""
        ...


@runtime_checkable
class PreparesBatches(Protocol):
    """A task that generates some batches during distillation, using the current student."""

    @property
    def prepares_batches(self) -> bool:
        """Return whether the settings request this. If so, no teacher cache can be used: it needs all batches up front."""
        ...

    def prepare_batch(self, batch: Any, student: Module) -> Any:
        """Return the batch for both models, or ``batch`` itself if it is not replaced.

        Called once per batch, for all batches of an optimizer step before the step trains on the first. The student is
        in eval mode, on its device, and gradients are off. Draw random numbers from torch's global generators:
        checkpoints store their states, so a resumed run generates the same batches. A new batch without labels should
        have the attribute ``is_generated``, set to true: its hard label loss may then have no items, without a warning.
        """
        ...


@runtime_checkable
class SpansVocabularies(Protocol):
    """A task whose teacher and student may have different vocabularies.

    Its batches are then ``{"teacher": …, "student": …}``.
    """

    @property
    def vocabulary_difference(self) -> str:
        """Describe the difference between the two vocabularies, the student's first; an empty string if they are the same.

        If they differ, class ``i`` of one side is not class ``i`` of the other, even if both have the same number of
        classes. The engine reads this after ``check``. A recipe then accepts only losses and matches that need no
        common classes or positions.
        """
        ...


@runtime_checkable
class ReviewsTeacher(Protocol):
    """A task that can detect, from a teacher's outputs, data unlike those that the teacher was trained on."""

    def review_teacher(self, outputs: Iterable[Outputs]) -> Iterable[tuple[str, str]]:
        """Yield a setting of the task and a warning about it, for ``kdplug plan``.

        ``outputs`` are a trained teacher's on each of the first batches for distillation, as its adaptor returned them.
        A batch is computed when it is read, so read only those that are needed.
        """
        ...


@runtime_checkable
class ReviewsData(Protocol):
    """A task that can detect, from its data alone, properties that are valid but probably unintended."""

    def review_data(self) -> Iterable[tuple[str, str]]:
        """Yield a setting of the task and a warning about it, for ``kdplug plan`` and the log of ``kdplug run``.

        Examples: a class with one row, texts that are truncated. Called once, after ``check``.
        """
        ...


@runtime_checkable
class FingerprintedTask(Protocol):
    """A task that lists what its teacher's outputs depend on. By default they depend on all settings of the task."""

    def fingerprint(self) -> Mapping[str, Any]:
        """Return plain data, by name, that must be equal for a teacher cache to be valid.

        The names may be any. Errors describe three of them in words: ``teacher`` (what is loaded, and its version),
        ``tokenizer`` (a digest of its vocabulary and settings) and ``alignment`` (which token the logits at a position
        refer to). Leave out student-only settings, so that one cache serves several students. Do not build the teacher
        here: the cache exists to avoid that.
        """
        ...


@runtime_checkable
class FingerprintedDataset(Protocol):
    """A dataset that identifies its own examples, so that a run is not resumed with different data.

    Optional: without it the run reads examples by index, as many as one second allows.
    """

    def fingerprint(self) -> Any:
        """Return plain data that changes whenever an example changes, such as a digest of each column, by name.

        It must be the same in every process and cheap compared with a run. If it is a mapping, errors name the keys that
        changed. Its optional key ``shown_as``, such as the file that the examples come from, is only shown in errors and
        not compared.
        """
        ...


NEW_RECIPE = "new_recipe"
"""Attribute that holds a task's overrides for ``kdplug new``."""

_Task = TypeVar("_Task", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class RecipeGuess:
    """A recipe that a task proposes for data and a teacher.

    ``settings`` are the task's settings; ``reasons`` explains in one line each how they were inferred.
    """

    settings: Mapping[str, Any]
    reasons: Sequence[str]


class GuessRecipe(Protocol):
    """Infers a task's settings from data and a teacher, for ``kdplug new --from``."""

    def __call__(self, data: Path, teacher: str | None, /) -> RecipeGuess | None:
        """Return the settings for ``data``, a file or folder; ``None`` if the task cannot read such data.

        ``teacher`` is a model folder or hub name. Nothing may be downloaded.

        Raises: ``ConfigError`` if the data cannot be read.
        """
        ...


def new_recipe(
    *,
    task: Mapping[str, Any] | None = None,
    distillation: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    guess: GuessRecipe | None = None,
) -> Callable[[_Task], _Task]:
    """Declare what ``kdplug new`` writes for a task: keys of ``task:``, ``distillation:`` and ``training:``.

    Only ``kdplug new`` uses them. Keys left out of a recipe keep kdplug's own defaults. Values of ``task`` for settings
    without a default are examples, which the new recipe marks for the user to fill in. ``guess`` infers them from the
    user's data. ::

        @new_recipe(task={"path": "train.csv"}, training={"lr": 2e-4, "num_epochs": 3})
        def reviews(*, path: str): ...
    """

    def declare(target: _Task) -> _Task:
        blocks = {"task": task, "distillation": distillation, "training": training}
        setattr(target, NEW_RECIPE, {**{key: dict(block or {}) for key, block in blocks.items()}, "guess": guess})
        return target

    return declare
