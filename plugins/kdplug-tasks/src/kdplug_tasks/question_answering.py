"""The task ``question-answering``: find the span of a context that answers a question."""

from __future__ import annotations

import kdplug
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.guess import EXAMPLE, guess_for
from kdplug_tasks.model_task import ModelTask
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.setting import FINE_TUNING, OF_CLASSES, Count, WholeNumber
from kdplug_tasks.text.question import Questions
from kdplug_tasks.text.sequence import Length
from kdplug_tasks.text.setting import TokenizerSettings


@kdplug.new_recipe(
    task={**EXAMPLE, "data": {"train": "train.json", "validation": 0.1, "test": "test.json"}},
    guess=guess_for("question-answering", max_length=384),
    distillation=OF_CLASSES,
    training=FINE_TUNING,
)
def question_answering(
    *,
    data: DataSettings,
    teacher: TeacherSettings,
    student: StudentSettings,
    tokenizer: TokenizerSettings | None = None,
    max_length: Length = 384,
    stride: WholeNumber = 128,
    max_answer_length: Count = 30,
) -> ModelTask:
    """Find the span of a context that answers a question, as in SQuAD.

    Columns: ``question``, ``context``, and ``answers`` with lists ``text`` and ``answer_start``, or ``answer`` and
    ``answer_start``. The model has two heads of logits, start and end, over the positions of a window. Metrics: word F1
    and exact match, in [0, 1], of the best span over all windows. Unanswerable questions are supported if the training
    data contain some.

    Settings: ``data``, the files or dataset with the rows; ``teacher``, the teacher model; ``student``, the student
    model; ``tokenizer``, the tokenizer of both models, by default the teacher's; ``max_length``, tokens in a window
    of the context; ``stride``, tokens shared by neighbouring windows; ``max_answer_length``, maximum tokens of an
    answer.
    """
    if stride >= max_length:
        raise kdplug.ConfigError(f"must be less than max_length, {max_length}, got {stride}", field="stride")
    problem = Questions(tokenizer, max_length, stride=stride, max_answer_length=max_answer_length)
    return ModelTask(problem, data, Family(problem.auto, teacher, student))
