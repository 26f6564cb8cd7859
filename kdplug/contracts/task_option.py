"""What a task may offer beyond ``Task``. Each of these stands alone: a run uses those that it finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    from torch.nn import Module


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
