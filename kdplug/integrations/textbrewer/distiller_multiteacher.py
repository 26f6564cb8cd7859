"""Distillation from the mean logits of several teachers of one task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kdplug.errors import ConfigError
from kdplug.integrations.textbrewer.batch import adapted
from kdplug.integrations.textbrewer.configurations import DistillationConfig, TrainingConfig
from kdplug.integrations.textbrewer.distiller_basic import BasicDistiller
from kdplug.integrations.textbrewer.log import warn_once
from kdplug.integrations.textbrewer.term import kd_loss, weighted

__all__ = ["MultiTeacherDistiller"]


class MultiTeacherDistiller(BasicDistiller):
    """Several teachers, one task. ``adaptor_T`` is one adaptor for all of them, or one for each.

    Raises: ``ConfigError`` if the numbers of adaptors and teachers differ.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Iterable[nn.Module],
        model_S: nn.Module,
        adaptor_T: Any,
        adaptor_S: Any,
    ) -> None:
        super().__init__(train_config, distill_config, list(model_T), model_S, adaptor_T, adaptor_S)
        self._adaptors = list(adaptor_T) if isinstance(adaptor_T, Iterable) else [adaptor_T] * len(self.model_T)
        if len(self._adaptors) != len(self.model_T):
            raise ConfigError(
                "must be a single adaptor, or a list with one per teacher (number of teachers: "
                f"{len(self.model_T)}), got {len(self._adaptors)}",
                field="adaptor_T",
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wrap a run; warn about matches, which have no effect."""
        if self.d_config.intermediate_matches:
            warn_once("intermediate_matches have no effect: MultiTeacherDistiller matches only logits")
        with super().running():
            yield

    def teacher_results(self, batch: Any, outputs: Any) -> list[dict[str, Any]]:
        """Return the adaptors' results for each teacher."""
        return [adapted(adaptor, batch, one, "adaptor_T") for adaptor, one in zip(self._adaptors, outputs, strict=True)]

    def compute_loss(self, results_S: Any, results_T: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the loss and its terms. The first teacher's mask applies to all teachers."""
        term = kd_loss(self.d_config, self.kd_loss, results_S, results_T, self.progress)
        total, terms = weighted(0, term, self.d_config.kd_loss_weight), {"unweighted_kd_loss": term}
        return self.add_hard_label_loss(total, terms, results_S)
