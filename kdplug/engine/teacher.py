"""The side that is read and never trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from kdplug.engine.batch import call
from kdplug.engine.pair import Adaptor


class Teacher:
    """A model that is asked for its outputs under ``no_grad``, after its adaptor.

    Not inference mode: nearly every loss saves the teacher's tensors for its backward pass, which autograd refuses
    for inference tensors, and copying them costs more than the mode saves.
    """

    def __init__(self, model: nn.Module, adaptor: Adaptor | None = None) -> None:
        self.model = model
        self.adaptor = adaptor

    def __call__(
        self,
        batch: Any,
        model_args: Mapping[str, Any],
        cache: Any = None,
        precision: AbstractContextManager[Any] | None = None,
    ) -> Any:
        """What the objective reads of the teacher. ``cache`` stands in for the model's outputs where it is given."""
        with torch.no_grad(), precision or nullcontext():
            outputs = call(self.model, batch, model_args) if cache is None else cache
            return outputs if self.adaptor is None else self.adaptor(batch, outputs)

    def to(self, device: torch.device) -> None:
        """Move the model, unless it was spread over devices when it was loaded."""
        if getattr(self.model, "hf_device_map", None) is None:
            self.model.to(device)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No parameter of the teacher asks for a gradient inside; afterwards those that did do again."""
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
