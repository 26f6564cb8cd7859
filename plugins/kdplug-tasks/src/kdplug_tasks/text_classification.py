"""The task ``text-classification``."""

from __future__ import annotations

import kdplug
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.model_task import ModelTask
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.setting import FINE_TUNING, OF_CLASSES
from kdplug_tasks.targets.category import Category
from kdplug_tasks.text.sequence import Length, Names, Sequences
from kdplug_tasks.text.setting import TokenizerSettings


@kdplug.new_recipe(distillation=OF_CLASSES, training=FINE_TUNING)
def text_classification(
    *,
    data: DataSettings,
    teacher: TeacherSettings,
    student: StudentSettings,
    tokenizer: TokenizerSettings | None = None,
    max_length: Length = 128,
    labels: Names | None = None,
) -> ModelTask:
    """One class for each text: sentiment, topic, intent.

    Columns: ``text`` and ``label``. Metrics: accuracy, and macro F1.

    Settings: ``data``, where the rows are; ``teacher`` and ``student``, which models; ``tokenizer``, the teacher's unless it is
    given; ``max_length``, in tokens, where texts are cut; ``labels``, the classes in the order of the outputs, needed where
    a trained teacher knows them by number and the data by name.
    """
    problem = Sequences(("text",), Category(labels), tokenizer, max_length)
    return ModelTask(problem, data, Family(problem.auto, teacher, student))
