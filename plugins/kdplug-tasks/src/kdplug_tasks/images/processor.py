"""Preprocess images for the models of a task."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

import kdplug
from kdplug_tasks.data.hub import offline_if_unreachable
from kdplug_tasks.models.config import not_loaded
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.untrusted import check_image_processor_class, data_only

_SIZE = 224


class ImageProcessor:
    """The teacher's transformers image processor, in its PIL version, which needs no torchvision."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    @classmethod
    def find(cls, family: Family, channels: int, size: int | None) -> ImageProcessor:
        """Load the teacher's processor, or make one that resizes to ``size`` (default 224) and scales to [-1, 1].

        Raises: ``ConfigError`` if the teacher's processor cannot be loaded.
        """
        from transformers import ViTImageProcessorPil

        path = family.teacher.path
        if path is not None and reads_as_saved(path):
            return cls(_load(path))
        size, half = size or _SIZE, [0.5] * channels
        return cls(ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=half, image_std=half))

    def pixels(self, pictures: Sequence[numpy.ndarray]) -> Tensor:
        """Return ``[batch, channels, height, width]`` from images ``[height, width, channels]``."""
        first = [picture.transpose(2, 0, 1) for picture in pictures]
        found: Tensor = self.processor(first, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
        return found

    def save(self, folder: Path) -> None:
        """Write ``preprocessor_config.json``."""
        self.processor.save_pretrained(folder)


def _load(path: str) -> Any:
    from transformers import AutoImageProcessor

    try:
        with data_only(), offline_if_unreachable(path):
            check_image_processor_class(path, "teacher.path")
            return AutoImageProcessor.from_pretrained(path, backend="pil", trust_remote_code=False)  # type: ignore[no-untyped-call]
    except kdplug.ConfigError:
        raise
    except Exception as error:  # transformers raises many types, such as ImportError if there is no PIL version
        raise not_loaded(path, "teacher.path", error, "the image processor of ") from error


def reads_as_saved(path: str) -> bool:
    """Return whether a folder has an image processor; a hub name is assumed to have one."""
    is_folder = os.path.isdir(path)  # noqa: PTH112 - False if the name is too long
    return not is_folder or (Path(path) / "preprocessor_config.json").is_file()


def size_of(config: Any) -> int | None:
    """Return the height and width of a model's input, ``None`` if its config does not set it, as for a ResNet."""
    size = getattr(config, "image_size", None)
    found = size[0] if isinstance(size, (list, tuple)) else size
    return int(found) if found else None
