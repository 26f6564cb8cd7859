"""The task ``token-classification``."""

from __future__ import annotations

import kdplug
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.model_task import ModelTask
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.setting import FINE_TUNING, OF_CLASSES
from kdplug_tasks.text.sequence import Length, Names
from kdplug_tasks.text.setting import TokenizerSettings
from kdplug_tasks.text.word import Words


@kdplug.new_recipe(distillation=OF_CLASSES, training=FINE_TUNING)
def token_classification(
    *,
    data: DataSettings,
    teacher: TeacherSettings,
    student: StudentSettings,
    tokenizer: TokenizerSettings | None = None,
    max_length: Length = 128,
    labels: Names | None = None,
) -> ModelTask:
    """A tag for each word: named entities, parts of speech.

    Columns: ``tokens`` and ``tags``, lists, or text that blanks divide. In a CoNLL-U file they are FORM and UPOS, or the columns that
    ``data.columns`` names; in another CoNLL file the first and the last column, or those of the numbers that it gives. A word is what
    the model says of its first sub-word, and losses on logits see those alone. Metrics: F1, precision and recall of entities, where tags are in
    IOB1, IOB2, BIOES or BILOU, and the share of words that are right.

    Settings: ``data``, where the rows are; ``teacher`` and ``student``, which models; ``tokenizer``, the teacher's unless it is
    given; ``max_length``, in sub-words, where sentences are cut; ``labels``, the tags in the order of the outputs, needed
    where a trained teacher knows them by number and the data by name.
    """
    problem = Words(tokenizer, max_length, labels)
    return ModelTask(problem, data, Family(problem.auto, teacher, student))
