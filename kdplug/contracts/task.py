"""What a recipe's ``task:`` gives to a run: models, data, adaptors and a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    from torch.nn import Module
    from torch.utils.data import Dataset


Part = Literal["teacher", "distillation", "baseline", "test"]
"""A part of a task's data: what the teacher is fitted on, what the student is distilled on, what the student is trained on
where there is no teacher, and what every model is evaluated on."""


class TeacherFit(TypedDict):
    """How an untrained teacher is fitted: AdamW, learning rate falling linearly to 0."""

    epochs: int
    batch_size: int
    learning_rate: float


@runtime_checkable
class Task(Protocol):
    """Models, data, adaptors and a metric.

    A class that offers these names is a task; it need not import kdplug. Its ``__init__`` takes settings, keyword-only,
    and is cheap: data is read and models are built when a method asks for them.

    A batch that is a mapping goes to a model as keyword arguments, a tuple or list as positional ones, anything else as
    the only argument.
    """

    @property
    def metric(self) -> str:
        """The figure of ``evaluate`` that stands in the final table; more of it is better, unless the task is ``Directed``."""
        ...

    def about(self) -> str:
        """One or two sentences for the start of a run: the data, and what the student may see of it."""
        ...

    def build_teacher(self) -> Module:
        """The teacher; its initial weights, where they are random, come from torch's global generator."""
        ...

    def teacher_fit(self) -> TeacherFit | None:
        """How to fit the teacher on ``data("teacher")``, or ``None`` where ``build_teacher`` returns a trained one."""
        ...

    def build_student(self) -> Module:
        """The student; its initial weights, where they are random, come from torch's global generator."""
        ...

    def data(self, part: Part) -> Dataset[Any]:
        """The examples of one part, in a fixed order."""
        ...

    def collate(self, examples: list[Any]) -> Any:
        """A batch from examples of any part."""
        ...

    def teacher_adaptor(self, batch: Any, outputs: Any) -> Mapping[str, Any]:
        """What the teacher returned, under the adaptor keys; ``losses`` wherever the batch has labels."""
        ...

    def student_adaptor(self, batch: Any, outputs: Any) -> Mapping[str, Any]:
        """What the student returned, under the adaptor keys; ``losses`` wherever the batch has labels."""
        ...

    def evaluate(self, model: Module, batches: Iterable[Any]) -> Mapping[str, float]:
        """Figures of a model over batches, by name. ``model`` is in eval mode, gradients are off, devices agree."""
        ...


@runtime_checkable
class ReadsAware(Protocol):
    """A task that wants to know what the objective reads, because its models give some of it only on request."""

    def expect(self, reads: frozenset[str]) -> None:
        """Be told, once and before data is read or a model is built, which of ``kdplug.ADAPTOR_KEYS`` are read.

        ``hidden`` is left out where every match of it goes by module path. ``attention`` is not: a module that computes
        attention may have to be told to show it.
        """
        ...


@runtime_checkable
class SelfChecking(Protocol):
    """A task that can find out before any training what would end a run later."""

    def check(self) -> None:
        """Raises: ``KdplugError`` whose field is the setting, for data that cannot be read or models that do not fit."""
        ...


@runtime_checkable
class StartsStudent(Protocol):
    """A task whose student may start from the teacher's weights, which are known once the teacher is fitted."""

    @property
    def starts_student(self) -> bool:
        """Whether the settings ask for that. Where they do not, no teacher is at hand when there is a cache of what it says."""
        ...

    def start_student(self, student: Module, teacher: Module) -> None:
        """Write initial weights into a student that ``build_student`` has just made. ``teacher`` is trained, and stays as it is.

        The plan of a recipe, which trains nothing, passes the teacher that ``build_teacher`` gave.
        """
        ...


@runtime_checkable
class SavesStudent(Protocol):
    """A task that knows how its students are saved, so that they load where such models are loaded."""

    def save_student(self, student: Module, folder: Path, record: Mapping[str, Any]) -> None:
        """Write the trained student into ``folder``, which is empty. It stands in for ``student.safetensors``.

        ``record`` is what ``kdplug-run.json`` holds, with the content of ``metrics.json`` under ``results``. It is written into
        the folder under that name afterwards.
        """
        ...


