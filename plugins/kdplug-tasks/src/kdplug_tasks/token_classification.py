"""The task ``token-classification``: predict a tag for each word."""

from __future__ import annotations

import kdplug
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.guess import EXAMPLE, guess_for
from kdplug_tasks.model_task import ModelTask
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.setting import FINE_TUNING, OF_CLASSES
from kdplug_tasks.text.sequence import Length, Names
from kdplug_tasks.text.setting import TokenizerSettings
from kdplug_tasks.text.word import Words


@kdplug.new_recipe(
    task={**EXAMPLE, "data": {"train": "train.conll", "test": "test.conll"}},
    guess=guess_for("token-classification", max_length=128),
    distillation=OF_CLASSES,
    training=FINE_TUNING,
)
def token_classification(
    *,
    data: DataSettings,
    teacher: TeacherSettings,
    student: StudentSettings,
    tokenizer: TokenizerSettings | None = None,
    max_length: Length = 128,
    labels: Names | None = None,
) -> ModelTask:
    """Predict a tag for each word: named entities, parts of speech.

    Columns: ``tokens`` and ``tags``, lists, or text split at whitespace. In a CoNLL-U file these are FORM and UPOS
    unless ``data.columns`` names others. In other CoNLL files they are the first and last column unless
    ``data.columns`` gives column numbers. The prediction for a word is the one for its first sub-word; losses on logits
    use only first sub-words. Metrics: accuracy over words and, if tags are in IOB1, IOB2, BIOES or BILOU, entity F1,
    precision and recall.

    Settings: ``data``, the files or dataset with the rows; ``teacher``, the teacher model; ``student``, the student
    model; ``tokenizer``, the tokenizer of both models, by default the teacher's; ``max_length``, maximum number of
    sub-words, to which longer sentences are truncated; ``labels``, the tags in the order of the logits, needed if a
    trained teacher has only tag numbers and the data have names.
    """
    problem = Words(tokenizer, max_length, labels)
    return ModelTask(problem, data, Family(problem.auto, teacher, student))
