"""How pictures become what a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

import kdplug
from kdplug_tasks.models.family import Family


class ImageProcessor:
    """transformers' processor for the teacher, in its PIL form: it needs no torchvision."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    @classmethod
    def find(cls, family: Family, config: Any) -> ImageProcessor:
        """The one in the teacher's folder, or one that resizes to the model's size and brings pixels to [-1, 1].

        Raises: ``ConfigError`` where the teacher's cannot be loaded.
        """
        from transformers import AutoImageProcessor, ViTImageProcessorPil

        path = family.teacher.path
        if path is not None and (not Path(path).is_dir() or (Path(path) / "preprocessor_config.json").is_file()):
            try:
                return cls(AutoImageProcessor.from_pretrained(path, backend="pil"))  # type: ignore[no-untyped-call]
            except (OSError, ValueError, ImportError) as error:
                first = str(error).strip().splitlines()[0]
                raise kdplug.ConfigError(
                    f"its image processor cannot be loaded: {first}", field="teacher.path"
                ) from error
        size, half = size_of(config), [0.5] * config.num_channels
        return cls(ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=half, image_std=half))

    def pixels(self, pictures: Sequence[numpy.ndarray]) -> Tensor:
        """``[batch, channels, height, width]`` out of ``[height, width, channels]`` each."""
        first = [picture.transpose(2, 0, 1) for picture in pictures]
        found: Tensor = self.processor(first, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
        return found

    def save(self, folder: Path) -> None:
        """Write ``preprocessor_config.json``."""
        self.processor.save_pretrained(folder)


def size_of(config: Any) -> int:
    """Height and width of what a model takes, 224 where its config leaves it open."""
    size = getattr(config, "image_size", None) or 224
    return int(size[0] if isinstance(size, (list, tuple)) else size)
