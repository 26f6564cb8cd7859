"""The task ``regression``: predict a number for each text or pair of texts."""

from __future__ import annotations

import kdplug
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.guess import EXAMPLE, guess_for
from kdplug_tasks.model_task import ModelTask
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.setting import FINE_TUNING, OF_NUMBERS
from kdplug_tasks.targets.score import Score
from kdplug_tasks.text.sequence import Length, Sequences
from kdplug_tasks.text.setting import TokenizerSettings


@kdplug.new_recipe(
    task=EXAMPLE, guess=guess_for("regression", max_length=128), distillation=OF_NUMBERS, training=FINE_TUNING
)
def regression(
    *,
    data: DataSettings,
    teacher: TeacherSettings,
    student: StudentSettings,
    tokenizer: TokenizerSettings | None = None,
    max_length: Length = 128,
) -> ModelTask:
    """Predict a number for each text, or pair of texts: similarity, a grade, a price.

    Columns: ``text`` and ``label``, optionally ``text_pair``. Metrics: Pearson and Spearman correlation, and root mean
    squared error. Models have one output, so the kd loss must compare numbers (``mse``): a softmax over a single class
    is always 1.

    Settings: ``data``, the files or dataset with the rows; ``teacher``, the teacher model; ``student``, the student
    model; ``tokenizer``, the tokenizer of both models, by default the teacher's; ``max_length``, maximum number of
    tokens, to which longer texts are truncated.
    """
    problem = Sequences(("text",), Score(), tokenizer, max_length, optional=("text_pair",))
    return ModelTask(problem, data, Family(problem.auto, teacher, student))