@runtime_checkable
class Directed(Protocol):
    """A task that says which way its metric points; one that does not has a metric of which more is better."""

    @property
    def is_lower_better(self) -> bool:
        """Whether a smaller figure is the better one, as with perplexity."""
        ...


@runtime_checkable
class CountsUnits(Protocol):
    """A task whose throughput is not counted in examples."""

    @property
    def unit(self) -> str:
        """What is counted, in the plural: ``tokens``."""
        ...

    def count(self, batch: Any) -> int:
        """How many of them a batch holds; padding is none."""
        ...


@runtime_checkable
class AnswersWhole(Protocol):
    """A task whose models leave something out while they are trained and evaluated. Throughput is measured on the whole."""

    def answer(self, model: Module, batch: Any) -> Any:
        """Ask ``model``, in eval mode and without gradient, as those do who use it once it is trained."""
        ...


@runtime_checkable
class PreparesBatches(Protocol):
    """A task that makes some batches anew during distillation, with the student as it is at that moment."""

    @property
    def prepares_batches(self) -> bool:
        """Whether the settings ask for that. It does not go with a teacher cache: nobody knows these batches before."""
        ...

    def prepare_batch(self, batch: Any, student: Module) -> Any:
        """What both models are shown in the place of ``batch``, or ``batch`` itself where it stays.

        It is called once for each batch, all those of an optimizer step before the first of them is learned from. The student
        is in eval mode, on its device, and gradients are off. Random numbers are to come from torch's global generators:
        their states are in each checkpoint, so that a run that goes on makes the same batches.
        """
        ...


@runtime_checkable
class SpansVocabularies(Protocol):
    """A task whose teacher and student may have vocabularies of their own. Its batches are ``{"teacher": …, "student": …}`` then."""

    @property
    def vocabulary_difference(self) -> str:
        """In what the student's vocabulary and the teacher's, in this order, differ; the empty string where they have one.

        Where they differ, class ``i`` of one side is something else than class ``i`` of the other, however many there are. It is
        asked for after ``check``. A recipe then takes only what needs no class, and no position, in common.
        """
        ...


@runtime_checkable
class FingerprintedTask(Protocol):
    """A task that knows what its teacher's outputs depend on. It is optional: without it all settings of the task count."""

    def fingerprint(self) -> Mapping[str, Any]:
        """What has to be the same for a teacher cache to serve, as plain data by name.

        ``teacher`` (what is loaded, and its version), ``tokenizer`` (a digest of its vocabulary and settings), ``alignment``
        (which token the logits at a position are about). What concerns the student alone is left out, so that one cache
        serves several students. It is asked for where no teacher is at hand: building one for it defeats the purpose.
        """
        ...


@runtime_checkable
class FingerprintedDataset(Protocol):
    """A dataset that identifies its own examples, so that a run is not resumed over other data.

    It is optional: without it the run reads examples by their place, as many as a second allows.
    """

    def fingerprint(self) -> Any:
        """Plain data that changes whenever an example changes: digests of columns by name, say.

        It has to be the same in every process and cheap next to a run. A mapping lets the error name the part that changed.
        """
        ...


NEW_RECIPE = "new_recipe"
"""Where a task says what ``kdplug new`` writes for it."""

_Task = TypeVar("_Task", bound=Callable[..., Any])


def new_recipe(
    *, distillation: Mapping[str, Any] | None = None, training: Mapping[str, Any] | None = None
) -> Callable[[_Task], _Task]:
    """Declare, above a task, what a new recipe for it has in place of the defaults: keys of ``distillation:`` and ``training:``.

    Only ``kdplug new`` looks at it. What a recipe leaves out keeps kdplug's own default, whatever its task. ::

        @new_recipe(training={"lr": 2e-4, "num_epochs": 3})
        def reviews(*, path: str): ...
    """

    def declare(task: _Task) -> _Task:
        setattr(task, NEW_RECIPE, {"distillation": dict(distillation or {}), "training": dict(training or {})})
        return task

    return declare
