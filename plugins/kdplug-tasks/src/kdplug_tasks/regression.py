"""The task ``regression``."""

from __future__ import annotations

import kdplug
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.model_task import ModelTask
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.setting import FINE_TUNING, OF_NUMBERS
from kdplug_tasks.targets.score import Score
from kdplug_tasks.text.sequence import Length, Sequences
from kdplug_tasks.text.setting import TokenizerSettings


@kdplug.new_recipe(distillation=OF_NUMBERS, training=FINE_TUNING)
def regression(
    *,
    data: DataSettings,
    teacher: TeacherSettings,
    student: StudentSettings,
    tokenizer: TokenizerSettings | None = None,
    max_length: Length = 128,
) -> ModelTask:
    """A number for each text, or pair of texts: similarity, a grade, a price.

    Columns: ``text`` and ``label``; ``text_pair`` where there is one. Metrics: Pearson's and Spearman's correlation, and the root
    of the mean squared error. A model has one output here, so the kd loss must compare numbers (``mse``): a softmax over one
    class is 1, whatever the class's logit.

    Settings: ``data``, where the rows are; ``teacher`` and ``student``, which models; ``tokenizer``, the teacher's unless it is
    given; ``max_length``, in tokens, where texts are cut.
    """
    problem = Sequences(("text",), Score(), tokenizer, max_length, optional=("text_pair",))
    return ModelTask(problem, data, Family(problem.auto, teacher, student))
