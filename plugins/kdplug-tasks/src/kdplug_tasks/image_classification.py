"""The task ``image-classification``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.images.image import Images
from kdplug_tasks.model_task import ModelTask
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.text.sequence import Names


def image_classification(
    *,
    data: DataSettings,
    teacher: TeacherSettings,
    student: StudentSettings,
    labels: Names | None = None,
    image_size: Annotated[int, Field(ge=1, le=1 << 14)] | None = None,
) -> ModelTask:
    """One class for each picture.

    The data are a folder with a folder of pictures for each class, an NPZ file of arrays ``image`` and ``label``, a table with
    paths, or an image dataset. Pictures are read as the teacher's folder says, or else resized to the size in a model's config, with
    pixels in [-1, 1]; there is no augmentation. Feature maps become sequences of positions. Metrics: accuracy, and macro F1.

    Settings: ``data``, where the pictures are; ``teacher`` and ``student``, which models; ``labels``, the classes in the order of
    the outputs, needed where a trained teacher knows them by number and the data by name; ``image_size``, height and width of
    pictures where neither the teacher's folder nor a config says them, 224 unless it is given.
    """
    problem = Images(labels, image_size)
    return ModelTask(problem, data, Family(problem.auto, teacher, student))
