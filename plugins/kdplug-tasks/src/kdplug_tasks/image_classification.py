"""The task ``image-classification``: predict one class for each image."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

import kdplug
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.guess import EXAMPLE, guess_for
from kdplug_tasks.images.image import Images
from kdplug_tasks.model_task import ModelTask
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.text.sequence import Names

_LAST_MAPS = {
    "layer_T": -1,
    "layer_S": -1,
    "feature": "hidden",
    "loss": "hidden_mse",
    "proj": ["linear", "auto", "auto"],
}


@kdplug.new_recipe(
    task={**EXAMPLE, "data": {"train": "images/train", "validation": 0.1, "test": "images/test"}},
    guess=guess_for("image-classification"),
    distillation={"intermediate_matches": [_LAST_MAPS]},
)
def image_classification(
    *,
    data: DataSettings,
    teacher: TeacherSettings,
    student: StudentSettings,
    labels: Names | None = None,
    image_size: Annotated[int, Field(ge=1, le=1 << 14)] | None = None,
) -> ModelTask:
    """Predict one class for each image.

    The data are a folder with one subfolder of images per class, an NPZ file with arrays ``image`` and ``label``, a
    table with paths, or an image dataset. Images are preprocessed by the image processor in the teacher's folder.
    Without one they are resized to the size in a model's config and scaled to [-1, 1]. There is no augmentation.
    Feature maps become sequences of positions. Metrics: accuracy and macro F1.

    Settings: ``data``, the files or dataset with the images; ``teacher``, the teacher model; ``student``, the
    student model; ``labels``, the class names in the order of the logits, needed if a trained teacher has only
    class numbers and the data have names; ``image_size``, height and width of images if neither the teacher's
    folder nor a config gives them, by default 224.
    """
    problem = Images(labels, image_size)
    return ModelTask(problem, data, Family(problem.auto, teacher, student))
