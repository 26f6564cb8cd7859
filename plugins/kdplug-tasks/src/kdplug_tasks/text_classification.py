"""The task ``text-classification``: predict one class for each text."""

from __future__ import annotations

import kdplug
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.guess import EXAMPLE, guess_for
from kdplug_tasks.model_task import ModelTask
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.setting import FINE_TUNING, OF_CLASSES
from kdplug_tasks.targets.category import Category
from kdplug_tasks.text.sequence import Length, Names, Sequences
from kdplug_tasks.text.setting import TokenizerSettings


@kdplug.new_recipe(
    task=EXAMPLE, guess=guess_for("text-classification", max_length=128), distillation=OF_CLASSES, training=FINE_TUNING
)
def text_classification(
    *,
    data: DataSettings,
    teacher: TeacherSettings,
    student: StudentSettings,
    tokenizer: TokenizerSettings | None = None,
    max_length: Length = 128,
    labels: Names | None = None,
) -> ModelTask:
    """Predict one class for each text: sentiment, topic, intent.

    Columns: ``text`` and ``label``. Metrics: accuracy and macro F1.

    Settings: ``data``, the files or dataset with the rows; ``teacher``, the teacher model; ``student``, the student
    model; ``tokenizer``, the tokenizer of both models, by default the teacher's; ``max_length``, maximum number of
    tokens, to which longer texts are truncated; ``labels``, the class names in the order of the logits, needed if a
    trained teacher has only class numbers and the data have names.
    """
    problem = Sequences(("text",), Category(labels), tokenizer, max_length)
    return ModelTask(problem, data, Family(problem.auto, teacher, student))
