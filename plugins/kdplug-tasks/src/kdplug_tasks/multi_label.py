"""The task ``multi-label``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

import kdplug
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.model_task import ModelTask
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.setting import FINE_TUNING, OF_NUMBERS
from kdplug_tasks.targets.tag_set import TagSet
from kdplug_tasks.text.sequence import Length, Names, Sequences
from kdplug_tasks.text.setting import TokenizerSettings


@kdplug.new_recipe(distillation=OF_NUMBERS, training=FINE_TUNING)
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
    """Any number of classes for each text: keywords, emotions, kinds of abuse.

    Columns: ``text`` and ``labels``, a list, or text that ``separator`` divides; empty text is no class. Metrics: micro F1, macro
    F1, and the share of rows that are right throughout, a class holding where its logit is above 0. Classes do not exclude each
    other here, so the kd loss should not be one that takes a softmax over them.

    Settings: ``data``, where the rows are; ``teacher`` and ``student``, which models; ``tokenizer``, the teacher's unless it is
    given; ``max_length``, in tokens, where texts are cut; ``labels``, the classes in the order of the outputs, needed where
    a trained teacher knows them by number and the data by name; ``separator`` of the classes in a cell that is text.
    """
    problem = Sequences(("text",), TagSet(labels, separator), tokenizer, max_length)
    return ModelTask(problem, data, Family(problem.auto, teacher, student))
