"""The task ``multi-label``: predict any number of classes for each text."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

import kdplug
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.guess import EXAMPLE, guess_for
from kdplug_tasks.model_task import ModelTask
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.setting import FINE_TUNING, OF_NUMBERS
from kdplug_tasks.targets.tag_set import TagSet
from kdplug_tasks.text.sequence import Length, Names, Sequences
from kdplug_tasks.text.setting import TokenizerSettings


@kdplug.new_recipe(
    task=EXAMPLE, guess=guess_for("multi-label", max_length=128), distillation=OF_NUMBERS, training=FINE_TUNING
)
def multi_label(
    *,
    data: DataSettings,
    teacher: TeacherSettings,
    student: StudentSettings,
    tokenizer: TokenizerSettings | None = None,
    max_length: Length = 128,
    labels: Names | None = None,
    separator: Annotated[str, Field(min_length=1)] = ",",
) -> ModelTask:
    """Predict any number of classes for each text: keywords, emotions, kinds of abuse.

    Columns: ``text`` and ``labels``, a list, or text split at ``separator``; empty text means no class. Metrics: micro
    F1, macro F1, and the share of rows with all classes correct. A class is predicted if its logit is above 0. Classes
    are not exclusive, so the kd loss should not take a softmax over them.

    Settings: ``data``, the files or dataset with the rows; ``teacher``, the teacher model; ``student``, the student
    model; ``tokenizer``, the tokenizer of both models, by default the teacher's; ``max_length``, maximum number of
    tokens, to which longer texts are truncated; ``labels``, the class names in the order of the logits, needed if a
    trained teacher has only class numbers and the data have names; ``separator``, the text that separates the
    classes in a cell.
    """
    problem = Sequences(("text",), TagSet(labels, separator), tokenizer, max_length)
    return ModelTask(problem, data, Family(problem.auto, teacher, student))
